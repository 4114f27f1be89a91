"""Generated malformed calls of both front ends: each is refused, by name, with nothing changed.

The table is malformed.py. A refusal is an exception of a kind that fits, whose message names the argument and says what
came, and that leaves the arguments as they were. What PyTorch refuses, its mirror here refuses too. The second table
holds what is odd and legal, and what it gives.
"""

from __future__ import annotations

import inspect
import math
import operator
import re
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import malformed
import numpy as np
import pytest
from malformed import Case

import lastlayer

FRONTS = ["numpy"]
if find_spec("torch"):
    import lastlayer.torch

    FRONTS += ["torch"]

ALL = [case for front in FRONTS for case in malformed.generate(front)]
CASES = [case for case in ALL if case.key not in malformed.LEGAL]

# The exceptions that fit a defect. PyTorch's own functions raise RuntimeError for most.
FITTING: dict[str, dict[str, tuple[type[Exception], ...]]] = {
    "numpy": {
        "type": (TypeError,),
        "layout": (TypeError, ValueError),
        "shape": (ValueError,),
        "range": (ValueError,),
        "axis": (ValueError,),
        "class": (IndexError,),
    },
    "torch": {
        "type": (TypeError, RuntimeError),
        "layout": (TypeError, RuntimeError),
        "shape": (ValueError, RuntimeError, IndexError),
        "range": (ValueError, RuntimeError),
        "axis": (IndexError,),
        "class": (IndexError,),
    },
}

# What else an argument is called in messages: PyTorch's and NumPy's terms.
TERMS = {
    "dim": "dim|dims|[Dd]imension",
    "input": "input|prob_dist|multinomial distribution",
    "num_samples": "num_samples|n_sample",
    "rng": "rng|SeedSequence",
}


def refusal(call: Callable[..., Any], arguments: dict[str, Any]) -> Exception | None:
    """Return the exception that the call raises, or None if it answers."""
    try:
        call(**arguments)
    except Exception as error:
        return error
    return None


def torchs_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in malformed.OURS_ONLY}


def torchs_refusal(case: Case, arguments: dict[str, Any]) -> Exception | None:
    """Return the exception that torch's function raises for the arguments that it has."""
    if case.torchs is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return refusal(case.torchs, torchs_arguments(arguments))


def bits(value: Any) -> Any:
    """Return what must not change: type, shape and bytes of arrays, the text of the rest."""
    if hasattr(value, "detach"):
        return (value._version, tuple(value.shape), None if value.is_meta else bits(value.detach().numpy()))
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return value.dtype.str, value.shape, value.tobytes()
    return type(value), repr(value)


def traces(value: Any, kind: str) -> list[str]:
    """Return the words of which a message must have one to say what came."""
    array = value if hasattr(value, "dtype") else np.asarray(value)
    types, shape = [type(value).__name__, str(array.dtype)], tuple(array.shape)
    types += [str(value)] if isinstance(value, float | str) and len(str(value)) > 1 else []
    dimensions = [str(shape)] if shape else ["()", "one number", "dimension 0", "no dimensions", "got 0"]
    return {"type": types, "shape": dimensions}.get(kind, types + dimensions)


def label(case: Case) -> str:
    return "-".join(case.key).replace(".", "-", 1)


def parameters(cases: list[Case]) -> list[Any]:
    return [pytest.param(c, id=label(c)) for c in cases]


@pytest.mark.parametrize("case", parameters(CASES))
def test_a_malformed_call_is_refused(case: Case) -> None:
    assert refusal(case.call, case.good()) is None
    arguments = case.bad()
    before = {name: bits(value) for name, value in arguments.items()}
    error = refusal(case.call, arguments)
    assert error is not None, "answered in silence"
    assert {name: bits(value) for name, value in arguments.items()} == before

    torchs = torchs_refusal(case, case.bad())
    assert isinstance(error, FITTING[case.front][case.defect.kind]), repr(error)
    assert not isinstance(error, RecursionError)
    assert not isinstance(error, NotImplementedError) or isinstance(torchs, NotImplementedError)

    message, changed = str(error), arguments[case.argument]
    if isinstance(error, IndexError) and case.argument == "target":
        said = re.fullmatch(r"target(?:\[([\d, ]+)\])? = (-?\d+) is outside \[0, \d+\)", message)
        assert said, f"does not name row and value: {message}"
        assert int(changed[tuple(map(int, re.findall(r"\d+", said[1] or "")))]) == int(said[2])
    assert message
    if torchs is not None and message == str(torchs):
        return  # PyTorch's own words, whatever they leave out
    names = "|".join(filter(None, [TERMS.get(case.argument, case.argument), case.defect.names]))
    assert re.search(rf"(?<!\w)({names})(?!\w)", message), f"does not name {case.argument}: {message}"
    shows = case.defect.shows or "|".join(map(re.escape, traces(changed, case.defect.kind)))
    assert re.search(shows, message), f"does not show {shows}: {message}"


