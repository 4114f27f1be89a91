"""Lesson 6: cross-entropy between distributions, why not the difference of probabilities, and H(p, q) = H(p) + D."""

from __future__ import annotations

from typing import Any

import numpy as np

from lastlayer import entropy, information, surprisal
from lastlayer.learn.figures import Axis, Line, Point, Series, bars, curve
from lastlayer.learn.lesson import Answer, Lesson, Mistake, Numbers, Result, State, Step
from lastlayer.learn.notation import short, show, val

COLOURS = ("red", "green", "blue", "yellow", "brown")
GRID = np.linspace(0.005, 0.995, 199)


def answer(state: State) -> Answer:
    """Return what believing q costs where p is true, and two ways to score a forecast of two outcomes."""
    p, q = _shares("truth", state["truth"]), _shares("belief", state["belief"])
    least, total = float(entropy(p)), float(information.cross_entropy(p, q))
    price = float(information.kl_divergence(p, q))
    honest, says = np.array([state["rain"], 1 - state["rain"]]), np.array([state["says"], 1 - state["says"]])
    grid = np.stack([GRID, 1 - GRID], -1)
    truth = np.tile(honest, (len(GRID), 1))
    scored, missing = float(information.cross_entropy(honest, says)), float((honest * (1 - says)).sum())
    return Answer(
        numbers=(
            Result("cross-entropy H(p, q)", total, "nats", "accent"),
            Result("entropy H(p)", least, "nats"),
            Result("KL divergence, the price", price, "nats"),
            Result("the other way, D(q ∥ p)", float(information.kl_divergence(q, p)), "nats"),
        ),
        figures=(
            bars("Truth p and belief q", COLOURS, [Series("truth p", p, "quiet"), Series("belief q", q, "accent")]),
            bars("H(p, q) = H(p) + D(p ∥ q)", ["H(p, q)", "H(p)", "D(p ∥ q)"],
                 [Series("nats", [total, least, price], "accent")], unit="nats"),
            curve(
                "Rain: which claim costs least on average?",
                Axis("what the forecaster says", 0, 1),
                Axis("mean cost", 0, 2),
                [Line("cross-entropy", GRID, information.cross_entropy(truth, grid)),
                 Line("difference 1 − q", GRID, (truth * (1 - grid)).sum(-1), "wrong", True)],
                points=_on_curve(state["says"], scored, missing),
                uprights=[(state["rain"], "truth")],
            ),
        ),
        steps=(
            Step("cross-entropy", r"-\sum_j p_j \log q_j =\\ " + r" +\\ ".join(
                rf"{val(float(a))} \cdot {val(float(b))}" for a, b in zip(p, surprisal(q), strict=True) if a > 0)),
            Step("the two parts", rf"H(p, q) = H(p) + D(p \Vert q) =\\ {val(least)} + {val(price)} = {val(total)}"),
            Step("the forecast of rain", rf"\text{{cross-entropy }} {val(scored)}, \\ "
                 rf"\text{{difference }} {val(missing)}"),
        ),
        says=(
            f"Who knows the truth is surprised by {show(least)} nats on average; who believes q by **{show(total)}**. "
            f"The price of the wrong belief is {show(price)} nats. It is never below 0.",
            _advice(state["rain"], GRID[np.argmin((truth * (1 - grid)).sum(-1))]),
        ),
    )  # fmt: skip


def _shares(name: str, weights: list[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    given = np.array(weights, float)
    if given.sum() == 0:
        raise Mistake(f"{name}: expected at least one number above 0, got only zeros", name)
    return np.asarray(given / given.sum())


def _on_curve(says: float, scored: float, missing: float) -> list[Point]:
    points = [Point(says, missing, "difference", "says")]
    return [*points, Point(says, scored, "cross-entropy", "says")] if scored <= 2 else points


def _advice(rain: float, claimed: float) -> str:
    if rain == 0.5:
        return "At even chances the difference does not care what the forecaster says; the cross-entropy asks for 0.5."
    claim = "certain rain" if claimed > 0.5 else "no rain at all"
    return (
        f"It rains in {short(rain)} of cases. Scored by the difference, the forecaster does best to claim **{claim}**. "
        f"Scored by the cross-entropy, the best claim is the honest one, {short(rain)}."
    )


LESSON = Lesson(
    slug="distributions",
    title="Cross-entropy between distributions",
    question="You believe q, but p is true. What does that cost, and why not just subtract the two?",
    prose=(
        "Your surprises are $-\\log q_j$, but colours come as often as $p$ says. The average is the **cross-entropy**. "
        "It is never below the entropy of $p$, and equals it only for $q = p$: nobody is surprised less than the one "
        "who knows the truth. What is above is the **Kullback-Leibler divergence**, the price of the wrong belief.",
    ),
    formula=(r"H(p, q) = -\sum_j p_j \log q_j =\\ H(p) + D(p \Vert q)",),
    fields=(
        Numbers("truth", "Truth p, in parts", (10, 20, 30, 25, 15), 0, 50, 1, high=1e6, columns=COLOURS),
        Numbers("belief", "Belief q, in parts", (30, 10, 20, 25, 15), 0, 50, 1, high=1e6, columns=COLOURS),
        Numbers("rain", "It rains with probability", 0.6, 0.01, 0.99, 0.01, low=0.0, high=1.0),
        Numbers("says", "The forecaster says", 0.8, 0.01, 0.99, 0.01, low=0.0, high=1.0),
    ),
    answer=answer,
    notes=(
        (
            "Why not simply the difference of probabilities?",
            "One could punish 1 − q, how much probability is missing at what happened. **It rewards dishonesty**: on "
            "average it is smallest for a forecaster who always claims certainty. **It does not see ratios**: between "
            "0.001 and 0.000001 lies a difference of less than 0.001, although one event of the second kind is as "
            "unlikely as two of the first in a row. **It stops teaching where there is most to learn**: its derivative "
            "by the true class's logit is −q (1 − q), almost nothing when the model is surely wrong. That of the "
            "cross-entropy is −(1 − q), full strength there.",
        ),
        (
            "The sternest rule",
            "Whoever calls impossible what then happens pays without limit: set a belief to 0 and see.",
        ),
    ),
    tries=(
        ("Believe the truth", {"belief": (10, 20, 30, 25, 15)}),
        ("All alike", {"belief": (20, 20, 20, 20, 20)}),
        ("No green", {"belief": (30, 0, 30, 25, 15)}),
        ("Claim certainty", {"says": 0.99}),
        ("Be honest", {"says": 0.6}),
    ),
)
