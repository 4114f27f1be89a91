"""The table of malformed calls: functions with good arguments, and for each argument the ways in which it can be wrong.

``generate(front)`` crosses the two. A defect changes one argument of a call that is otherwise good. What each refusal
must look like is in test_malformed.py.

N = 5 rows, V = 3 classes, D = 2 features: all different, so that no mix-up of dimensions goes unseen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

import lastlayer as ll
from lastlayer import information, likelihood, linear_statistics, statistics

INF, NAN = math.inf, math.nan
OURS_ONLY = {
    "z_loss",
    "softcap",
    "scale",
    "token_weight",
    "memory_budget",
    "weight_grad",
}  # what torch's functions do not have


class Defect(NamedTuple):
    """One way to be wrong: ``change`` makes it of a good value, ``kind`` says which exceptions fit."""

    label: str
    change: Callable[[Any], Any]
    kind: str  # type, shape, layout (type or shape, as one takes it), range, axis or class
    shows: str | None = None  # what the message repeats, a regular expression; None: the value's type or shape
    front: str = ""  # the only front end in which this is a defect; in torch's, change then takes a tensor
    names: str = ""  # another argument that the message may name: the one that no longer fits


Arguments: TypeAlias = dict[str, tuple[Any, list[Defect]]]


@dataclass(frozen=True)
class Case:
    """A function, its good arguments, and what happens to one of them."""

    front: str
    function: str
    call: Callable[..., Any]
    torchs: Callable[..., Any] | None  # torch's own function, for the same arguments
    arguments: Arguments
    argument: str
    defect: Defect

    @property
    def key(self) -> tuple[str, str]:
        return f"{self.front}.{self.function}", f"{self.argument}={self.defect.label}"

    def good(self) -> dict[str, Any]:
        """Return good arguments, made anew."""
        return {name: self._fresh(value) for name, (value, _) in self.arguments.items()}

    def bad(self) -> dict[str, Any]:
        """Return the same with the defect."""
        value, _ = self.arguments[self.argument]
        if self.defect.front == "torch":
            return {**self.good(), self.argument: self.defect.change(self._fresh(value))}
        return {**self.good(), self.argument: self._fresh(self.defect.change(value))}

    def _fresh(self, value: Any) -> Any:
        if type(value) is not np.ndarray:
            return value
        if self.front == "torch":
            import torch

            return torch.tensor(value)
        return value.copy()


def number(value: Any) -> str:
    """Return an expression for a number as a message may print it: 2.0 or 2."""
    return rf"(?<![\w.]){re.escape(str(value).removesuffix('.0'))}(\.0)?(?![\w.])"


def swap(kind: str, *values: Any) -> list[Defect]:
    """Put these in place of the good value."""

    def shows(value: Any) -> str | None:
        return None if kind == "type" else number(value) if isinstance(value, float) else re.escape(str(value))

    return [Defect(repr(value), lambda _, v=value: v, kind, shows(value)) for value in values]


def plant(kind: str, *values: Any) -> list[Defect]:
    """Put these in place of the second element of a good array, or of its only one."""

    def planted(array: Any, value: Any) -> Any:
        dtype = np.uint64 if isinstance(value, np.uint64) else np.result_type(array, np.asarray(value))
        result = np.array(array, dtype=dtype)
        result.reshape(-1)[min(1, result.size - 1)] = value
        return result

    return [Defect(f"one {value}", lambda a, v=value: planted(a, v), kind, number(value)) for value in values]


def row_of(value: float) -> Callable[[Any], Any]:
    """Return what makes every entry of row 1 this value."""

    def change(array: Any) -> Any:
        result = array.copy()
        result[1] = value
        return result

    return change


def only(front: str, defects: Iterable[Defect]) -> list[Defect]:
    """Restrict defects to one front end."""
    return [defect._replace(front=front) for defect in defects]


def plain(arguments: Arguments, **others: tuple[Any, list[Defect]]) -> Arguments:
    """Return the same good arguments without defects, but with others."""
    return {**{name: (value, []) for name, (value, _) in arguments.items()}, **others}


# Types. What is optional may be None.
NONE = Defect("None", lambda _: None, "type")
TEXT = [Defect("'abc'", lambda _: "abc", "type"), Defect("['a', 'b']", lambda _: ["a", "b"], "type")]
COMPLEX = Defect("complex", lambda a: a.astype(complex), "type")
BOOL = Defect("bool", lambda a: a.astype(bool), "type")
INT = Defect("int", lambda t: t.long(), "type", front="torch")
HALF = Defect("float16", lambda t: t.half(), "type", front="torch")
META = Defect("meta", lambda t: t.to("meta"), "type", "meta", front="torch")
NDARRAY = Defect("ndarray", lambda t: t.numpy(), "type", front="torch")
OBJECTS = Defect("objects", lambda a: a.astype(object), "type", front="numpy")
MASKED = Defect("masked", lambda a: np.ma.masked_array(a, a != a), "type", "masked array", front="numpy")
RAGGED = Defect("ragged", lambda _: [[1.0, 2.0], [3.0]], "shape", "rectangular", front="numpy")
TYPES = [NONE, *TEXT, COMPLEX, OBJECTS, MASKED, RAGGED, NDARRAY]
LOGITS = [*TYPES, BOOL, INT]
OPTIONAL = [TEXT[0], COMPLEX, MASKED, NDARRAY]
GRADIENT = Defect("requires_grad", lambda t: t.requires_grad_(), "range", "gradient", front="torch")

# Shapes.
SCALAR = Defect("scalar", lambda a: a.reshape(-1)[:1].reshape(()), "shape", names="axis|dim|dimensions|[Dd]imension")
MORE_ROWS = Defect("N+1", lambda a: np.concatenate([a, a[:1]]), "shape")
FEWER_ROWS = Defect("N-1", lambda a: a[:-1], "shape")
DEEPER = Defect("rank+1", lambda a: a[None], "shape")
ROWS = [SCALAR, MORE_ROWS, FEWER_ROWS, DEEPER]
MORE_CLASSES = Defect("V+1", lambda a: np.append(a, a[:1]), "shape")
PER_CLASS = [
    SCALAR,
    MORE_CLASSES,
    Defect("V-1", lambda a: a[:-1], "shape"),
    Defect("(V, 1)", lambda a: a[:, None], "shape"),
]
NO_CLASSES = Defect("V=0", lambda a: a[..., :0], "shape", r"\([\d, ]*0\)|no classes|\b0 classes")
EMPTY = Defect("empty", lambda a: a[:0], "shape", "empty|no counts")

# Ranges.
NOT_FINITE = plant("range", NAN, INF)
NEGATIVE = [*plant("range", -0.5), *NOT_FINITE]
NOT_POSITIVE = [*plant("range", 0.0, -1.0), *NOT_FINITE]
NO_PROBABILITY = plant("range", -0.5, 1.5, NAN)
NO_COUNT = plant("range", 0.5, -1.0, NAN, INF)
NO_SIMPLEX = [*NO_PROBABILITY, Defect("sum 0.5", lambda a: a * 0.5, "range", "sum")]
NO_CLASS = plant("class", 3, 8, -1, -5, 2**40)
AXES = [*swap("axis", 5, -6), *swap("type", 1.5, "a")]
AXIS = [*AXES, *swap("type", None)]
WHERE = [TEXT[0], *(Defect(t, lambda a, t=t: a.astype(t), "type") for t in ("float64", "int64")), MORE_CLASSES]
REDUCTIONS = swap("range", "avg", None, ["mean"])
REDUCTION = [*REDUCTIONS, *swap("range", "batchmean")]
SMOOTHING = [*swap("range", -0.1, 1.1, NAN, INF), *swap("type", "a", None)]
IGNORE = swap("type", 1.5, "a")
UNIT = swap("range", "decibel", ["bits"])
FINITE = [*swap("range", NAN, INF), *swap("type", "a")]
POSITIVE = [*FINITE, *swap("range", 0, -1.0)]
BUDGET = [*swap("range", 0, 1, -1), *swap("type", "a", 1.5)]
DRAWS = [*swap("range", 0, -1), *swap("type", 1.5, "a")]
TEMPERATURE = [
    *swap("range", -1.0, NAN, INF),
    NONE._replace(shows="None"),
    *TEXT,
    COMPLEX,
    MORE_ROWS,
    *plant("range", -2.0, NAN),
]
NO_DRAW = [
    Defect("a row of -inf", row_of(-INF), "range", r"row\[1\] .* -inf"),
    Defect("a row of +inf", row_of(INF), "range", r"row\[1\] .* \+inf"),
    Defect("a row of NaN", row_of(NAN), "range", r"row\[1\] .* NaN"),
    NO_CLASSES,
]
NO_WEIGHTS = [
    *NEGATIVE,
    Defect("a row of zeros", row_of(0.0), "range", "row 1"),
    Defect("too few weights", lambda a: np.where(a < 0, 1.0, np.eye(3)[np.arange(len(a)) % 3]), "range", "1 weights"),
    NO_CLASSES,
]

NOT_REAL = COMPLEX._replace(shows="complex128")  # what is asked for is NumPy's by then
PER_ROW = [*TEXT, NOT_REAL, MORE_ROWS, META]
FRACTION = [*PER_ROW, *swap("range", -0.1, 1.5, NAN, INF), *plant("range", -0.5, 1.5, NAN)]
REAL_NUMBER = [*PER_ROW, *swap("range", NAN, INF, -INF), *plant("range", NAN)]
NOT_INTEGERS = [NOT_REAL, BOOL._replace(shows="bool"), Defect("float", lambda a: a * 1.0, "type", "float64")]
INTEGERS = [*TEXT, *NOT_INTEGERS, MORE_ROWS, META]
WORD = [*INTEGERS, *swap("type", 1.5), Defect("2**64", lambda _: 2**64, "range", "64 bits")]
IDS_OF_ROWS = [
    *INTEGERS,
    SCALAR._replace(shows=r"\(\)|no dimensions"),
    *plant("class", 3, 2**40),
    Defect("(N, L, 1)", lambda a: a[..., None], "shape"),
]
TRIPLES = [
    *swap("type", 5, "abc", (1, 2), (1, 2, 3, 4)),
    Defect("classes of text", lambda t: (t[0], "abc", *t[2:]), "type", "<U3"),
    Defect("rows of floats", lambda t: (t[0] * 1.0, *t[1:]), "type", "float64"),
    Defect("one row more", lambda t: (t[0] + 5, *t[1:]), "class", r"= 5 is outside \[0, 5\)"),
    Defect("a negative row", lambda t: (t[0] - 1, *t[1:]), "class", r"= -1 is outside \[0, 5\)"),
    Defect("one class more", lambda t: (t[0], t[1] + 3, *t[2:]), "class", r"= 3 is outside \[0, 3\)"),
    Defect("lengths", lambda t: (t[0], np.zeros(3, int), *t[2:]), "shape", r"\(2,\), \(3,\)"),
]
BIASES = [
    *TRIPLES,
    Defect("a bias of inf", lambda t: (t[0], t[1], np.array([0.0, INF])), "range", "inf"),
    Defect("a bias of NaN", lambda t: (t[0], t[1], np.array([0.0, NAN])), "range", "nan"),
    Defect("a bias of text", lambda t: (t[0], t[1], "abc"), "type", "<U3"),
]

# Good values.
Z = np.array([[1.0, 2.0, 0.1], [1.2, 0.5, 0.3], [0.4, 1.0, 1.5], [0.0, 0.0, -1.0], [3.0, -2.0, 0.7]])
LOGP = Z - np.log(np.exp(Z).sum(-1, keepdims=True))
P = np.exp(LOGP)
CUBE = np.stack([Z, Z + 0.5])
Y = np.array([2, 0, 1, 2, 0])
W = np.array([1.0, 0.5, 2.0])
KEEP = np.array([True, True, False])
HIDDEN = np.array([[0.1, 0.2], [-0.3, 0.4], [0.5, 0.0], [0.2, 0.2], [-0.1, 0.9]])
HEAD = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5]])
BITS, COUNTS, FOURS, REALS = np.array([1, 0, 1, 1, 0]), np.array([2, 0, 1, 3, 1]), np.full(5, 4), np.full(5, 0.4)

INDICES = [
    *TYPES,
    BOOL,
    Defect("float", lambda a: a * 1.0, "layout"),
    Defect("int32", lambda t: t.int(), "type", front="torch"),
    *NO_CLASS,
    *only("numpy", plant("class", np.uint64(2**63))),
    *ROWS,
    Defect("(N, 1)", lambda a: a[:, None], "shape"),
    Defect("(V,)", lambda a: a[:3], "shape"),
    Defect("one-hot", lambda a: np.eye(3, dtype=np.int64)[a], "layout"),
    META,
]
GRID = [
    *NO_CLASS,
    Defect("(B, V)", lambda a: a[:, :3], "shape"),
    Defect("(T, B)", lambda a: a.T, "shape"),
    Defect("(B T,)", lambda a: a.reshape(-1), "shape"),
]
SOFT = [*TYPES, Defect("V-1", lambda a: a[:, :-1], "shape"), *ROWS, *NO_PROBABILITY, META]
CLASS_WEIGHT = [*OPTIONAL, *PER_CLASS, *only("numpy", NEGATIVE), HALF, META]
FACTORS = [*OPTIONAL, MORE_CLASSES, *only("numpy", NEGATIVE), META]
AT = np.array([0, 4]), np.array([0, 2])  # rows and classes
KS, SEEDS, TOKENS = np.array([2, 1, 3, 0, -1]), np.arange(5), np.array([[0, 2], [1, -1], [2, 2], [0, 1], [-1, -1]])
BOTH_GIVEN = [Defect("3", lambda _: 3, "range", "both given")]
HOW_TO_DRAW: Arguments = {
    "temperature": (REALS, [NOT_REAL if defect is COMPLEX else defect for defect in (*TEMPERATURE, META)]),
    "top_k": (KS, [*INTEGERS, *swap("range", -2), *swap("type", 1.5), *plant("range", -5)]),
    **{name: (REALS, FRACTION) for name in ("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")},
    "top_n_sigma": (REALS, [*PER_ROW, *swap("range", -0.5, NAN), *plant("range", -2.0, NAN)]),
    "repetition_penalty": (REALS, [*REAL_NUMBER, *swap("range", 0.0, -1.0), *plant("range", 0.0)]),
    "presence_penalty": (REALS, REAL_NUMBER),
    "frequency_penalty": (REALS, REAL_NUMBER),
    "token_ids": (TOKENS, [*IDS_OF_ROWS, Defect("None", lambda _: None, "range", "needs token_ids")]),
    "prompt_ids": (TOKENS, IDS_OF_ROWS),
    "logit_bias": ((*AT, np.array([0.5, -INF])), BIASES),
    "bans": (AT, [defect for defect in TRIPLES if defect.label != "(1, 2)"]),
    "order": (
        "vllm",
        [
            *swap("range", "hf"),
            Defect("top_q", lambda _: ("top_q",), "range", "'top_q'"),
            Defect("twice", lambda _: ("top_k",) * 2, "range", "twice"),
        ],
    ),
    "seed": (SEEDS, WORD),
    "offset": (SEEDS, WORD),
    "step": (SEEDS, [*INTEGERS, *swap("range", -1, 2**32), *swap("type", 1.5), *plant("range", -1, 2**32)]),
}
MULTINOMIAL_WORDS: Arguments = {
    "input": (P, NO_WEIGHTS),
    "num_samples": (2, []),
    **{name: HOW_TO_DRAW[name] for name in ("seed", "offset", "step")},
}
ONE_BY_ONE: Arguments = {
    "input": (
        Z,
        [Defect("one class in a row", lambda a: np.where(a < 0, -INF, a) * [1, 1, 1], "range", "fewer classes")],
    ),
    "num_samples": (3, swap("range", 4)),
    "replacement": (False, []),
}
INDEX_LOSS: Arguments = {
    "input": (Z, [*LOGITS, *ROWS]),
    "target": (Y, INDICES),
    "weight": (W, CLASS_WEIGHT),
    "ignore_index": (-100, IGNORE),
    "reduction": ("mean", REDUCTION),
}
NO_LOGP = Defect("probabilities", lambda a: np.exp(a), "range", "probabilities were passed", front="numpy")
NLL: Arguments = {**INDEX_LOSS, "input": (LOGP, [*LOGITS, *ROWS, NO_LOGP])}
CROSS_ENTROPY: Arguments = {**INDEX_LOSS, "label_smoothing": (0.1, SMOOTHING)}
SOFT_CROSS_ENTROPY: Arguments = {
    **plain(CROSS_ENTROPY),
    "input": (Z, ROWS),
    "target": (P, SOFT),
    "ignore_index": (-100, [*IGNORE, *swap("range", 0)]),
}
ONE_ROW: Arguments = {
    "input": (Z[0], [NO_CLASSES._replace(kind="class", shows=r"outside \[0, 0\)", names="target")]),
    "target": (Y[:1].reshape(()), [*NO_CLASS, Defect("(2,)", lambda a: np.stack([a, a]), "shape")]),
}
BINARY: Arguments = {
    "input": (Z, [*LOGITS, *ROWS]),
    "target": (P, SOFT),
    "weight": (W, FACTORS),
    "pos_weight": (W, FACTORS),
    "reduction": ("mean", REDUCTION),
}
KL: Arguments = {"input": (LOGP, [*LOGITS, *ROWS]), "target": (P, SOFT), "reduction": ("batchmean", REDUCTIONS)}
BROADCAST = {"scalar", "rank+1", "V-1"}  # labels of defects that are none where shapes broadcast
FEATURES = [Defect("D+1", lambda a: np.concatenate([a, a[:, :1]], -1), "shape"), SCALAR]
LINEAR: Arguments = {
    "input": (HIDDEN, [*LOGITS, *FEATURES, FEWER_ROWS._replace(shows=r"\(4,\)", names="target")]),
    "linear_weight": (
        HEAD,
        [*LOGITS, *FEATURES, Defect("(D,)", lambda a: a[0], "shape"), EMPTY._replace(shows=r"\(0, 2\)"), HALF, META],
    ),
    "target": (Y, INDICES),
    "linear_bias": (W, [*OPTIONAL, *PER_CLASS, HALF, META]),
    "weight": (W, [*OPTIONAL, *PER_CLASS, *only("numpy", NEGATIVE), META, GRADIENT]),
    "token_weight": (REALS, [*OPTIONAL, *ROWS, *NOT_FINITE, META, GRADIENT]),
    "ignore_index": (-100, IGNORE),
    "reduction": ("mean", REDUCTION),
    "label_smoothing": (0.0, SMOOTHING),
    "z_loss": (0.0, FINITE),
    "softcap": (30.0, POSITIVE),
    "scale": (1.0, FINITE),
    "memory_budget": (1 << 20, BUDGET),
}

STATISTICS_TARGET = [
    *(defect for defect in INDICES if defect.label not in ("None", "(N, 1)", "one-hot")),
    Defect("one-hot", lambda a: np.eye(3, dtype=np.int64)[a], "layout", "names class 0 twice"),
    Defect("(N, 0)", lambda a: a[:, None][:, :0], "shape"),
    Defect("(N, 1, 1)", lambda a: a[:, None, None], "shape"),
]
SHARES_OF_CLASSES = [
    *OPTIONAL,
    *PER_CLASS,
    *NEGATIVE,
    Defect("zeros", lambda a: a * 0, "range", "all 0"),
]
STATISTICS: Arguments = {
    "input": (Z, [*LOGITS, *ROWS[:1], FEWER_ROWS._replace(shows=r"\(4,\)", names="target"), NO_CLASSES]),
    "target": (Y, STATISTICS_TARGET),
    "class_weights": (W, SHARES_OF_CLASSES),
    "ignore_index": (-100, IGNORE),
}
LINEAR_STATISTICS: Arguments = {
    **{name: LINEAR[name] for name in ("input", "linear_weight", "linear_bias", "softcap", "scale", "memory_budget")},
    **{name: STATISTICS[name] for name in ("target", "class_weights", "ignore_index")},
}

BIAS_OF_HEAD = [
    Defect("one NaN", lambda b: b * [1, NAN, 1], "range", r"row\[0\] .* NaN", names="input|logits"),
    Defect("one +inf", lambda b: b * [1, INF, 1], "range", r"row\[0\] .* \+inf", names="input|logits"),
]
NO_LOGIT = Defect("all -inf", lambda b: b - INF, "range", "no logit above -inf", names="input")
TOPK_OF_HEAD: Arguments = {
    **{name: LINEAR[name] for name in ("linear_weight", "softcap", "scale", "memory_budget")},
    "input": (
        HIDDEN,
        [*LOGITS, *FEATURES, META, Defect("a row of NaN", row_of(NAN), "range", r"row\[1\] .* NaN", names="logits")],
    ),
    "linear_bias": (W, [*LINEAR["linear_bias"][1], *BIAS_OF_HEAD]),
    "softcap": (None, POSITIVE),
}
DRAW_OF_HEAD: Arguments = {**TOPK_OF_HEAD, "linear_bias": (W, [*TOPK_OF_HEAD["linear_bias"][1], NO_LOGIT])}
HEAD_ARRAYS: Arguments = {"input": (HIDDEN, []), "linear_weight": (HEAD, [])}
OPTIONS_OF_HEAD: Arguments = {**HEAD_ARRAYS, **HOW_TO_DRAW}
HEAD_ONE_BY_ONE: Arguments = {
    **HEAD_ARRAYS,
    **plain(ONE_BY_ONE, input=(HIDDEN, []), num_samples=(3, swap("range", 4))),
    "linear_bias": (W, [Defect("one -inf", lambda b: b * [1, -INF, 1], "range", "fewer classes", names="input")]),
}
LARGEST = [*swap("range", 0, -1, 4), *swap("type", 1.5, "a", None)]
PLACES = Z[:, None] * np.linspace(0.5, 2, 7)[:, None]  # chains of 6 drafted tokens
DRAFTED = np.arange(30).reshape(5, 6) % 3
NO_TOKEN = [
    Defect("a row of -inf", row_of(-INF), "range", r"\[1, 0\] .* -inf"),
    Defect("a row of +inf", row_of(INF), "range", r"\[1, 0\] .* inf"),
    Defect("a row of NaN", row_of(NAN), "range", r"\[1, 0\] .* nan"),
    Defect("one +inf", lambda z: np.where(z == z.max(), INF, z), "range", r"\[4, 6\] .* inf|\[4, 5\] .* inf"),
    Defect("one NaN", lambda z: np.where(z == z.max(), NAN, z), "range", r"\[4, 6\] .* nan|\[4, 5\] .* nan"),
    NO_CLASSES._replace(shows=r"\([\d, ]*0\)"),
]
DRAFT: Arguments = {
    "target_logits": (
        PLACES,
        [
            *LOGITS,
            SCALAR,
            META,
            *NO_TOKEN,
            *(each._replace(names="draft_tokens") for each in (MORE_ROWS, FEWER_ROWS, DEEPER)),
            Defect("(N, V)", lambda z: z[:, 0], "shape", names="draft_tokens"),
            Defect("no places", lambda z: z[:, :0], "shape"),
            Defect("K places", lambda z: z[:, 1:], "shape", names="draft_tokens"),
            Defect("V+1", lambda z: np.concatenate([z, z[..., :1]], -1), "shape", names="draft_logits"),
        ],
    ),
    "draft_logits": (
        PLACES[:, :6] * 0.5,
        [
            *(defect for defect in LOGITS if defect is not NONE),
            *ROWS,
            META,
            *NO_TOKEN,
            Defect("K+1 places", lambda z: np.concatenate([z, z[:, :1]], 1), "shape"),
            Defect("K-1 places", lambda z: z[:, 1:], "shape"),
            Defect("V-1", lambda z: z[..., 1:], "shape"),
            Defect("class 0 masked", lambda z: z - [INF, 0, 0], "range", r"\[0, 0\] = 0", names="draft_tokens"),
        ],
    ),
    "draft_tokens": (
        DRAFTED,
        [
            NONE,
            *TEXT,
            *NOT_INTEGERS,
            *ROWS,
            META,
            MASKED,
            RAGGED,
            Defect("K+1", lambda x: np.concatenate([x, x[:, :1]], 1), "shape"),
            Defect("K-1", lambda x: x[:, 1:], "shape"),
            Defect("transposed", lambda x: x.T, "shape"),
            Defect("one-hot", lambda x: np.eye(3, dtype=np.int64)[x], "shape"),
            *NO_CLASS,
            *only("numpy", plant("class", np.uint64(2**63))),
        ],
    ),
    "draft_options": (
        {"temperature": 0.7},
        [
            Defect("another key", lambda _: {"penalty": 1.0}, "type", "'penalty'"),
            Defect("seed", lambda _: {"seed": 1}, "type", "'seed'"),
            Defect("text", lambda _: "abc", "type", "'a'"),
            Defect("top_p 1.5", lambda _: {"top_p": 1.5}, "range", r"1\.5", names="top_p"),
            Defect("top_k 1.5", lambda _: {"top_k": 1.5}, "type", r"1\.5", names="top_k"),
            Defect("order hf", lambda _: {"order": "hf"}, "range", "'hf'", names="order"),
            Defect("no temperature", lambda _: {"temperature": None}, "type", "None", names="temperature"),
            Defect("top_k 1", lambda _: {"top_k": 1}, "range", r"\[0, 0\] = 0", names="draft_tokens"),
        ],
    ),
}
CHAINS: Arguments = {
    **plain(DRAFT),
    **{name: HOW_TO_DRAW[name] for name in (*list(HOW_TO_DRAW)[:8], "order", "seed", "offset", "step")},
}


def cotangents(**fields: Any) -> statistics.LogitStatistics:
    """Return cotangents of these statistics of 5 rows."""
    return statistics.LogitStatistics(**{"logsumexp": np.ones(5), "logprob": np.ones(5), **fields})


COTANGENTS: tuple[Any, list[Defect]] = (
    cotangents(),
    [
        NONE,
        *TEXT,
        Defect("array", lambda _: np.ones(5), "type", "ndarray"),
        Defect("one text", lambda _: cotangents(entropy="abc"), "type", "dtype <U3"),
        Defect("one complex", lambda _: cotangents(max=np.ones(5) * 1j), "type", "dtype complex128"),
        Defect("one scalar", lambda _: cotangents(logsumexp=1.0), "shape", r"\(\), expected \(5,\)"),
        Defect("one N-1", lambda _: cotangents(entropy=np.ones(4)), "shape", r"\(4,\), expected \(5,\)"),
        Defect("one (N, 1)", lambda _: cotangents(logprob=np.ones((5, 1))), "shape", r"\(5, 1\), expected \(5,\)"),
        Defect("rank", lambda _: cotangents(rank=np.ones(5)), "range", "rank"),
        Defect("argmax", lambda _: cotangents(argmax=np.ones(5)), "range", "argmax"),
    ],
)
NO_TARGET = Defect("None", lambda _: None, "range", "no target")


def with_gradient(arguments: Arguments, shape: Any, defects: list[Defect]) -> Arguments:
    """Return the arguments of a loss's twin: its own, and the target once more."""
    factors = (np.ones(shape), [*OPTIONAL, RAGGED, SCALAR, MORE_ROWS, FEWER_ROWS])
    own = {"reduction": ("none", swap("range", "mean", "sum")), "cotangent": factors}
    return plain(arguments, target=(arguments["target"][0], defects), **own)


