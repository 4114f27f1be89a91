"""Lesson 1: odds, log-odds, logit and sigmoid; why logits are called so, and when they are not log-odds."""

from __future__ import annotations

import numpy as np

from lastlayer import log_sigmoid, logit, logsumexp, sigmoid, softmax
from lastlayer.learn.figures import Axis, Line, Point, Series, bars, curve, table
from lastlayer.learn.lesson import Answer, Lesson, Numbers, Result, State, Step
from lastlayer.learn.notation import given, short, show, val

NAMES = ("class 0", "class 1", "class 2")
LINE = np.linspace(-7.0, 7.0, 141)


def answer(state: State) -> Answer:
    """Return the odds and log-odds of p, and what the scores of three classes say about odds."""
    p, z = state["p"], np.array(state["scores"])
    x = float(logit(p))
    odds = float(np.exp(logit(p)))
    share = softmax(z)
    rest = [float(z[j] - logsumexp(np.delete(z, j))) for j in range(3)]
    rows = [(name, short(z[j]), show(share[j]), show(float(logit(share[j])))) for j, name in enumerate(NAMES)]
    points = [Point(x, p, "your p", "p", None, "y")]
    if not -7 <= x <= 7:
        points = []
    return Answer(
        numbers=(
            Result("log-odds, logit(p)", x, tone="accent"),
            Result("odds, p / (1 − p)", odds, "to 1"),
            Result("back again, sigmoid", float(sigmoid(x))),
            Result("log p, log_sigmoid", float(log_sigmoid(x)), "nats"),
        ),
        figures=(
            curve(
                "The sigmoid: from log-odds to probability",
                Axis("log-odds x", -7, 7),
                Axis("probability", 0, 1),
                [Line("sigmoid(x)", LINE, sigmoid(LINE))],
                points=points,
                uprights=[(0.0, "even odds")],
            ),
            bars("Three scores, and the log-odds of each class against the rest", NAMES,
                 [Series("score", z, "quiet"), Series("log-odds", rest, "accent")]),
            table("Is a score the log-odds of its class?", ("", "score z", "probability", "log-odds"), rows),
        ),
        steps=(
            Step("odds", rf"\frac{{p}}{{1 - p}} = \frac{{{given(p)}}}{{1 - {given(p)}}} = {val(odds)}"),
            Step("log-odds", rf"\logit(p) = \log {val(odds)} = {val(x)}"),
            Step("and back", rf"\frac{{1}}{{1 + \exp(-({val(x)}))}} = {val(float(sigmoid(x)))}"),
            Step("class 0 against class 1", rf"\log \frac{{p_0}}{{p_1}} = z_0 - z_1 =\\ "
                 rf"{given(z[0])} - ({given(z[1])}) = {val(float(z[0] - z[1]))}"),
            Step("class 1 against the rest", rf"z_1 - \LSE(z_0, z_2) = {val(rest[1])}"),
        ),
        says=(
            f"Probability {short(p)} means odds of **{show(odds)} to 1**. Its opposite has the log-odds "
            f"**{show(float(logit(1 - p)))}**: swapping the two classes only turns the sign.",
            f"Class 1 has the score {short(z[1])}, but its log-odds are {show(rest[1])}. A single score is not the "
            "log-odds of anything; a **difference** of two scores is.",
        ),
    )  # fmt: skip


LESSON = Lesson(
    slug="odds",
    title="Odds, log-odds, logit, sigmoid",
    question="A model computes numbers from minus to plus infinity. How do they become probabilities?",
    prose=(
        "**Odds** are the first half of the bridge. Instead of “probability 0.8” one can say “4 to 1”: four times as "
        "probable as its opposite. Odds run from 0 to infinity. **Log-odds** are the second half: their logarithm runs "
        "over the whole line, and it is fair to both sides.",
        "The function from $p$ to the log-odds is the **logit**. The way back is the **sigmoid**. Drag the point.",
    ),
    formula=(r"\logit(p) = \log \frac{p}{1 - p} \quad \Leftrightarrow \\ p = \frac{1}{1 + \exp(-x)}",),
    fields=(
        Numbers("p", "Probability p", 0.8, 0.001, 0.999, 0.001, low=0.0, high=1.0),
        Numbers("scores", "Scores of three classes", (1.2, 2.5, 0.9), -6, 6, 0.1, low=-1000, high=1000, columns=NAMES),
    ),
    answer=answer,
    notes=(
        (
            "Why the scores are called logits, and when they are not log-odds",
            "With two classes, one of them fixed at score 0, the other score **is** the log-odds of its class: the "
            "logit in the strict sense. With three or more classes the name stayed. Two things are log-odds still: the "
            "difference of two scores, between these two classes; and a score minus the LogSumExp of all the others, "
            "its class against the rest.",
        ),
        (
            "Where the word comes from",
            "Joseph Berkson coined “logit” in 1944, after the model of “probit”.",
        ),
    ),
    tries=(
        ("Even odds", {"p": 0.5}),
        ("4 to 1", {"p": 0.8}),
        ("One in a thousand", {"p": 0.001}),
        ("Two classes and a faint third", {"scores": (1.5, 0, -20)}),
    ),
)