def test_there_are_enough() -> None:
    assert len({case.key for case in ALL}) == len(ALL)
    assert len(CASES) >= 300 * len(FRONTS)


def test_every_public_function_is_here() -> None:
    modules = [lastlayer, lastlayer.information, lastlayer.likelihood]
    modules += [lastlayer.torch] if "torch" in FRONTS else []
    public = {f"{m.__name__}.{n}": getattr(m, n) for m in modules for n in m.__all__}
    here, entered = (
        {id(case.call) for case in ALL},
        {"lastlayer.torch.accumulation", "lastlayer.torch.check_errors"},
    )  # a context: through a lambda; no argument
    missing = {name for name, value in public.items() if inspect.isfunction(value) and id(value) not in here}
    assert missing == entered & set(public)


COMPARED = [case for case in ALL if case.torchs is not None and case.argument not in malformed.OURS_ONLY]


@pytest.mark.skipif("torch" not in FRONTS, reason="needs torch")
def test_what_torch_refuses_is_refused() -> None:
    refused = [case for case in COMPARED if torchs_refusal(case, case.bad()) is not None]
    answered = [case.key for case in refused if refusal(case.call, case.bad()) is None]
    assert len(refused) >= 250
    assert answered == []


@pytest.mark.parametrize("case", parameters([case for case in COMPARED if case.key in malformed.LEGAL]))
def test_what_torch_takes_is_taken(case: Case) -> None:
    import torch

    assert case.torchs is not None
    ours, theirs = (call(**torchs_arguments(case.bad())) for call in (case.call, case.torchs))
    torch.testing.assert_close(ours, theirs, equal_nan=True)


INF, NAN, LN2 = math.inf, math.nan, math.log(2.0)
ODD_ROWS = np.array([[-INF, -INF, -INF], [0, NAN, 1], [0, INF, 1], [0, 0, -INF]])
HALVES = np.array([[0.0, 0.0], [NAN, 0.0]])
NO_ROWS, NO_TARGETS = np.zeros((0, 3)), np.zeros(0, np.int64)
EYE, IGNORED = np.eye(2), np.array([-100, -100])


class Odd(NamedTuple):
    """A legal call, and the result that the documents promise, field by field where there are several."""

    what: str
    function: str
    arguments: dict[str, Any]
    expected: Any


def odd(function: str, **calls: tuple[dict[str, Any], Any]) -> list[Odd]:
    return [Odd(what, function, *call) for what, call in calls.items()]


def losses(function: str, **reductions: Any) -> list[Odd]:
    """Empty batches and ignored rows, for losses of class indices: ``mean`` is that of no rows."""
    rows = {"input": HALVES} if function != "linear_cross_entropy" else {"input": HALVES, "linear_weight": EYE}
    none = {**rows, "input": np.zeros((0, 2)), "target": NO_TARGETS}
    every = {**rows, "target": IGNORED}
    zeros = {"mean": reductions["mean"], "sum": 0.0}
    return [
        *(Odd(f"empty {r}", function, {**none, "reduction": r}, v) for r, v in {**zeros, "none": []}.items()),
        *(Odd(f"ignored {r}", function, {**every, "reduction": r}, v) for r, v in {**zeros, "none": [0, 0]}.items()),
    ]