CLASSES: Arguments = {"input": (Z, [*LOGITS, SCALAR]), "axis": (-1, AXES)}
SELECTED: Arguments = {"input": (Z, []), "where": (KEEP, WHERE)}
VALUES: Arguments = {"input": (Z, LOGITS)}
NEITHER = Defect("None", lambda _: None, "type", "neither")
BOTH = Defect("given too", lambda _: Z, "type", "both")
UNITS: tuple[Any, list[Defect]] = ("bits", UNIT)
GIVEN = [*TEXT, COMPLEX, OBJECTS, MASKED, RAGGED, BOOL]
DISTRIBUTION = [*GIVEN, SCALAR, *NO_SIMPLEX]
PAIR: Arguments = {
    "p": (P, [NONE, *DISTRIBUTION]),
    "q": (P, [NONE, *DISTRIBUTION, FEWER_ROWS]),
    "axis": (-1, AXES),
    "unit": UNITS,
}
SHARES: tuple[Any, list[Defect]] = (REALS, [NONE, TEXT[0], COMPLEX, MASKED, MORE_ROWS, *NO_PROBABILITY])
LOC: tuple[Any, list[Defect]] = (REALS, [NONE, TEXT[0], MORE_ROWS, *NOT_FINITE])
SCALE: tuple[Any, list[Defect]] = (REALS, [NONE, TEXT[0], MORE_ROWS, *NOT_POSITIVE])
DELTA: tuple[Any, list[Defect]] = (1.0, [*swap("range", 0.0, -1.0, NAN, INF), *swap("type", "a", None)])
SIMPLEX: tuple[Any, list[Defect]] = (P, [NONE, TEXT[0], MORE_ROWS, *NO_SIMPLEX])
RESIDUALS: Arguments = {
    "input": (REALS, [NONE, *TEXT, COMPLEX, OBJECTS, MASKED, RAGGED, *NOT_FINITE, *ROWS]),
    "target": (COUNTS, [NONE, COMPLEX, *NOT_FINITE]),
    "reduction": ("mean", REDUCTION),
}

