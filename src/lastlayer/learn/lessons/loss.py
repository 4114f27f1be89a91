"""Lesson 7: from logits to the loss, step by step, for [batch 2, sequence 3, vocabulary 4]; the gradient is p - y."""

from __future__ import annotations

import numpy as np

from lastlayer import cross_entropy, cross_entropy_value_and_grad, log_softmax, logsumexp, nll_loss, softmax
from lastlayer.learn.figures import Series, bars, heat
from lastlayer.learn.lesson import Answer, Choice, Lesson, Numbers, Result, State, Step
from lastlayer.learn.notation import show, val, vals

WORDS = ("the", "cat", "sat", "mat")
# A name is [batch, position].
ROWS = tuple(f"[{b}, {t}]" for b in range(2) for t in range(3))
LOGITS = (
    (0.2, 0.5, -0.1, 0.0),
    (1.0, 2.0, 0.1, -0.5),
    (1.2, 0.5, 0.3, 0.0),
    (0.4, 1.0, 1.5, 0.2),
    (-0.1, 0.1, 0.3, 2.4),
    (0.0, 0.0, 0.0, 0.0),
)
RIGHT = tuple(tuple(5 * (word == target) for word in range(4)) for target in (1, 2, 0, 1, 3, 2))


def answer(state: State) -> Answer:
    """Return the loss of all rows, by both ways, and the steps of one of them."""
    z, y = np.array(state["logits"], float), np.array(state["targets"])
    shaped, aimed = z.reshape(2, 3, 4), y.reshape(2, 3)
    logs = log_softmax(shaped).reshape(6, 4)
    each = cross_entropy(z, y, reduction="none")
    loss, gradient = cross_entropy_value_and_grad(shaped, aimed)
    gradient = gradient.reshape(6, 4)
    row = int(state["row"])
    p, target = softmax(z[row]), int(y[row])
    own = p - np.eye(4)[target]
    places = [(i, int(j)) for i, j in enumerate(y)]
    return Answer(
        numbers=(
            Result("cross_entropy(z, y)", float(loss), "nats", "accent"),
            Result("nll_loss(log_softmax(z), y)", float(nll_loss(log_softmax(shaped), aimed)), "nats"),
            Result("loss of the chosen row", float(each[row]), "nats"),
            Result("perplexity, exp(loss)", float(np.exp(loss))),
        ),
        figures=(
            heat("Log-softmax of every row, the target framed", ROWS, WORDS, logs, marked=places, signed=False),
            bars(f"Gradient of row {ROWS[row]}: p − y", WORDS, [Series("p − y", own, "accent")], span=(-1, 1),
                 marked=(target,)),
            heat("Gradient of the mean loss: (p − y) / 6", ROWS, WORDS, gradient, marked=places),
            bars("Loss of each row", ROWS, [Series("loss", each, "plain")], unit="nats", marked=(row,)),
        ),
        steps=(
            Step("1. LogSumExp of the row", rf"\LSE(z) = \log \sum_k \exp(z_k) = {val(float(logsumexp(z[row])))}"),
            Step("2. log-softmax: subtract it", r"\log p = " + vals(logs[row])),
            Step(f"3. pick the target, class {target} “{WORDS[target]}”",
                 rf"\log p_y = {val(float(logs[row, target]))}"),
            Step("4. turn the sign", rf"-\log p_y = {val(float(each[row]))} \text{{ nats}}"),
            Step("5. the mean over the rows", r"\frac{1}{6} \lp " + r" +\\ ".join(val(float(v)) for v in each)
                 + rf"\rp =\\ {val(float(loss))}"),
        ),
        says=(
            f"Row {ROWS[row]} gave its target “{WORDS[target]}” the probability **{show(float(p[target]))}**. The "
            f"gradient says: raise this logit ({show(float(own[target]))}), lower the others. It sums to 0.",
            "Each of the 6 rows is a question of its own: softmax runs along the vocabulary, the last dimension of "
            "[2, 3, 4], and never across positions or the batch.",
        ),
    )  # fmt: skip


LESSON = Lesson(
    slug="loss",
    title="From logits to the loss",
    question="A language model gives [batch 2, sequence 3, vocabulary 4] logits. Where does its one loss come from?",
    prose=(
        "The truth at each position is a single class $y$: the distribution is 1 there and 0 elsewhere. Of the "
        "cross-entropy only one term is left, $-\\log p_y$. So **log-softmax, then the negative log-likelihood, is the "
        "cross-entropy**; the mean over all positions is the loss.",
        "Differentiate it, and the **gradient is p − y**: what the model believed, minus what was true. Each entry "
        "lies between −1 and 1, so no example can shout.",
    ),
    formula=(
        r"\text{loss} = -\frac{1}{N} \sum_i \log p_{i, y_i} \quad \\ "
        r"\frac{\partial \, \text{loss}}{\partial z_j} = \frac{p_j - y_j}{N}",
    ),
    fields=(
        Numbers("logits", "Logits z", LOGITS, -5, 5, 0.1, low=-1000, high=1000, rows=ROWS, columns=WORDS),
        Numbers("targets", "Targets y, class indices", (1, 2, 0, 1, 3, 2), 0, 3, 1, whole=True, columns=ROWS),
        Choice("row", "Row to follow", "0", {str(i): name for i, name in enumerate(ROWS)}),
    ),
    answer=answer,
    notes=(
        (
            "Along which dimension?",
            "The row is always the dimension of the classes. `lastlayer` for NumPy takes the last one. PyTorch, and "
            "with it `lastlayer.torch`, wants the classes in dimension 1: [batch, classes, sequence]. A language "
            "model's output [2, 3, 4] must become [6, 4], or have its classes moved to dimension 1. This is the first "
            "thing to get wrong.",
        ),
    ),
    tries=(
        ("Know nothing", {"logits": ((0, 0, 0, 0),) * 6}),
        ("Surely right", {"logits": RIGHT}),
        ("Surely wrong once", {"logits": ((5, -5, 0, 0), *LOGITS[1:])}),
        ("Follow row [1, 1]", {"row": "4"}),
    ),
)  # fmt: skip
