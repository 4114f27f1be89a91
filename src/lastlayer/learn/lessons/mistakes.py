"""Lesson 8: wrong on the same numbers: five mistakes that run without an error, beside what would have been right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lastlayer import cross_entropy, log_softmax, nll_loss, softmax
from lastlayer.learn.figures import Series, bars, table
from lastlayer.learn.lesson import Answer, Choice, Lesson, Numbers, Result, State, Step
from lastlayer.learn.notation import show, val, vals

LOGITS = ((1.0, 2.0, 0.1), (1.2, 0.5, 0.3), (0.4, 1.0, 1.5))
NAMES = ("class 0", "class 1", "class 2")
ROWS = ("row 0", "row 1", "row 2")
KINDS = {
    "probabilities": "Probabilities into nll_loss",
    "twice": "Softmax twice",
    "dimension": "The wrong dimension",
    "padding": "Padding counted",
    "means": "The mean of means",
}


@dataclass(frozen=True)
class Slip:
    """A mistake: the two calls, the two numbers, and what goes wrong."""

    right_call: str
    right: float
    wrong_call: str
    wrong: float
    why: str


def answer(state: State) -> Answer:
    """Return all five mistakes on these logits and targets, the chosen one in full."""
    z, y = np.array(state["logits"], float), np.array(state["targets"])
    slips = _slips(z, y)
    chosen = slips[state["mistake"]]
    kinds = list(KINDS)
    rows = [
        (KINDS[name], show(slip.right), show(slip.wrong), show(slip.wrong - slip.right)) for name, slip in slips.items()
    ]
    return Answer(
        numbers=(
            Result("right", chosen.right, "nats", "accent"),
            Result("wrong", chosen.wrong, "", "wrong"),
            Result("off by", chosen.wrong - chosen.right),
        ),
        figures=(
            bars(
                "Right and wrong, on the same numbers",
                [KINDS[name] for name in kinds],
                [
                    Series("right", [slips[name].right for name in kinds], "accent"),
                    Series("wrong", [slips[name].wrong for name in kinds], "wrong"),
                ],
                marked=(kinds.index(state["mistake"]),),
            ),
            table("All five", ("mistake", "right", "wrong", "off by"), rows, marked=(kinds.index(state["mistake"]),)),
            _sums(z),
        ),
        steps=(
            Step("log p of each row's target", r"\log p_y =\\ " + vals(-cross_entropy(z, y, reduction="none"))),
            Step("and p itself", r"p_y =\\ " + vals(softmax(z)[np.arange(3), y])),
            Step(f"right: `{chosen.right_call}`", rf"\text{{loss}} = {val(chosen.right)}"),
            Step(f"wrong: `{chosen.wrong_call}`", rf"\text{{loss}} = {val(chosen.wrong)}"),
        ),
        says=(chosen.why, _protest(z, y) if state["mistake"] == "probabilities" else ""),
    )  # fmt: skip


def _slips(z: np.ndarray, y: np.ndarray) -> dict[str, Slip]:
    right = float(cross_entropy(z, y))
    kept = np.where(np.arange(3) == 2, -100, y)
    each = cross_entropy(z, y, reduction="none")
    return {
        "probabilities": Slip(
            "nll_loss(log_softmax(z), y)", right,
            "nll_loss(softmax(z), y)", float(nll_loss(softmax(z), y, validate=False)),
            "`nll_loss` takes log-probabilities. Given probabilities it returns minus their mean, a number below 0, "
            "and training goes on in silence.",
        ),
        "twice": Slip(
            "cross_entropy(z, y)", right,
            "cross_entropy(softmax(z), y)", float(cross_entropy(softmax(z), y)),
            "`cross_entropy` applies softmax itself. Probabilities lie between 0 and 1, so the second softmax can "
            "never be sure of anything: with three classes the loss of a perfect answer stops at "
            f"**{show(float(cross_entropy([1.0, 0.0, 0.0], 0)))}**.",
        ),
        "dimension": Slip(
            "nll_loss(log_softmax(z, axis=-1), y)", right,
            "nll_loss(log_softmax(z, axis=0), y)", float(nll_loss(log_softmax(z, axis=0), y)),
            "With as many rows as classes nothing complains: the columns sum to one instead of the rows, and each "
            "class competes with itself in other examples.",
        ),
        "padding": Slip(
            "cross_entropy(z, y), row 2 ignored", float(cross_entropy(z, kept)),
            "cross_entropy(z, y), row 2 counted", right,
            "Say row 2 is padding, there only to make the batch a rectangle. Its target must be -100, the "
            "`ignore_index`; else the model is paid for predicting padding, and the mean has the wrong divisor.",
        ),
        "means": Slip(
            "mean over all tokens", right,
            "mean of the two sequences' means", float((each[0] + each[1:].mean()) / 2),
            "Say row 0 is one sequence, rows 1 and 2 another. The mean of their means gives row 0 as much weight as "
            "the other two together. Add up the sums and divide once, by the number of tokens.",
        ),
    }  # fmt: skip


def _sums(z: np.ndarray) -> dict[str, object]:
    return bars(
        "What each row of probabilities sums to",
        ROWS,
        [
            Series("softmax(z, axis=-1)", softmax(z).sum(-1), "accent"),
            Series("softmax(z, axis=0)", softmax(z, axis=0).sum(-1), "wrong"),
        ],
    )


def _protest(z: np.ndarray, y: np.ndarray) -> str:
    """Return what the library says to probabilities where log-probabilities belong."""
    try:
        nll_loss(softmax(z), y)
    except ValueError as error:
        return f"The library refuses: “{error}”"
    return ""


LESSON = Lesson(
    slug="mistakes",
    title="Wrong on the same numbers",
    question="The code runs, the loss goes down. Which mistakes give a number, and the wrong one?",
    prose=(
        "In most libraries none of these five stops the program. Each returns a number, and often training even works "
        "a little. Choose one and compare it with what it should have been, on your own numbers.",
    ),
    formula=(r"\text{logits } z \to \text{log-softmax} \to \\ \text{NLL} = \text{cross-entropy}(z, y)",),
    fields=(
        Choice("mistake", "Mistake", "probabilities", KINDS),
        Numbers("logits", "Logits z", LOGITS, -5, 5, 0.1, low=-1000, high=1000, rows=ROWS, columns=NAMES),
        Numbers("targets", "Targets y, class indices", (2, 0, 1), 0, 2, 1, whole=True, columns=ROWS),
    ),
    answer=answer,
    notes=(
        (
            "How the library helps",
            "A logarithm of a probability is never above 0, so `nll_loss` refuses a positive value at a target and "
            "names the row. It is a safety net with holes: logits that happen to be negative at every target look like "
            "log-probabilities. When in doubt call `cross_entropy` on the logits.",
        ),
    ),
    tries=(
        ("Sure and right, softmax twice", {
            "mistake": "twice", "logits": ((0, 0, 5), (5, 0, 0), (0, 5, 0)),
        }),
        ("Padding that is easy", {"mistake": "padding", "logits": (*LOGITS[:2], (0.4, 5, 0))}),
        ("A hard first sequence", {"mistake": "means", "logits": ((4, 2, -4), *LOGITS[1:])}),
        ("Columns, not rows", {"mistake": "dimension", "logits": ((5, 0, 0), (5, 0, 0), (5, 0, 0))}),
    ),
)  # fmt: skip