NUMPY: dict[str, tuple[Callable[..., Any], Arguments]] = {
    "softmax": (ll.softmax, {**CLASSES, "axis": (-1, [*AXES, *swap("range", (0, 0))])}),
    "softmax[where]": (ll.softmax, SELECTED),
    "log_softmax": (ll.log_softmax, CLASSES),
    "logsumexp": (ll.logsumexp, CLASSES),
    "argmax": (ll.argmax, {**CLASSES, "input": (Z, [*LOGITS, SCALAR, NO_CLASSES])}),
    "argmax[where]": (
        ll.argmax,
        {"input": (Z, []), "where": (KEEP, [*WHERE, Defect("none left", lambda a: a & False, "range", r"row\[0\]")])},
    ),
    "sigmoid": (ll.sigmoid, VALUES),
    "log_sigmoid": (ll.log_sigmoid, VALUES),
    "logit": (ll.logit, VALUES),
    "nll_loss": (ll.nll_loss, {**NLL, "axis": (-1, AXIS)}),
    "nll_loss_value_and_grad": (ll.nll_loss_value_and_grad, with_gradient(NLL, 5, NO_CLASS)),
    "cross_entropy": (ll.cross_entropy, {**CROSS_ENTROPY, "axis": (-1, AXIS)}),
    "cross_entropy[V]": (ll.cross_entropy, ONE_ROW),
    "cross_entropy[B, T, V]": (ll.cross_entropy, {"input": (CUBE, []), "target": (np.stack([Y, Y]), GRID)}),
    "cross_entropy[soft]": (ll.cross_entropy, SOFT_CROSS_ENTROPY),
    "cross_entropy_value_and_grad": (ll.cross_entropy_value_and_grad, with_gradient(CROSS_ENTROPY, 5, NO_CLASS)),
    "binary_cross_entropy_with_logits": (ll.binary_cross_entropy_with_logits, BINARY),
    "binary_cross_entropy_with_logits_value_and_grad": (
        ll.binary_cross_entropy_with_logits_value_and_grad,
        with_gradient(BINARY, (5, 3), NO_PROBABILITY),
    ),
    "kl_div": (ll.kl_div, KL),
    "kl_div_value_and_grad": (ll.kl_div_value_and_grad, with_gradient(KL, (5, 3), NO_PROBABILITY)),
    "linear_cross_entropy": (ll.linear_cross_entropy, LINEAR),
    "linear_cross_entropy[soft]": (ll.linear_cross_entropy, plain(LINEAR, target=(P, [*ROWS, *NO_PROBABILITY]))),
    "linear_cross_entropy_value_and_grad": (
        ll.linear_cross_entropy_value_and_grad,
        plain(LINEAR, target=(Y, NO_CLASS), memory_budget=(1 << 20, BUDGET)),
    ),
    "logit_statistics": (statistics.logit_statistics, {**STATISTICS, "axis": (-1, AXIS)}),
    "logit_statistics_vjp": (
        statistics.logit_statistics_vjp,
        plain(STATISTICS, target=(Y, [*NO_CLASS, NO_TARGET]), cotangents=COTANGENTS, axis=(-1, AXIS)),
    ),
    "linear_logit_statistics": (linear_statistics.linear_logit_statistics, LINEAR_STATISTICS),
    "linear_logit_statistics_vjp": (
        linear_statistics.linear_logit_statistics_vjp,
        plain(
            LINEAR_STATISTICS,
            target=(Y, [*NO_CLASS, NO_TARGET]),
            cotangents=COTANGENTS,
            memory_budget=(1 << 20, BUDGET),
        ),
    ),
    "surprisal": (
        ll.surprisal,
        {"probs": (P, [NEITHER, *GIVEN, *NO_PROBABILITY]), "logits": (None, [BOTH]), "unit": UNITS},
    ),
    "surprisal[logits]": (ll.surprisal, {"logits": (Z, [*GIVEN, SCALAR]), "axis": (-1, AXES)}),
    "entropy": (ll.entropy, {"probs": (P, [NEITHER, *DISTRIBUTION]), "logits": (None, [BOTH]), "unit": UNITS}),
    "entropy[logits]": (ll.entropy, {"logits": (Z, [*GIVEN, SCALAR]), "axis": (-1, AXES)}),
    "entropy[where]": (ll.entropy, {"logits": (Z, []), "where": (KEEP, WHERE)}),
    "information.cross_entropy": (information.cross_entropy, PAIR),
    "information.kl_divergence": (information.kl_divergence, PAIR),
    "perplexity": (ll.perplexity, {"input": (Z, [SCALAR, MORE_ROWS]), "target": (Y, INDICES), "axis": (-1, AXIS)}),
    "categorical": (
        ll.categorical,
        {
            "input": (Z, [*LOGITS, SCALAR, *NO_DRAW]),
            "num_samples": (2, DRAWS),
            "axis": (-1, AXIS),
            "temperature": (REALS, TEMPERATURE),
            "rng": (0, swap("type", "abc", 1.5)),
        },
    ),
    "categorical[options]": (ll.categorical, {"input": (Z, NO_DRAW), **HOW_TO_DRAW, "rng": (None, BOTH_GIVEN)}),
    "categorical[one by one]": (ll.categorical, ONE_BY_ONE),
    "linear_categorical": (
        ll.linear_categorical,
        {**DRAW_OF_HEAD, "num_samples": (2, DRAWS), "rng": (0, swap("type", "abc", 1.5))},
    ),
    "linear_categorical[options]": (
        ll.linear_categorical,
        {**OPTIONS_OF_HEAD, "rng": (None, BOTH_GIVEN)},
    ),
    "linear_categorical[one by one]": (ll.linear_categorical, HEAD_ONE_BY_ONE),
    "linear_topk": (ll.linear_topk, {**TOPK_OF_HEAD, "k": (2, LARGEST)}),
    "speculative_sample": (ll.speculative_sample, {**DRAFT, "rng": (0, swap("type", "abc", 1.5))}),
    "speculative_sample[options]": (ll.speculative_sample, {**CHAINS, "rng": (None, BOTH_GIVEN)}),
    "multinomial": (
        ll.multinomial,
        {
            "input": (P, [*LOGITS, SCALAR, DEEPER, *NO_WEIGHTS]),
            "num_samples": (2, [*DRAWS, *swap("type", None), *swap("range", 4)]),
            "rng": (0, swap("type", "abc", 1.5)),
        },
    ),
    "multinomial[words]": (ll.multinomial, MULTINOMIAL_WORDS),
    "likelihood.bernoulli.nll": (
        likelihood.bernoulli.nll,
        {"data": (BITS, [*TYPES, *plant("range", 0.5, 2.0, -1.0, NAN)]), "probs": SHARES, "unit": UNITS},
    ),
    "likelihood.bernoulli.mle": (likelihood.bernoulli.mle, {"data": (BITS, [*plant("range", 2, NAN), EMPTY])}),
    "likelihood.binomial.nll": (
        likelihood.binomial.nll,
        {
            "data": (COUNTS, [*NO_COUNT, *plant("range", 8)]),
            "total_count": (FOURS, [NONE, MORE_ROWS, *NO_COUNT]),
            "probs": SHARES,
        },
    ),
    "likelihood.binomial.mle": (
        likelihood.binomial.mle,
        {"data": (COUNTS, NO_COUNT), "total_count": (FOURS, [MORE_ROWS, *NO_COUNT])},
    ),
    "likelihood.categorical.nll": (
        likelihood.categorical.nll,
        {"data": (Y, [COMPLEX, *plant("range", 3, -1, 0.5, NAN)]), "probs": SIMPLEX, "unit": UNITS},
    ),
    "likelihood.categorical.mle": (
        likelihood.categorical.mle,
        {"data": (Y, [*plant("range", 7, -1, 0.5, NAN), EMPTY]), "num_classes": (3, [])},
    ),
    "likelihood.multinomial.nll": (
        likelihood.multinomial.nll,
        {
            "data": (COUNTS[:3], [*NO_COUNT, SCALAR, Defect("V-1", lambda a: a[:-1], "shape", "data 2")]),
            "probs": (P[0], [*NO_SIMPLEX, Defect("V+1", lambda a: np.append(a, 0.0), "shape", "4 classes")]),
        },
    ),
    "likelihood.multinomial.mle": (likelihood.multinomial.mle, {"data": (COUNTS, [*NO_COUNT, SCALAR, EMPTY])}),
    "likelihood.poisson.nll": (
        likelihood.poisson.nll,
        {"data": (COUNTS, NO_COUNT), "rate": (REALS, [NONE, MORE_ROWS, *NEGATIVE]), "unit": UNITS},
    ),
    "likelihood.poisson.mle": (likelihood.poisson.mle, {"data": (COUNTS, [*NO_COUNT, EMPTY])}),
    "likelihood.normal.nll": (
        likelihood.normal.nll,
        {"data": (COUNTS, [NONE, *TEXT, COMPLEX, *NOT_FINITE]), "loc": LOC, "scale": SCALE, "unit": UNITS},
    ),
    "likelihood.normal.mle": (likelihood.normal.mle, {"data": (COUNTS, [*NOT_FINITE, EMPTY])}),
    "likelihood.laplace.nll": (likelihood.laplace.nll, {"data": (COUNTS, NOT_FINITE), "loc": LOC, "scale": SCALE}),
    "likelihood.laplace.mle": (likelihood.laplace.mle, {"data": (COUNTS, [*NOT_FINITE, EMPTY])}),
    "likelihood.huber.nll": (
        likelihood.huber.nll,
        {"data": (COUNTS, NOT_FINITE), "loc": (REALS, []), "scale": (REALS, []), "delta": DELTA},
    ),
    "likelihood.mean_squared_error": (likelihood.mean_squared_error, RESIDUALS),
    "likelihood.mean_absolute_error": (
        likelihood.mean_absolute_error,
        plain(RESIDUALS, input=(REALS, [EMPTY._replace(shows=r"\(0,\)")]), reduction=("mean", REDUCTION)),
    ),
    "likelihood.huber_loss": (likelihood.huber_loss, plain(RESIDUALS, delta=DELTA)),
}