ODD = [
    *odd("softmax", rows=({"input": ODD_ROWS, "axis": 1}, [[NAN] * 3] * 3 + [[0.5, 0.5, 0.0]])),
    *odd("log_softmax", rows=({"input": ODD_ROWS, "axis": 1}, [[NAN] * 3] * 3 + [[-LN2, -LN2, -INF]])),
    *odd("logsumexp", rows=({"input": ODD_ROWS, "axis": 1}, [-INF, NAN, INF, LN2])),
    *(
        one
        for name in ("softmax", "log_softmax")
        for one in odd(
            name,
            empty=({"input": NO_ROWS, "axis": 1}, NO_ROWS),
            no_classes=({"input": np.zeros((2, 0)), "axis": 1}, np.zeros((2, 0))),
        )
    ),
    *odd(
        "logsumexp",
        empty=({"input": NO_ROWS, "axis": 1}, []),
        no_classes=({"input": np.zeros((2, 0)), "axis": 1}, [-INF, -INF]),
    ),
    *odd("argmax", rows=({"input": ODD_ROWS, "axis": 1}, [0, 1, 1, 0]), empty=({"input": NO_ROWS, "axis": 1}, [])),
    *odd("sigmoid", ends=({"input": np.array([INF, -INF, NAN])}, [1, 0, NAN])),
    *odd("log_sigmoid", ends=({"input": np.array([INF, -INF, NAN])}, [0, -INF, NAN])),
    *odd("logit", ends=({"input": np.array([0.0, 1.0, 2.0, -1.0, NAN])}, [-INF, INF, NAN, NAN, NAN])),
    *losses("nll_loss", mean=NAN),
    *losses("cross_entropy", mean=NAN),
    *losses("linear_cross_entropy", mean=0.0),
    *odd(
        "nll_loss",
        impossible=({"input": np.array([[-INF, 0.0]]), "target": np.array([0])}, INF),
        ignored_nan=({"input": HALVES - 1, "target": np.array([0, -100])}, 1.0),
        no_weight=({"input": np.array([[-INF, -1]] * 2), "target": np.array([0, 1]), "weight": np.array([0.0, 2])}, 1),
    ),
    *odd(
        "cross_entropy",
        rows=({"input": ODD_ROWS, "target": np.array([0, 0, 1, 0]), "reduction": "none"}, [NAN, NAN, NAN, LN2]),
        impossible=({"input": ODD_ROWS[3:], "target": np.array([2])}, INF),
        smoothed=({"input": ODD_ROWS[3:], "target": np.array([0]), "label_smoothing": 0.1}, INF),
        ignored_nan=({"input": HALVES, "target": np.array([0, -100])}, LN2),
        soft_zero=({"input": ODD_ROWS[3:], "target": np.array([[0.5, 0.5, 0.0]])}, LN2),
        soft_empty=({"input": NO_ROWS, "target": NO_ROWS}, NAN),
    ),
    *odd(
        "linear_cross_entropy",
        nan=({"input": HALVES, "linear_weight": EYE, "target": np.array([0, 0]), "reduction": "none"}, [LN2, NAN]),
        ignored_nan=({"input": HALVES, "linear_weight": EYE, "target": np.array([0, -100])}, LN2),
        masked_class=(
            {
                "input": EYE * 0,
                "linear_weight": np.ones((3, 2)),
                "target": np.array([0, 2]),
                "linear_bias": np.array([0.0, 0.0, -INF]),
                "reduction": "none",
            },
            [LN2, INF],
        ),
        masked_row=(
            {
                "input": EYE,
                "linear_weight": EYE,
                "target": np.array([0, 1]),
                "linear_bias": np.array([-INF, -INF]),
                "reduction": "none",
            },
            [NAN, NAN],
        ),
    ),
    *odd(
        "binary_cross_entropy_with_logits",
        sure=({"input": np.array([INF, -INF]), "target": np.array([1.0, 0.0])}, 0.0),
        wrong=({"input": np.array([INF, -INF]), "target": np.array([0.0, 1.0]), "reduction": "none"}, [INF, INF]),
        nan=({"input": np.array([NAN, 0.0]), "target": np.array([1.0, 1.0]), "reduction": "none"}, [NAN, LN2]),
        empty=({"input": NO_ROWS, "target": NO_ROWS}, NAN),
    ),
    *odd(
        "kl_div",
        impossible=({"input": np.array([[-INF, 0.0]]), "target": np.array([[0.0, 1.0]]), "reduction": "sum"}, 0.0),
        excluded=({"input": np.array([[-INF, 0.0]]), "target": np.array([[0.5, 0.5]]), "reduction": "sum"}, INF),
        empty=({"input": NO_ROWS, "target": NO_ROWS, "reduction": "sum"}, 0.0),
        empty_mean=({"input": NO_ROWS, "target": NO_ROWS, "reduction": "batchmean"}, NAN),
    ),
    *odd(
        "categorical",
        one_class=({"input": ODD_ROWS[[3]] - [[INF, 0, 0]]}, ([1], [0], [0], [1], [1], [1], [0])),
        greedy=({"input": ODD_ROWS[[3]], "temperature": 0.0, "top_p": 0.0}, ([0], [-LN2], [0], [1], [0.5], [1], [LN2])),
        padded=({"input": NO_ROWS, "token_ids": NO_ROWS.astype(int), "presence_penalty": 1.0}, ([],) * 7),
        empty=({"input": NO_ROWS}, ([],) * 7),
    ),
    *odd(
        "linear_categorical",
        empty=({"input": np.zeros((0, 2)), "linear_weight": EYE}, ([],) * 7),
        one_class=(
            {"input": EYE[:1], "linear_weight": EYE, "linear_bias": np.array([0.0, -INF])},
            ([0], [0], [0], [1], [1], [1], [1]),
        ),
    ),
    *odd(
        "linear_topk",
        empty=({"input": np.zeros((0, 2)), "linear_weight": EYE, "k": 2}, (*[np.zeros((0, 2))] * 3, [])),
        ties=({"input": EYE[:1] * 0, "linear_weight": EYE, "k": 1}, ([[0]], [[0]], [[-LN2]], [LN2])),
        no_logit=(
            {"input": EYE[:1], "linear_weight": EYE, "k": 2, "linear_bias": np.array([-INF, -INF])},
            ([[-INF, -INF]], [[0, 1]], [[NAN, NAN]], [-INF]),
        ),
    ),
    *odd(
        "speculative_sample",
        empty=(
            {"target_logits": np.zeros((0, 3, 2)), "draft_logits": None, "draft_tokens": np.zeros((0, 2), int)},
            (np.zeros((0, 3)), [], np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 2))),
        ),
        no_draft=(
            {"target_logits": ODD_ROWS[3:] - [[INF, 0, 0]], "draft_logits": None, "draft_tokens": np.zeros(0, int)},
            ([1], 0, [0], [0], []),
        ),
        greedy=(
            {"target_logits": EYE, "draft_logits": None, "draft_tokens": np.array([0]), "temperature": 0.0},
            ([0, 1], 1, [-math.log1p(math.exp(-1))] * 2, [0, 0], [1]),
        ),
        refused=(
            {"target_logits": EYE, "draft_logits": None, "draft_tokens": np.array([1]), "temperature": 0.0},
            ([0, -1], 0, [-math.log1p(math.exp(-1)), 0], [0, 0], [0]),
        ),
    ),
    *odd("multinomial", empty=({"input": NO_ROWS, "num_samples": 2}, np.zeros((0, 2)))),
    *odd("multinomial", one_class=({"input": np.array([0.0, 3.0, 0.0]), "num_samples": 1}, [1])),
    *odd("entropy", rows=({"logits": ODD_ROWS}, [NAN, NAN, NAN, LN2]), empty=({"logits": NO_ROWS}, [])),
    *odd("surprisal", sure=({"probs": [0.0, 1.0]}, [INF, 0]), rows=({"logits": ODD_ROWS[3]}, [LN2, LN2, INF])),
    *odd(
        "perplexity",
        empty=({"input": NO_ROWS, "target": NO_TARGETS}, NAN),
        ignored=({"input": HALVES, "target": IGNORED}, NAN),
        impossible=({"input": ODD_ROWS[3:], "target": [2]}, INF),
    ),
    *odd(
        "information.kl_divergence",
        zero=({"p": [0.0, 1.0], "q": [0.5, 0.5]}, LN2),
        excluded=({"p": [0.5, 0.5], "q": [0.0, 1.0]}, INF),
    ),
]


