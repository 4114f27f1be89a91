"""Lesson 3: log-softmax and LogSumExp: overflow without the shift, and the digits that log(softmax) loses."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from lastlayer import log_softmax, logsumexp, softmax
from lastlayer.learn.figures import Axis, Line, Series, bars, curve, table
from lastlayer.learn.lesson import Answer, Choice, Lesson, Numbers, Result, State, Step
from lastlayer.learn.notation import show, val, vals

TYPES = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
NAMES = ("class 0", "class 1")


def answer(state: State) -> Answer:
    """Return log p of class 0 by three ways in three types, and how many digits of it are right."""
    chosen = state["dtype"]
    found = {name: _ways(np.array(state["logits"], dtype)) for name, dtype in TYPES.items()}
    ways = found[chosen]
    z = np.array(state["logits"], TYPES[chosen])
    exact = ways["exact"]
    rows = [
        (label, show(float(ways[key])), _digits_text(ways[key], exact))
        for key, label in (
            ("naive", "log(softmax(z)), no shift"), ("softmax", "log(softmax(z)), shifted"),
            ("difference", "z₀ − LogSumExp(z)"), ("ours", "log_softmax(z)"),
        )
    ]  # fmt: skip
    wide = np.array(state["logits"], np.float64)
    top = float(wide.max())
    return Answer(
        numbers=(
            Result("log_softmax(z)₀", float(ways["ours"]), "nats", "accent"),
            Result("log(softmax(z))₀", float(ways["softmax"]), "nats",
                   "" if ways["softmax"] == ways["ours"] else "wrong"),
            Result("logsumexp(z)", float(logsumexp(z)), "nats"),
            Result("log Σ exp, no shift", float(_plain_logsumexp(z)), "nats",
                   "" if np.isfinite(_plain_logsumexp(z)) else "wrong"),
        ),
        figures=(
            bars(
                "Digits of log p₀ that are right",
                list(TYPES),
                [
                    Series("log(softmax)", [_digits(w["softmax"], w["exact"]) for w in found.values()], "quiet"),
                    Series("z − LogSumExp", [_digits(w["difference"], w["exact"]) for w in found.values()], "plain"),
                    Series("log_softmax", [_digits(w["ours"], w["exact"]) for w in found.values()], "accent"),
                ],
                unit="decimal digits",
                digits=1,
                span=(0, 17),
                marked=(list(TYPES).index(chosen),),
            ),
            table(f"log p₀ in {chosen}", ("way", "result", "right digits"), rows, marked=(3,)),
            _soft_maximum(wide),
        ),
        steps=(
            Step("take the largest out", rf"m = \max z = {val(top)}, \\ z - m =\\ "
                 + vals(wide - top)),
            Step("sum and logarithm", rf"\LSE(z) = m + \log \sum_k \exp(z_k - m) =\\ {val(top)} + "
                 rf"{val(float(logsumexp(wide - top)))} = {val(float(logsumexp(wide)))}"),
            Step("log-softmax of class 0", rf"\log p_0 = z_0 - \LSE(z) = {val(float(log_softmax(wide)[0]))}"),
        ),
        says=(_verdict(chosen, ways), _overflow(chosen, z)),
    )  # fmt: skip


@np.errstate(all="ignore")
def _ways(z: np.ndarray) -> dict[str, Any]:
    """Return log p_0 by each way in the type of z, and the exact one of the same rounded z."""
    powers = np.exp(z)
    return {
        "naive": np.log(powers[0] / powers.sum(dtype=z.dtype)),
        "softmax": np.log(softmax(z)[0]),
        "difference": z[0] - z.dtype.type(logsumexp(z)),
        "ours": log_softmax(z)[0],
        "exact": _exact(z),
    }


@np.errstate(all="ignore")
def _plain_logsumexp(z: np.ndarray) -> np.floating[Any]:
    return np.log(np.exp(z).sum(dtype=z.dtype))  # type: ignore[no-any-return]


def _exact(z: np.ndarray) -> Decimal:
    """Return log p_0 to 60 digits: -log(1 + sum exp(z_k - z_0))."""
    with localcontext(prec=120):
        x = sum(((Decimal(float(v)) - Decimal(float(z[0]))).exp() for v in z[1:]), Decimal(0))
        # Where 120 digits have no room for x beside the 1, log(1 + x) is x but for x^2.
        return -x if x < Decimal("1e-60") else -(1 + x).ln()


def _digits(value: Any, exact: Decimal) -> float:
    """Return how many decimal digits of a value are right, from 0 to 17."""
    if not np.isfinite(value):
        return 0.0
    error = abs(Decimal(float(value)) - exact)
    if error == 0:
        return 17.0
    return min(17.0, max(0.0, -float((error / abs(exact)).log10())))


def _digits_text(value: Any, exact: Decimal) -> str:
    return f"{_digits(value, exact):.1f}"


def _verdict(chosen: str, ways: dict[str, Any]) -> str:
    lost = _digits(ways["ours"], ways["exact"]) - _digits(ways["softmax"], ways["exact"])
    exact = show(float(ways["exact"])) if abs(ways["exact"]) > Decimal("1e-300") else f"{ways['exact']:.3e}"
    if lost < 0.5:
        return f"The exact value is {exact}. In {chosen} both ways come equally close here: no class is nearly sure."
    return (
        f"The exact value is {exact}. In {chosen}, log(softmax) gets {show(float(ways['softmax']))}: it loses "
        f"**{lost:.1f} digits** that `log_softmax` keeps, because the probability was rounded before its logarithm."
    )


def _overflow(chosen: str, z: np.ndarray) -> str:
    limit = math.log(float(np.finfo(z.dtype).max))
    if float(z.max()) > limit:
        return (
            f"exp overflows in {chosen} above {limit:.1f}: without the shift the sum is infinite, and infinity over "
            "infinity is not a number. With the largest logit out, the largest term is exp(0) = 1."
        )
    return f"exp overflows in {chosen} above {limit:.1f}. Drag a logit past it and see what the unshifted sum does."


def _soft_maximum(z: np.ndarray) -> dict[str, Any]:
    centre = float(z[1])
    x = np.linspace(centre - 6, centre + 6, 121)
    soft = logsumexp(np.stack([x, np.full_like(x, centre)], -1))
    return curve(
        "LogSumExp, a soft maximum of the two",
        Axis("z₀", centre - 6, centre + 6),
        Axis("", centre - 1, centre + 7),
        [
            Line("LogSumExp(z)", x, soft),
            Line("max(z)", x, np.maximum(x, centre), "plain", True),
        ],
        uprights=[(centre, "z₀ = z₁")],
    )


LESSON = Lesson(
    slug="logsumexp",
    title="Log-softmax and LogSumExp",
    question="On paper, log-softmax is the logarithm of softmax. Why is it a function of its own?",
    prose=(
        "A loss needs $\\log p$. On paper the exp goes away and the division becomes a difference. **LogSumExp** is a "
        "soft maximum of the scores: at least the largest, and at most $\\log V$ above it, with $V$ classes.",
        "A computer adds two troubles. **Overflow**: exp(1000) is beyond float64, so the largest logit must come out "
        "first. **Lost digits**: a probability close to 1 or 0 cannot be stored with all its digits, so its logarithm "
        "cannot be recovered from it.",
    ),
    formula=(
        r"\log p_j = z_j - \LSE(z)",
        r"\LSE(z) = \log \sum_k \exp(z_k) =\\ m + \log \sum_k \exp(z_k - m), \quad \\ m = \max z",
    ),
    fields=(
        Numbers("logits", "Logits z", (20.0, 0.0), -120, 120, 0.5, low=-2000, high=2000, columns=NAMES),
        Choice("dtype", "Number type", "float32", {name: name for name in TYPES}),
    ),
    answer=answer,
    notes=(
        (
            "Where the digits go",
            "In float32, softmax of (20, 0) rounds the first probability to exactly 1, and the logarithm of 1 is 0. "
            "`log_softmax` keeps the largest class apart from the sum of the others and returns −log1p(rest): no "
            "difference of two large numbers, no digits gone. The usual shortcut, score minus LogSumExp, subtracts two "
            "rounded numbers and loses them as well.",
        ),
    ),
    tries=(
        ("Nearly sure", {"logits": (20, 0)}),
        ("Overflow at 1000", {"logits": (1000, 1000), "dtype": "float64"}),
        ("Hopeless class", {"logits": (-120, 0)}),
        ("float16 at 12", {"logits": (12, 11), "dtype": "float16"}),
        ("Nothing to lose", {"logits": (0.3, 0)}),
    ),
)