# What PyTorch takes, and we take too, with the same result. It does not look whether probabilities are in [0, 1].
LEGAL = {
    *((f"torch.{name}", f"input={label}") for name in ("logsumexp", "sigmoid") for label in ("complex", "bool", "int")),
    *(("torch.logit", f"input={label}") for label in ("bool", "int")),
    ("torch.argmax", "input=int"),
    *(
        (f"torch.{name}", f"target=one {value}")
        for name in ("cross_entropy[soft]", "linear_cross_entropy[soft]", "binary_cross_entropy_with_logits")
        for value in (-0.5, 1.5, NAN)
    ),
}


def losses_of(statistics: Any, *row_tensors: Any) -> Any:
    """Return one loss per row."""
    return sum((tensor.reshape(len(tensor), -1).sum(-1) for tensor in row_tensors), -statistics.logprob)


def returns(label: str, change: Callable[[Any], Any], shows: str) -> Defect:
    """Let the loss function return something else."""
    return Defect(label, lambda f: lambda *arguments: change(f(*arguments)), "range", shows)


def in_torch(arguments: Arguments) -> Arguments:
    """Return the arguments of statistics with what torch's front end has besides, and says in torch's words."""
    more = {"class_weights": [META]}
    said = {"D+1": {"shows": "2 and 3|3 and 2"}, "one-hot": {"kind": "range"}}
    return {
        name: (value, [*(defect._replace(**said.get(defect.label, {})) for defect in defects), *more.get(name, [])])
        for name, (value, defects) in arguments.items()
    }


