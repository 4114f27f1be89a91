"""Lesson 10: changing the loss: does log-softmax change? Five losses, one row, four numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lastlayer import LogitStatistics, log_softmax, logit_statistics, logit_statistics_vjp
from lastlayer.learn.figures import Series, bars, table
from lastlayer.learn.lesson import Answer, Choice, Lesson, Numbers, Result, State, Step
from lastlayer.learn.notation import given, show, val, vals

NAMES = ("class 0", "class 1", "class 2", "class 3")
LOSSES = {
    "plain": "cross-entropy",
    "smoothing": "label smoothing",
    "weights": "class weight",
    "focal": "focal loss",
    "z": "z-loss",
    "entropy": "entropy bonus",
}


@dataclass(frozen=True)
class Slopes:
    """A loss and its derivatives by the row's statistics."""

    loss: float
    latex: str
    logprob: float
    logsumexp: float = 0.0
    entropy: float = 0.0
    mean_logprob: float = 0.0


def answer(state: State) -> Answer:
    """Return each loss of the row, its four numbers, and the gradient of the chosen one."""
    z, y, chosen = np.array(state["logits"], float), state["target"], state["loss"]
    statistics = logit_statistics(z, y, entropy=True)
    slopes = _losses(statistics, state)
    own = slopes[chosen]
    gradient = _gradient(z, y, own)
    four = {name: _four(statistics, each) for name, each in slopes.items()}
    rows = [(LOSSES[name], show(each.loss), *(show(v) for v in four[name])) for name, each in slopes.items()]
    alpha, beta, gamma, delta = four[chosen]
    return Answer(
        numbers=(
            Result(LOSSES[chosen], own.loss, "nats", "accent"),
            Result("log p of the target", float(statistics.logprob), "nats"),
            Result("LogSumExp", float(statistics.logsumexp), "nats"),
            Result("entropy", float(statistics.entropy), "nats"),
        ),
        figures=(
            bars("Log-softmax: the same for every loss", NAMES, [Series("log p", log_softmax(z), "quiet")], marked=(y,),
                 unit="nats"),
            bars(f"Gradient of {LOSSES[chosen]}", NAMES,
                 [Series("cross-entropy", _gradient(z, y, slopes["plain"]), "quiet"),
                  Series(LOSSES[chosen], gradient, "accent")], marked=(y,)),
            table("Four numbers per row", ("loss", "value", "α", "β", "γ", "δ"), rows,
                  marked=(list(LOSSES).index(chosen),)),
        ),
        steps=(
            Step("the loss", own.latex),
            Step("its four numbers", rf"\alpha = {val(alpha)},\\ \beta = {val(beta)},\\ \gamma = {val(gamma)}, \\ "
                 rf"\delta = {val(delta)}"),
            Step("the gradient", r"\frac{\partial \, \text{loss}}{\partial z} =\\ "
                 + vals(gradient)),
        ),
        says=(
            f"The {LOSSES[chosen]} of this row is **{show(own.loss)}**. Choose another loss: log-softmax and the "
            "statistics stay as they are; only the four numbers move.",
        ),
    )  # fmt: skip


def _losses(s: Any, state: State) -> dict[str, Slopes]:
    """Return every loss of the row; what it is worth is a function of the row's statistics alone."""
    log_p, lse, h, mean = float(s.logprob), float(s.logsumexp), float(s.entropy), float(s.mean_logprob)
    e, w, g, c, b = (state[name] for name in ("smoothing", "weight", "focus", "z_factor", "bonus"))
    p, q = float(np.exp(s.logprob)), float(np.exp(s.remainder))
    focal = q**g
    # d/d log p of -q^g log p, with dq = -p d log p; at g = 0 this is the cross-entropy.
    focal_slope = g * p * q ** (g - 1) * log_p - focal if g > 0 else -1.0
    nll = val(-log_p)
    return {
        "plain": Slopes(-log_p, rf"-\log p_y = {nll}", -1.0),
        "smoothing": Slopes(
            -(1 - e) * log_p - e * mean,
            rf"(1 - {given(e)}) \cdot {nll} + {given(e)} \cdot {val(-mean)} = {val(-(1 - e) * log_p - e * mean)}",
            -(1 - e), mean_logprob=-e,
        ),
        "weights": Slopes(-w * log_p, rf"w_y (-\log p_y) = {given(w)} \cdot {nll} = {val(-w * log_p)}", -w),
        "focal": Slopes(
            -focal * log_p, rf"(1 - p_y)^g (-\log p_y) =\\ {val(q)}^{{{given(g)}}} \cdot {nll} = {val(-focal * log_p)}",
            focal_slope,
        ),
        "z": Slopes(
            -log_p + c * lse**2, rf"{nll} + {given(c)} \cdot ({val(lse)})^2 = {val(-log_p + c * lse**2)}", -1.0,
            logsumexp=2 * c * lse,
        ),
        "entropy": Slopes(
            -log_p - b * h, rf"-\log p_y - b \, H(p) = {nll} - ({given(b)}) \cdot {val(h)} = {val(-log_p - b * h)}",
            -1.0, entropy=-b,
        ),
    }  # fmt: skip