def find(front: str, function: str) -> Callable[..., Any] | None:
    if front == "torch":
        return getattr(lastlayer.torch, function) if function in lastlayer.torch.__all__ else None
    return operator.attrgetter(function)(lastlayer)


def spoken(front: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments in the dialect of a front end."""
    if front == "numpy":
        return arguments
    import torch

    return {
        "dim" if name == "axis" else name: torch.tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }


@pytest.mark.parametrize(
    ("front", "case"),
    [
        pytest.param(front, case, id=f"{front}-{case.function}-{case.what}")
        for front in FRONTS
        for case in ODD
        if find(front, case.function)
    ],
)
def test_what_is_odd_and_legal(front: str, case: Odd) -> None:
    call = find(front, case.function)
    assert call is not None
    arguments = spoken(front, case.arguments)
    before = {name: bits(value) for name, value in arguments.items()}
    got = call(**arguments)
    assert {name: bits(value) for name, value in arguments.items()} == before
    pairs = zip(got, case.expected, strict=True) if isinstance(case.expected, tuple) else [(got, case.expected)]
    for value, expected in pairs:
        value, expected = np.asarray(value), np.asarray(expected, np.float64)
        assert value.shape == expected.shape
        np.testing.assert_allclose(value, expected, rtol=2 * np.finfo(np.float64).eps, atol=0)


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("function", ["nll_loss", "cross_entropy", "linear_cross_entropy"])
def test_where_every_row_is_ignored_the_gradient_is_zero(front: str, reduction: str, function: str) -> None:
    given = {"input": HALVES, "target": IGNORED, "reduction": reduction}
    if function == "linear_cross_entropy":
        given["linear_weight"] = EYE
    if front == "numpy":
        _, gradient = getattr(lastlayer, f"{function}_value_and_grad")(**given)
        gradients = gradient[:2] if isinstance(gradient, tuple) else [gradient]
    else:
        tensors = spoken(front, given)
        wanted = [tensors[name].requires_grad_() for name in ("input", "linear_weight") if name in tensors]
        getattr(lastlayer.torch, function)(**tensors).backward()
        gradients = [tensor.grad for tensor in wanted]
    for gradient in gradients:
        assert np.array_equal(np.asarray(gradient), EYE * 0)