LOSS_FN: tuple[Any, list[Defect]] = (
    losses_of,
    [
        *swap("type", None, "abc", 1.0),
        returns("the sum", lambda losses: losses.sum(), r"of shape \(\) for 5 rows"),
        returns("(N, 1)", lambda losses: losses[:, None], r"of shape \(5, 1\) for 5 rows"),
        returns("N-1", lambda losses: losses[1:], r"of shape \(4,\) for 5 rows"),
        returns("a number", lambda losses: 1.0, "1.0 for 5 rows"),
        returns("nothing", lambda losses: None, "None for 5 rows"),
        returns("integers", lambda losses: losses.long(), "int64"),
        returns("their share", lambda losses: losses / len(losses), "couples rows: the loss of row 0"),
    ],
)
ROW_TENSORS = [*TEXT, NDARRAY, SCALAR, MORE_ROWS, FEWER_ROWS, DEEPER, META]
COUNTED = [NONE, TEXT[0], BOOL, Defect("float", lambda a: a * 1.0, "type"), COMPLEX, NDARRAY]
GROUP: tuple[Any, list[Defect]] = (None, [*swap("type", "abc"), Defect("1", lambda _: 1, "type", "group = 1")])
PIECE: tuple[Any, list[Defect]] = (
    Y,
    [
        NONE,
        TEXT[0],
        BOOL,
        Defect("float", lambda a: a * 1.0, "type"),
        NDARRAY,
        SCALAR._replace(shows="scalar"),
        *swap("range", -1, NAN, INF),
    ],
)


