"""Lesson 2: softmax as a soft argmax; temperature; a constant changes nothing."""

from __future__ import annotations

import math

import numpy as np

from lastlayer import argmax, softmax
from lastlayer.learn.figures import Axis, Line, Point, Series, bars, curve
from lastlayer.learn.lesson import Answer, Lesson, Numbers, Result, State, Step
from lastlayer.learn.notation import short, show, val, vals

NAMES = ("class 0", "class 1", "class 2")
TONES = ("quiet", "accent", "plain")
TEMPERATURES = np.linspace(0.05, 5.0, 100)
NOTE = softmax([1.2, 2.5, 0.9])


def answer(state: State) -> Answer:
    """Return the probabilities of (z + c) / T and how they run with T."""
    z, t, c = np.array(state["logits"]), state["temperature"], state["constant"]
    p = softmax((z + c) / t)
    top = int(argmax(z))
    swept = softmax(z / TEMPERATURES[:, None])
    powers = [float(np.exp((each - z.max()) / t)) for each in z]
    ratio = float(np.exp((z[0] - z[2]) / t))
    return Answer(
        numbers=(
            Result(f"largest, class {top}", float(p[top]), tone="accent"),
            Result("sum of all", float(p.sum())),
            Result("argmax", top),
            Result("p₀ / p₂", float(p[0] / p[2]) if p[2] > 0 else math.inf),
        ),
        figures=(
            bars("Logits: drag the bars", NAMES, [Series("logit", z, "quiet")], drag="logits", span=_around(z)),
            bars("Probabilities", NAMES, [Series("probability", p, "accent")], span=(0, 1), marked=(top,)),
            curve(
                "From argmax to uniform: the same logits at every temperature",
                Axis("temperature T", 0, 5),
                Axis("probability", 0, 1),
                [Line(name, TEMPERATURES, swept[:, j], TONES[j]) for j, name in enumerate(NAMES)],
                points=[Point(t, float(p[j]), f"p{'₀₁₂'[j]}", "temperature") for j in range(3) if t <= 5],
                uprights=[(1.0, "T = 1")],
            ),
        ),
        steps=(
            Step("divide by the temperature, take the largest out",
                 r"x_j = \frac{z_j - \max z}{T} =\\ " + vals((z - z.max()) / t)),
            Step("make them positive", r"\exp(x_j) = " + vals(powers)),
            Step("divide by their sum",
                 rf"p_j = \frac{{\exp(x_j)}}{{{val(sum(powers))}}} =\\ " + vals(p)),
            Step("a check without any softmax",
                 rf"\frac{{p_0}}{{p_2}} = \exp(\frac{{z_0 - z_2}}{{T}}) = {val(ratio)}"),
        ),
        says=(
            f"Argmax gives everything to class {top}. Softmax at T = {short(t)} gives it **{show(float(p[top]))}** and "
            "shares out the rest in the order of the scores.",
            f"The constant c = {short(c)} is added to all three logits. It changes nothing: only differences count.",
        ),
    )  # fmt: skip


def _around(z: np.ndarray) -> tuple[float, float]:
    """Return ends that stay put while a bar is dragged within the slider's range."""
    return min(-5.0, float(z.min())), max(5.0, float(z.max()))


LESSON = Lesson(
    slug="softmax",
    title="Softmax, a soft argmax",
    question="Three scores in, three probabilities out. What does softmax do, and why is it “soft”?",
    prose=(
        "To turn scores into probabilities, make them positive with exp, then divide by their sum. That is "
        "**softmax**. The hard way to choose is argmax: everything to the largest score. Softmax keeps the order and "
        "shares out the total, so it is a **soft argmax**, and that would have been the better name.",
        "Divide the logits by a **temperature** $T$ first. A small $T$ sharpens, and as $T$ goes to 0 argmax comes "
        "back. A large $T$ levels everything.",
    ),
    formula=(r"p_j = \frac{\exp(z_j / T)}{\sum_k \exp(z_k / T)}",),
    fields=(
        Numbers("logits", "Logits z", (1.2, 2.5, 0.9), -5, 5, 0.1, low=-1000, high=1000, columns=NAMES),
        Numbers("temperature", "Temperature T", 1.0, 0.05, 5, 0.05, low=0.001, high=1000),
        Numbers("constant", "Constant c, added to all", 0.0, -1000, 1000, 1, low=-1e6, high=1e6),
    ),
    answer=answer,
    notes=(
        (
            "A slip that has been copied often",
            "You may meet softmax([1.2, 2.5, 0.9]) elsewhere with the result 0.186, 0.689, 0.125. The library says "
            f"**{NOTE[0]:.4f}, {NOTE[1]:.4f}, {NOTE[2]:.4f}**. You can check it without any softmax: dividing two "
            f"probabilities cancels the sum, so the first over the third must be exp(1.2 − 0.9) = {math.exp(0.3):.4f}. "
            f"Here it is {NOTE[0] / NOTE[2]:.4f}; there it would be {0.186 / 0.125:.4f}.",
        ),
        (
            "What a constant does",
            "Adding 1000 to every logit multiplies every exp by the same factor, and the division takes it out again. "
            "That is why the largest logit may be subtracted first, and why a logit alone means nothing.",
        ),
    ),
    tries=(
        ("All alike", {"logits": (1, 1, 1)}),
        ("Nearly argmax", {"temperature": 0.1}),
        ("Nearly uniform", {"temperature": 5}),
        ("Add 1000", {"constant": 1000}),
        ("A tie", {"logits": (2.5, 2.5, 0), "temperature": 0.2}),
    ),
)
