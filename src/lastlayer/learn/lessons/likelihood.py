"""Lesson 4: likelihood and probability, one formula read two ways; its maximum; squared and absolute errors as NLLs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lastlayer.learn.figures import Axis, Line, Point, Series, bars, curve, table
from lastlayer.learn.lesson import Answer, Lesson, Mistake, Numbers, Result, State, Step
from lastlayer.learn.notation import given, short, show, val
from lastlayer.likelihood import binomial, laplace, mean_absolute_error, mean_squared_error, normal

GRID = np.linspace(0.0, 1.0, 101)


def answer(state: State) -> Answer:
    """Return the binomial read both ways, and the normal and Laplace likelihoods of three errors."""
    k, n, p = state["heads"], state["heads"] + state["tails"], state["p"]
    if n == 0:
        raise Mistake("heads: expected at least one throw, got 0 heads and 0 tails", "heads")
    chance = [binomial.likelihood(each, n, p) for each in range(n + 1)]
    likely = np.array([binomial.likelihood(k, n, float(each)) for each in GRID])
    cost = np.array([binomial.nll(k, n, float(each)) for each in GRID])
    here, loss, best = binomial.likelihood(k, n, p), binomial.nll(k, n, p), binomial.mle(k, n).probs
    ahead = f"{show(binomial.likelihood(k, n, best) / here)} times as well as yours" if here else "and yours cannot"
    height = float(likely.max()) * 1.12
    high = min(12.0, max(6.0, math.ceil(loss + 1))) if math.isfinite(loss) else 12.0
    shown = min(loss, high)
    return Answer(
        numbers=(
            Result("likelihood of p", here, tone="accent"),
            Result("its negative log", loss, "nats"),
            Result("the same", binomial.nll(k, n, p, unit="bits"), "bits"),
            Result("maximum at p = k / n", best),
        ),
        figures=(
            curve("Heads fixed, p varies: a likelihood", Axis("p", 0, 1), Axis("likelihood", 0, height),
                  [Line("likelihood", GRID, likely)], points=[Point(p, here, "your p", "p")],
                  uprights=[(best, "maximum")]),
            curve("Its negative logarithm: something to make small", Axis("p", 0, 1), Axis("nats", 0, high),
                  [Line("negative log-likelihood", GRID, cost)], points=[Point(p, shown, "your p", "p")],
                  uprights=[(best, "minimum")]),
            bars("p fixed, heads vary: a probability, which sums to 1", [str(each) for each in range(n + 1)],
                 [Series("probability", chance, "plain")], marked=(k,)),
            _errors(state),
        ),
        steps=(
            Step("the formula with your numbers", rf"f = \frac{{{n}!}}{{{k}! \, {n - k}!}} \times {given(p)}^{{{k}}} "
                 rf"\times \\ (1 - {given(p)})^{{{n - k}}} = {val(here)}"),
            Step("its negative logarithm", rf"-\log f = {val(loss)} \text{{ nats}}"),
            Step("the best p", rf"\frac{{k}}{{n}} = \frac{{{k}}}{{{n}}} = {val(best)}"),
        ),
        says=(
            f"{k} heads in {n} throws have the probability **{show(here)}** if p = {short(p)}. Over all {n + 1} "
            f"outcomes these probabilities sum to {show(math.fsum(chance))}.",
            f"Read as a function of p, the same numbers have the area 1 / {n + 1} = {show(1 / (n + 1))}: a likelihood "
            "is not the probability that p is right. It compares. "
            f"p = {short(round(best, 4))} explains these throws {ahead}.",
        ),
    )  # fmt: skip


def _errors(state: State) -> dict[str, Any]:
    """Return the table in which the errors of regression turn out to be likelihoods."""
    errors, scale = state["errors"], state["scale"]
    zero, n = [0.0] * 3, 3
    mse, mae = float(mean_squared_error(errors, zero)), float(mean_absolute_error(errors, zero))
    rows = [
        ("normal: squared error", show(mse), show(normal.nll(errors, zero, scale)),
         show(n * mse / (2 * scale**2) + n / 2 * math.log(2 * math.pi * scale**2))),
        ("Laplace: absolute error", show(mae), show(laplace.nll(errors, zero, scale)),
         show(n * mae / scale + n * math.log(2 * scale))),
    ]  # fmt: skip
    return table("The errors of regression are likelihoods", ("noise: error", "mean", "NLL", "from error"), rows)


LESSON = Lesson(
    slug="likelihood",
    title="Likelihood and probability",
    question="Likelihood sounds like another word for probability. What is the difference?",
    prose=(
        "A coin shows heads with probability $p$. One formula gives the probability of $k$ heads in $n$ throws. "
        "**Fix p and let k vary**, and it is a probability. **Fix k, what was seen, and let p vary**, and the "
        "same formula is a likelihood: it says how well each $p$ explains what happened.",
        "The logarithm turns products into sums and has its maximum in the same place. With the sign turned it becomes "
        "a **loss**.",
    ),
    formula=(r"f(k; n, p) = \frac{n!}{k! \, (n - k)!} \, p^k (1 - p)^{n - k}",),
    fields=(
        Numbers("heads", "Heads k", 7, 0, 20, 1, whole=True, high=40),
        Numbers("tails", "Tails n − k", 3, 0, 20, 1, whole=True, high=40),
        Numbers("p", "Probability p of heads", 0.5, 0, 1, 0.01),
        Numbers("errors", "Three errors of a regression", (0.5, 0.0, 2.0), -5, 5, 0.1, low=-1000, high=1000,
                columns=("first", "second", "third")),
        Numbers("scale", "Scale of the noise", 0.7, 0.1, 3, 0.1, low=0.001, high=1000),
    ),
    answer=answer,
    notes=(
        (
            "Squared and absolute errors",
            "A regression predicts the centre of a distribution. Write down the negative log-likelihood of normal "
            "noise, drop what does not depend on the prediction, and the **mean squared error** is left; Laplace noise "
            "leaves the **mean absolute error**. The last two columns of the table agree: one is the library's "
            "likelihood, the other is rebuilt from the error. Squares say that large errors hardly ever happen; make "
            "one error large and see which of the two complains more.",
        ),
        (
            "An estimate is no more than that",
            "Three heads in three throws give p = 1, which declares tails impossible.",
        ),
    ),
    tries=(
        ("Seven of ten, the best p", {"p": 0.7}),
        ("Three heads, no tails", {"heads": 3, "tails": 0, "p": 0.9}),
        ("Many throws", {"heads": 28, "tails": 12, "p": 0.6}),
        ("A wild error", {"errors": (0.5, 0, 5)}),
    ),
)  # fmt: skip
