"""Lesson 9: inference: softmax, temperature, truncation, and draws whose histogram closes in on the probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np

from lastlayer import categorical, entropy, softmax
from lastlayer.learn.figures import Axis, Line, Point, Series, bars, curve
from lastlayer.learn.lesson import Answer, Choice, Lesson, Numbers, Result, State, Step
from lastlayer.learn.notation import given, show, val, vals

WORDS = ("mat", "sofa", "floor", "roof", "moon", "idea")
COUNTS = {str(10**power): f"{10**power:,}".replace(",", "\u202f") for power in range(1, 6)}


def answer(state: State) -> Answer:
    """Return the distribution drawn from, the draws, and how far their shares are from it."""
    z, t, many = np.array(state["logits"]), state["temperature"], int(state["draws"])
    drawn = categorical(
        z, many, temperature=t, top_k=state["top_k"], top_p=state["top_p"], min_p=state["min_p"], seed=state["seed"]
    )
    kept = np.argsort(-z, kind="stable")[: int(drawn.kept)]
    left = np.zeros(len(z), bool)
    left[kept] = True
    p = softmax(z / t, where=left) if t > 0 else left.astype(float)
    shares = np.bincount(drawn.index, minlength=len(z)) / many
    gap = float(np.abs(shares - p).max())
    return Answer(
        numbers=(
            Result("largest gap, share − probability", gap, tone="accent"),
            Result("words that can be drawn", int(drawn.kept), f"of {len(z)}"),
            Result("the model's probability for them", float(drawn.kept_mass)),
            Result("entropy of what is drawn from", float(entropy(p)), "nats"),
        ),
        figures=(
            bars("Shares of the draws; the lines are the probabilities", WORDS, [Series("share", shares, "accent")],
                 span=(0, 1), reference=Series("probability", p)),
            _closing(drawn.index, p, gap),
            bars("The model's own probabilities, and those drawn from", WORDS,
                 [Series("model", softmax(z), "quiet"), Series("drawn from", p, "accent")], span=(0, 1)),
        ),
        steps=(
            Step("temperature and truncation", rf"z / T, \quad T = {given(t)}, \\ \text{{kept: }} "
                 rf"{val(int(drawn.kept))} \text{{ of {len(z)}}}"),
            Step("softmax of what is kept", r"p = " + vals(p)),
            Step("the first draw", rf"y = \text{{{WORDS[drawn.index[0]]}}}, \\ \log p_y = "
                 rf"{val(float(drawn.sampled_logprob[0]))} \\ "
                 rf"\text{{under the model }} {val(float(drawn.logprob[0]))}"),
        ),
        says=(
            "The first ten draws: **" + " ".join(WORDS[each] for each in drawn.index[:10]) + "**.",
            f"After {COUNTS[state['draws']]} draws no share is further than {show(gap)} from its probability. A "
            "hundred times as many draws bring them about ten times as close.",
        ),
    )  # fmt: skip


def _closing(index: np.ndarray, p: np.ndarray, gap: float) -> dict[str, Any]:
    """Return the largest gap after the first n draws, over n, both on scales of powers of ten."""
    sizes = np.unique(np.geomspace(1, len(index), 60).astype(int))
    hits = np.cumsum(index[:, None] == np.arange(len(p)), axis=0)
    gaps = np.abs(hits[sizes - 1] / sizes[:, None] - p).max(-1)
    floor = 1e-4
    powers = [(float(k), label) for k, label in enumerate(("1", "10", "100", "1000", "10⁴", "10⁵"))]
    heights = [
        (float(k), label) for k, label in zip(range(-4, 1), ("0.0001", "0.001", "0.01", "0.1", "1"), strict=True)
    ]
    x = np.log10(sizes)
    return curve(
        "The histogram closes in: largest gap over the number of draws",
        Axis("draws", 0, 5, powers),
        Axis("gap", -4, 0, heights),
        [
            Line("largest gap", x, np.log10(np.maximum(gaps, floor))),
            Line("1 / √(4 n)", [0, 5], [-np.log10(2), -np.log10(2) - 2.5], "plain", True),
        ],
        points=[Point(float(x[-1]), float(np.log10(max(gap, floor))), "now")],
    )


LESSON = Lesson(
    slug="draws",
    title="Inference: a draw",
    question="“The cat sat on the …” After training the targets are gone. How is the next word chosen?",
    prose=(
        "The logits of one row give the probabilities, and then somebody has to choose. **argmax** takes the largest: "
        "always the same answer. A **draw** takes class $j$ with probability $p_j$, which is what torch's "
        "`multinomial` does with probabilities and `categorical` with logits.",
        "**Temperature** sharpens or levels. **top-k** keeps the k largest; **top-p** the most likely, as few as hold "
        "the share p together; **min-p** those at least min-p times as likely as the best. What is kept is shared out "
        "anew.",
    ),
    formula=(r"p_j = \frac{\exp(z_j / T)}{\sum_{k \in \text{kept}} \exp(z_k / T)}",),
    fields=(
        Numbers(
            "logits", "Logits z", (2.5, 1.9, 1.2, 0.4, -0.8, -2.0), -5, 5, 0.1, low=-1000, high=1000, columns=WORDS
        ),
        Numbers("temperature", "Temperature T", 1.0, 0, 3, 0.05, high=1000),
        Numbers("top_k", "top-k, 0 for all", 0, 0, 6, 1, whole=True),
        Numbers("top_p", "top-p, 1 for all", 1.0, 0.05, 1, 0.05, low=0.001),
        Numbers("min_p", "min-p, 0 for all", 0.0, 0, 1, 0.05),
        Choice("draws", "Draws", "1000", COUNTS),
        Numbers("seed", "Seed", 0, 0, 100, 1, whole=True, high=2**31),
    ),
    answer=answer,
    notes=(
        (
            "A seed makes it repeatable",
            "The same seed gives the same draws, whatever the number of threads. Change it and the histogram jumps, "
            "but the more draws, the less.",
        ),
        (
            "Two log-probabilities",
            "The log-probability under the model stays what it was; the one under the tempered and truncated "
            "distribution is another number. Training on draws needs to know which of the two it uses.",
        ),
    ),
    tries=(
        ("Ten draws", {"draws": "10"}),
        ("100 000 draws", {"draws": "100000"}),
        ("Cautious", {"temperature": 0.5}),
        ("Greedy, T = 0", {"temperature": 0}),
        ("top-p 0.8", {"top_p": 0.8}),
        ("min-p 0.2", {"min_p": 0.2}),
    ),
)