def torch_table() -> dict[str, tuple[Callable[..., Any], Callable[..., Any] | None, Arguments]]:
    """Return our functions, torch's own, and the arguments."""
    import torch
    import torch.nn.functional as T

    import lastlayer.torch as F

    dim: Arguments = {"input": (Z, [*LOGITS, SCALAR]), "dim": (1, [*AXES, *swap("type", True)])}
    generator: tuple[Any, list[Defect]] = (None, swap("type", "abc", 1.5, 0))
    linear = getattr(T, "linear_cross_entropy", None)
    kl = {
        name: (value, [defect for defect in defects if defect.label not in BROADCAST and defect not in NO_PROBABILITY])
        for name, (value, defects) in KL.items()
    }
    return {
        "softmax": (F.softmax, T.softmax, dim),
        "log_softmax": (F.log_softmax, T.log_softmax, dim),
        "logsumexp": (
            F.logsumexp,
            torch.logsumexp,
            {**dim, "dim": (1, [*AXES, *swap("axis", (0, 7)), *swap("range", (0, 0))])},
        ),
        "argmax": (
            F.argmax,
            torch.argmax,
            {**dim, "input": (Z, [*LOGITS, SCALAR, NO_CLASSES._replace(shows="size")])},
        ),
        "sigmoid": (F.sigmoid, torch.sigmoid, VALUES),
        "log_sigmoid": (F.log_sigmoid, T.logsigmoid, VALUES),
        "logit": (F.logit, torch.logit, {**VALUES, "eps": (None, swap("type", "a"))}),
        "nll_loss": (F.nll_loss, T.nll_loss, NLL),
        "cross_entropy": (F.cross_entropy, T.cross_entropy, CROSS_ENTROPY),
        "cross_entropy[V]": (F.cross_entropy, T.cross_entropy, ONE_ROW),
        "cross_entropy[B, V, T]": (
            F.cross_entropy,
            T.cross_entropy,
            {
                "input": (CUBE.swapaxes(1, 2), [Defect("(B, T, V)", lambda a: a.swapaxes(1, 2), "shape")]),
                "target": (np.stack([Y, Y]), GRID),
            },
        ),
        "cross_entropy[soft]": (
            F.cross_entropy,
            T.cross_entropy,
            {**SOFT_CROSS_ENTROPY, "target": (P, [*SOFT, BOOL, INT])},
        ),
        "binary_cross_entropy_with_logits": (
            F.binary_cross_entropy_with_logits,
            T.binary_cross_entropy_with_logits,
            BINARY,
        ),
        "kl_div": (F.kl_div, T.kl_div, kl),
        "linear_cross_entropy": (F.linear_cross_entropy, linear, LINEAR),
        "linear_cross_entropy[soft]": (
            F.linear_cross_entropy,
            linear,
            plain(LINEAR, target=(P, [*ROWS, *NO_PROBABILITY, META]), ignore_index=(None, swap("range", -100))),
        ),
        "logit_statistics": (F.logit_statistics, None, in_torch(STATISTICS)),
        "linear_logit_statistics": (F.linear_logit_statistics, None, in_torch(LINEAR_STATISTICS)),
        "linear_loss": (
            F.linear_loss,
            None,
            {
                **in_torch(LINEAR_STATISTICS),
                "loss_fn": LOSS_FN,
                "reduction": ("mean", [*REDUCTION, *swap("range", "none")]),
            },
        ),
        "linear_loss[row_tensors]": (
            lambda row_tensors, **arguments: F.linear_loss(losses_of, *arguments.values(), row_tensors),
            None,
            plain(
                {name: LINEAR[name] for name in ("input", "linear_weight", "target")}, row_tensors=(REALS, ROW_TENSORS)
            ),
        ),
        "count_tokens": (
            F.count_tokens,
            None,
            {"target": (Y, COUNTED), "ignore_index": (-100, IGNORE), "group": GROUP},
        ),
        "accumulation": (
            lambda targets, **options: F.accumulation([targets], **options).__enter__(),
            None,
            {
                "targets": PIECE,
                "ignore_index": (-100, IGNORE),
                "group": GROUP,
                "gradient_reduction": ("mean", swap("range", "avg", None)),
            },
        ),
        "merge_over_ranks": (
            F.merge_over_ranks,
            None,
            {"mean": (F.TokenMean(1.0, 2), swap("type", None, "abc", 1.0)), "group": GROUP},
        ),
        "categorical": (
            F.categorical,
            None,
            {
                "input": (Z, [*LOGITS, SCALAR, META, *NO_DRAW]),
                "num_samples": (2, DRAWS),
                "temperature": HOW_TO_DRAW["temperature"],
                "generator": generator,
            },
        ),
        "categorical[options]": (F.categorical, None, {"input": (Z, NO_DRAW), **HOW_TO_DRAW}),
        "linear_categorical": (
            F.linear_categorical,
            None,
            {**in_torch(DRAW_OF_HEAD), "num_samples": (2, DRAWS), "generator": generator},
        ),
        "linear_categorical[options]": (F.linear_categorical, None, OPTIONS_OF_HEAD),
        "linear_categorical[one by one]": (F.linear_categorical, None, HEAD_ONE_BY_ONE),
        "linear_categorical[seed]": (
            F.linear_categorical,
            None,
            {**HEAD_ARRAYS, "seed": (None, BOTH_GIVEN), "generator": (torch.Generator(), [])},
        ),
        "linear_topk": (F.linear_topk, None, {**in_torch(TOPK_OF_HEAD), "k": (2, LARGEST)}),
        "speculative_sample": (F.speculative_sample, None, {**DRAFT, "generator": generator}),
        "speculative_sample[options]": (F.speculative_sample, None, CHAINS),
        "categorical[one by one]": (F.categorical, None, ONE_BY_ONE),
        "categorical[seed]": (
            F.categorical,
            None,
            {"input": (Z, []), "seed": (None, BOTH_GIVEN), "generator": (torch.Generator(), [])},
        ),
        "multinomial[words]": (F.multinomial, None, MULTINOMIAL_WORDS),
        "multinomial": (
            F.multinomial,
            torch.multinomial,
            {
                "input": (P, [*LOGITS, SCALAR, DEEPER, META, *NO_WEIGHTS]),
                "num_samples": (2, [*DRAWS, *swap("type", None, True), *swap("range", 4)]),
                "generator": generator,
            },
        ),
    }


def generate(front: str) -> Iterator[Case]:
    """Cross the functions of one front end, their arguments and the defects, legal ones included."""
    if front == "torch":
        table = torch_table()
    else:
        table = {name: (call, None, arguments) for name, (call, arguments) in NUMPY.items()}
    for name, (call, torchs, arguments) in table.items():
        for argument, (_, defects) in arguments.items():
            for defect in defects:
                if defect.front in ("", front):
                    yield Case(front, name, call, torchs, arguments, argument, defect)