def _four(s: Any, slopes: Slopes) -> tuple[float, float, float, float]:
    """Return alpha, beta, gamma, delta: dz_j = p_j (alpha + beta log p_j) + gamma [j = y] + delta / V."""
    alpha = slopes.logsumexp - slopes.logprob - slopes.entropy * float(s.entropy) - slopes.mean_logprob
    return alpha, -slopes.entropy + 0.0, slopes.logprob, slopes.mean_logprob


def _gradient(z: np.ndarray, y: int, slopes: Slopes) -> np.ndarray:
    given = LogitStatistics(
        logsumexp=np.float64(slopes.logsumexp),
        logprob=np.float64(slopes.logprob),
        entropy=np.float64(slopes.entropy),
        mean_logprob=np.float64(slopes.mean_logprob),
    )
    return logit_statistics_vjp(z, given, y)


LESSON = Lesson(
    slug="objectives",
    title="Changing the loss",
    question="To change the loss for a new task, must log-softmax change?",
    prose=(
        "Almost never. Log-softmax turns a row of logits into log-probabilities; a loss says what to do with them. "
        "Most new losses are a new sum over the same few statistics of a row: $\\log p_y$, the LogSumExp, the entropy, "
        "a mean.",
        "And each of them reaches the logits as **four numbers per row**. The kernel that computes the gradient knows "
        "these four and no loss at all. With $u = 1 / V$:",
    ),
    formula=(
        r"\frac{\partial \, \text{loss}}{\partial z_j} = p_j (\alpha + \beta \log p_j) +\\ "
        r"\gamma \, [j = y] + \delta u",
    ),
    fields=(
        Choice("loss", "Loss", "focal", LOSSES),
        Numbers("smoothing", "Smoothing e", 0.1, 0, 1, 0.01, when=(("loss", "smoothing"),)),
        Numbers("weight", "Weight of the target's class", 2.0, 0, 5, 0.1, high=1000, when=(("loss", "weights"),)),
        Numbers("focus", "Focus g", 2.0, 0, 5, 0.1, high=100, when=(("loss", "focal"),)),
        Numbers("z_factor", "Factor of the z-loss", 0.05, 0, 1, 0.01, when=(("loss", "z"),)),
        Numbers("bonus", "Bonus b", 0.5, -1, 1, 0.05, low=-10, high=10, when=(("loss", "entropy"),)),
        Numbers("logits", "Logits z", (1.2, 2.5, 0.9, -0.4), -5, 5, 0.1, low=-300, high=300, columns=NAMES),
        Numbers("target", "Target y", 1, 0, 3, 1, whole=True),
    ),
    answer=answer,
    notes=(
        (
            "When it does change",
            "If the logits themselves change, by a temperature, a scale, a cap, a bias, a mask or a margin, change "
            "them first; log-softmax stays. Only a new way to make probabilities from scores needs another function: "
            "several labels at once are sigmoids, and sparsemax is not a softmax.",
        ),
        (
            "Adding a constant still changes nothing, but for one",
            "The gradient of every loss of log-probabilities sums to 0. The z-loss is the exception: it punishes a "
            "LogSumExp away from 0 and so fixes the constant, which is its purpose.",
        ),
    ),
    tries=(
        ("Smoothing", {"loss": "smoothing"}),
        ("Focus 0 is cross-entropy", {"loss": "focal", "focus": 0}),
        ("Surely right", {"logits": (-2, 5, -2, -2)}),
        ("Surely wrong", {"target": 3}),
        ("z-loss, 3 added to all", {"loss": "z", "logits": (4.2, 5, 3.9, 2.6)}),
    ),
)
