"""Lesson 5: negative log-likelihood and surprise; the bag of sweets; nats and bits; what has a unit."""

from __future__ import annotations

import numpy as np

from lastlayer import entropy, log_softmax, surprisal
from lastlayer.learn.figures import Axis, Line, Point, Series, bars, curve, table
from lastlayer.learn.lesson import Answer, Choice, Lesson, Mistake, Numbers, Result, State, Step
from lastlayer.learn.notation import short, show, val

COLOURS = ("red", "green", "blue", "yellow", "brown")
GRID = np.linspace(0.002, 1.0, 250)


def answer(state: State) -> Answer:
    """Return how surprising each colour is, the mean of it, and which numbers change with the unit."""
    counts, unit, shift = np.array(state["sweets"], float), state["unit"], state["shift"]
    if counts.sum() == 0:
        raise Mistake("sweets: expected at least one sweet in the bag, got none", "sweets")
    p = counts / counts.sum()
    surprise = surprisal(p, unit=unit)
    mean = float(entropy(p, unit=unit))
    with np.errstate(divide="ignore"):
        logits = np.log(counts)
    logs = log_softmax(logits + shift)
    rows = [
        (colour, show(float(logits[j])), show(float(logits[j] + shift)), show(float(logs[j])))
        for j, colour in enumerate(COLOURS)
    ]
    drawn = state["drawn"]
    place = COLOURS.index(drawn)
    seen = [Point(float(p[place]), float(surprise[place]), drawn)] if p[place] >= GRID[0] else []
    return Answer(
        numbers=(
            Result(f"surprise at {drawn}", float(surprise[place]), unit, "accent"),
            Result("entropy, the mean surprise", mean, unit),
            Result("at most, all alike", float(entropy([0.2] * 5, unit=unit)), unit),
            Result(f"probability of {drawn}", float(p[place])),
        ),
        figures=(
            bars("Share in the bag", COLOURS, [Series("probability", p, "quiet")], marked=(place,)),
            bars("Surprise at each colour", COLOURS, [Series("surprise", surprise)], unit=unit, marked=(place,)),
            curve(
                f"Surprise −log p, in {unit}",
                Axis("probability p", 0, 1),
                Axis(unit, 0, 6 if unit == "nats" else 9),
                [Line("−log p", GRID, surprisal(GRID, unit=unit))],
                points=seen,
            ),
            table("Logits of the bag, moved by c: which numbers stay?",
                  ("", "logit", "logit + c", "log-probability"), rows, marked=(place,)),
        ),
        steps=(
            Step(f"surprise at {drawn}", rf"-\log{'_2' if unit == 'bits' else ''} {val(float(p[place]))} = "
                 rf"{val(float(surprise[place]))} \text{{ {unit}}}"),
            Step("entropy", r"\sum_j p_j (-\log p_j) =\\ " + r" +\\ ".join(
                f"{val(float(a))} \\cdot {val(float(b))}" for a, b in zip(p, surprise, strict=True) if a > 0)),
            Step("together", rf"H(p) = {val(mean)} \text{{ {unit}}}"),
        ),
        says=(
            f"A {drawn} sweet surprises by **{show(float(surprise[place]))} {unit}**. One nat is "
            f"{show(float(surprisal(np.exp(-1.0), unit='bits')))} bits; a bit is one answer to a yes-or-no question.",
            f"Adding c = {short(shift)} to the logits changes every one of them and no log-probability.",
        ),
    )  # fmt: skip


LESSON = Lesson(
    slug="surprise",
    title="Surprise, nats and bits",
    question="Why is the loss a logarithm, and what is it measured in?",
    prose=(
        "A bag of sweets. You draw one without looking. A rare colour surprises you more than a frequent one. The "
        "measure of **surprise** is $-\\log p$, the negative log-likelihood of what you drew. It is 0 for what is "
        "certain, grows without bound for what hardly ever happens, and surprises of independent events add up.",
        "**Entropy** is the surprise that you expect on average, each colour counted as often as it comes.",
    ),
    formula=(r"\text{surprise} = -\log p_j \quad \\ H(p) = -\sum_j p_j \log p_j",),
    fields=(
        Numbers("sweets", "Sweets in the bag", (10, 20, 30, 25, 15), 0, 50, 1, whole=True, high=1_000_000,
                columns=COLOURS),
        Choice("drawn", "You draw", "red", {colour: colour for colour in COLOURS}),
        Choice("unit", "Unit", "nats", {"nats": "nats", "bits": "bits"}),
        Numbers("shift", "Constant c, added to the logits", 5.0, -10, 10, 0.5, low=-1000, high=1000),
    ),
    answer=answer,
    notes=(
        (
            "Logits are not “in nats”, and neither are probabilities",
            "One reads that logits or probabilities are in nats. A probability is a share and has no unit. A logit has "
            "none of its own either: any constant may be added to a row of them. The unit belongs to "
            "**log-probabilities**, and to what is made of them: surprise, entropy, the loss. The base of the "
            "logarithm sets it, e for nats, 2 for bits.",
        ),
    ),
    tries=(
        ("In bits", {"unit": "bits"}),
        ("Yellow is two questions", {"drawn": "yellow", "unit": "bits"}),
        ("All alike", {"sweets": (20, 20, 20, 20, 20)}),
        ("One colour only", {"sweets": (50, 0, 0, 0, 0)}),
        ("Red is impossible", {"sweets": (0, 20, 30, 25, 15)}),
    ),
)  # fmt: skip
