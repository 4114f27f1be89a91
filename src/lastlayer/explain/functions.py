"""What `lastlayer explain` can explain: the functions of this package, and the options that each of them takes.

A new function is one entry of FUNCTIONS; its options bear the names of its keyword arguments. Sibling: command.py.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, NamedTuple


class Function(NamedTuple):
    """A function on the command line.

    Attributes:
        name: in lastlayer.explain.
        help: one line.
        numbers: what is typed.
        options: its keyword arguments, as they are typed.
        single: whether one number is a number, and not a row of one.
        choices: what its first argument may be.
        required: the options that it cannot do without.
    """

    name: str
    help: str
    numbers: str
    options: tuple[str, ...] = ()
    single: bool = False
    choices: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


TARGET = ("target", "target-file", "target-name")
CUT = ("temperature", "top-k", "top-p", "min-p")
FAMILIES = ("bernoulli", "binomial", "categorical", "poisson", "normal", "laplace")

FUNCTIONS = {
    "softmax": Function("softmax", "probabilities of logits", "logits"),
    "log-softmax": Function("log_softmax", "their logarithms, without losing digits", "logits", ("unit",)),
    "logsumexp": Function("logsumexp", "the soft maximum of logits", "logits"),
    "sigmoid": Function("sigmoid", "from log-odds to a probability", "log-odds", single=True),
    "logit": Function("logit", "from a probability to log-odds", "probabilities", single=True),
    "cross-entropy": Function(
        "cross_entropy", "the loss of logits and targets, and its gradient", "logits",
        (*TARGET, "weight", "label-smoothing", "ignore-index", "reduction", "unit"),
    ),
    "nll-loss": Function(
        "nll_loss", "the loss of log-probabilities and targets", "log-probabilities",
        (*TARGET, "weight", "ignore-index", "reduction", "unit"),
    ),
    "perplexity": Function(
        "perplexity", "among how many classes the model hesitates", "logits", (*TARGET, "ignore-index")
    ),
    "entropy": Function("entropy", "the mean surprise of a distribution", "probabilities", ("logits", "unit")),
    "cross-entropy-between": Function(
        "cross_entropy_between", "the mean surprise of who believes q where p is true", "p", ("q", "unit"),
        required=("q",),
    ),
    "kl-divergence": Function(
        "kl_divergence", "what believing q costs where p is true", "p", ("q", "unit"), required=("q",)
    ),
    "temperature": Function(
        "temperature", "softmax at a temperature", "logits", ("temperature",), required=("temperature",)
    ),
    "truncate": Function("truncate", "what top-k, top-p and min-p keep", "logits", CUT),
    "categorical": Function("categorical", "a draw from softmax", "logits", (*CUT, "seed")),
    "likelihood": Function(
        "likelihood", "how probable data are under parameters", "data",
        ("probs", "total-count", "rate", "loc", "scale", "unit"), choices=FAMILIES,
    ),
    "mle": Function(
        "mle", "the parameters that make data most probable", "data", ("total-count", "num-classes"), choices=FAMILIES
    ),
}  # fmt: skip

# Options whose text is read as numbers, like the numbers themselves.
NUMBERS = ("q", "weight", "probs", "total_count", "rate", "loc", "scale")

OPTIONS: dict[str, dict[str, Any]] = {
    "target": {"metavar": "CLASSES", "help": "a class for each row, such as '1 2', or probabilities: '0.9 0.1'"},
    "target-file": {"metavar": "FILE", "help": "targets from a file; --rows chooses as in --file"},
    "target-name": {"metavar": "NAME", "help": "which array of --target-file, if it has several"},
    "weight": {"metavar": "WEIGHTS", "help": "a weight for each class, such as '1 2 1'"},
    "label-smoothing": {"type": float, "metavar": "E", "help": "share of the target given to all classes, 0 to 1"},
    "ignore-index": {"type": int, "metavar": "CLASS", "help": "rows with this target do not count (default: -100)"},
    "reduction": {"choices": ("mean", "sum", "none"), "help": "what becomes of the rows' losses (default: mean)"},
    "unit": {"choices": ("nats", "bits"), "help": "natural logarithms, or those to base 2 (default: nats)"},
    "logits": {"action": "store_true", "help": "the numbers are logits, softmax of which is meant"},
    "q": {"metavar": "Q", "help": "what is believed: probabilities, as many as those of p"},
    "temperature": {"type": float, "metavar": "T", "help": "what logits are divided by first"},
    "top-k": {"type": int, "metavar": "K", "help": "keep the K largest logits"},
    "top-p": {"type": float, "metavar": "P", "help": "keep the likeliest classes that have together P"},
    "min-p": {"type": float, "metavar": "P", "help": "keep classes at least P times as likely as the likeliest"},
    "seed": {"type": int, "metavar": "N", "help": "of the draw"},
    "probs": {"metavar": "P", "help": "the probability; of a categorical one for each class"},
    "total-count": {"metavar": "N", "help": "trials of each observation"},
    "num-classes": {"type": int, "metavar": "V", "help": "how many classes there are (default: 1 + the largest seen)"},
    "rate": {"metavar": "R", "help": "how many are expected"},
    "loc": {"metavar": "MU", "help": "where the middle is"},
    "scale": {"metavar": "S", "help": "how wide it is: standard deviation, or mean absolute deviation"},
}  # fmt: skip


def closest(name: str) -> str:
    """Return what a misspelt function may have been.

    Example:
        >>> closest("sofmax")
        ': did you mean softmax?'
        >>> closest("xyz")
        ''
    """
    found = get_close_matches(name, FUNCTIONS, 1)
    return f": did you mean {found[0]}?" if found else ""
