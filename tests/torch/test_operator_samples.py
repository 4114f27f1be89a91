"""The mirror: torch's own operator samples, value for value and gradient for gradient, and torch's kinds of error."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as T
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import lastlayer.torch as F

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.opinfo.core import OpInfo, SampleInput

OURS: dict[str, Callable[..., Any]] = {
    "softmax": F.softmax,
    "log_softmax": F.log_softmax,
    "logsumexp": F.logsumexp,
    "sigmoid": F.sigmoid,
    "logit": F.logit,
    "argmax": F.argmax,
    "nn.functional.logsigmoid": F.logsigmoid,
    "nn.functional.softmin": F.softmin,
    "nn.functional.nll_loss": F.nll_loss,
    "nn.functional.cross_entropy": F.cross_entropy,
    "nn.functional.kl_div": F.kl_div,
    "nn.functional.binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
}
OPS = [op for op in op_db if op.name in OURS]
HALVES = (torch.float16, torch.bfloat16)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The samples use deprecated arguments, reduction='mean' of kl_div, and logits where log-probabilities belong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def op_id(op: OpInfo) -> str:
    """Return the sample set's name."""
    return f"{op.name}-{op.variant_test_name}".strip("-")


def test_every_mirrored_name_has_samples() -> None:
    assert {op.name for op in OPS} == set(OURS)


def samples(op: OpInfo, dtype: torch.dtype, requires_grad: bool) -> list[SampleInput]:
    """Return torch's samples; there are none with -inf in them, so none where a documented deviation would show."""
    with quiet():
        found = list(op.sample_inputs("cpu", dtype, requires_grad=requires_grad))
    for sample in found:
        for tensor in (sample.input, *sample.args, *sample.kwargs.values()):
            assert not (isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.isinf().any())
    return found


def call(function: Callable[..., Any], sample: SampleInput) -> Any:
    """Call with the sample's arguments."""
    with quiet():
        return function(sample.input, *sample.args, **sample.kwargs)


def leaves(sample: SampleInput) -> list[Tensor]:
    """Return the arguments that require a gradient."""
    given = (sample.input, *sample.args, *sample.kwargs.values())
    return [t for t in given if isinstance(t, Tensor) and t.requires_grad]


def double(sample: SampleInput) -> SampleInput:
    """Return the sample in float64, for the exact value."""
    return sample.transform(lambda v: v.detach().double() if isinstance(v, Tensor) and v.is_floating_point() else v)


@pytest.mark.parametrize("op", OPS, ids=op_id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_values_are_torchs(op: OpInfo, dtype: torch.dtype) -> None:
    for sample in samples(op, dtype, requires_grad=False):
        ours, theirs = call(OURS[op.name], sample), call(op.op, sample)
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        if dtype in HALVES:
            # Here torch rounds in between, up to all digits. The truth is its float64 result, rounded once.
            theirs = call(op.op, double(sample)).to(theirs.dtype)
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("op", OPS, ids=op_id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_are_torchs(op: OpInfo, dtype: torch.dtype) -> None:
    if not op.supports_autograd:
        pytest.skip("has no gradient")
    generator = torch.Generator().manual_seed(0)
    for sample in samples(op, dtype, requires_grad=True):
        wanted = leaves(sample)
        ours, theirs = call(OURS[op.name], sample), call(op.op, sample)
        upstream = torch.randn(theirs.shape, dtype=theirs.dtype, generator=generator)
        expected = torch.autograd.grad(theirs, wanted, upstream)
        for got, right in zip(torch.autograd.grad(ours, wanted, upstream), expected, strict=True):
            assert got.dtype == right.dtype
            torch.testing.assert_close(got, right, equal_nan=True)


@pytest.mark.parametrize("op", [op for op in OPS if op.supports_gradgrad and op.variant_test_name == ""], ids=op_id)
def test_gradients_are_derivatives_twice(op: OpInfo) -> None:
    if not op.supports_autograd:
        pytest.skip("has no gradient")
    checked = 0
    for sample in samples(op, torch.float64, requires_grad=True):
        wanted = leaves(sample)
        if sample.input.numel() == 0 or sum(t.numel() for t in wanted) > 40 or checked == 12:
            continue  # numerical differentiation of every element: small ones will do

        def function(*tensors: Tensor, sample: SampleInput = sample) -> Tensor:
            given = dict(zip(map(id, leaves(sample)), tensors, strict=True))
            return call(OURS[op.name], sample.transform(lambda v: given.get(id(v), v)))

        if op.name == "logit":
            wanted = [t.detach().clamp(0.1, 0.9).requires_grad_() for t in wanted]  # not on the edges of eps
        assert gradcheck(function, wanted)
        assert gradgradcheck(function, wanted)
        checked += 1
    assert checked > 0


Z, P = torch.linspace(-2, 2, 15).reshape(3, 5), torch.full((3, 5), 0.2)
Y, W = torch.tensor([1, 2, 3]), torch.ones(5)
CLASSES: dict[str, tuple[Any, ...]] = {
    "no dimension": (Z[0, 0], Y[0]),
    "one target for all rows": (Z, Y[0]),
    "too many dimensions": (Z, Y[:, None]),
    "another batch size": (Z, Y[:2]),
    "another batch size, probabilities": (Z, P[:2]),
    "a row of indices": (Z[0], torch.tensor([0, 1, 2])),
    "K dimensions, another size": (torch.zeros(2, 5, 3), torch.zeros(2, 4, dtype=torch.long)),
    "K dimensions, one missing": (torch.zeros(2, 5, 3), torch.zeros(2, dtype=torch.long)),
    "images, another size": (torch.zeros(2, 5, 3, 3), torch.zeros(2, 3, 4, dtype=torch.long)),
    "images, one missing": (torch.zeros(2, 5, 3, 3), torch.zeros(2, 3, dtype=torch.long)),
    "int32 target": (Z, Y.int()),
    "bool target": (Z, Y.bool()),
    "float target": (Z, Y.float()),
    "class out of range": (Z, torch.tensor([1, 5, 2])),
    "negative class": (Z, torch.tensor([1, -1, 2])),
    "no classes": (torch.zeros(2, 0), torch.zeros(2, dtype=torch.long)),
    "short weight": (Z, Y, W[:4]),
    "2-D weight": (Z, Y, W[None]),
    "float64 weight": (Z, Y, W.double()),
    "integer weight": (Z, Y, W.long()),
    "float32 weight of a bfloat16 input": (Z.bfloat16(), Y, W),
    "integer input": (Z.long(), Y),
    "complex input": (Z.to(torch.complex64), Y),
    "list input": ([[1.0, 2.0]], Y),
    "list target": (Z, [1, 2, 3]),
    "numpy target": (Z, Y.numpy()),
    "list weight": (Z, Y, [1.0] * 5),
    "target elsewhere": (Z, Y.to("meta")),
    "weight elsewhere": (Z, Y, W.to("meta")),
    "input elsewhere": (Z.to("meta"), Y),
    "a fractional ignore_index": (Z, Y, None, None, 1.5),
    "no ignore_index": (Z, Y, None, None, None),
    "unknown reduction": (Z, Y, None, None, -100, None, "avg"),
}
PROBABILITIES: dict[str, tuple[Any, ...]] = {
    "integer target of the input's shape": (Z, P.long()),
    "ignore_index with probabilities": (Z, P, None, None, 1),
    "short weight": (Z, P, W[:4]),
    "2-D weight": (Z, P, W[None]),
    "target elsewhere": (Z, P.to("meta")),
    "smoothing above 1": (Z, Y, None, None, -100, None, "mean", 1.1),
    "smoothing above 1, probabilities": (Z, P, None, None, -100, None, "mean", 1.1),
    "smoothing of a wrong type": (Z, P, None, None, -100, None, "mean", "a"),
}
ELEMENTS: dict[str, tuple[Any, ...]] = {
    "another shape": (Z, P[:, :2]),
    "broadcastable, but another shape": (Z, P[:1]),
    "integer target": (Z, P.long()),
    "boolean target": (Z, P.bool()),
    "integer input": (Z.long(), P),
    "broader weight": (Z, P, torch.ones(2, 3, 5)),
    "short weight": (Z, P, W[:4]),
    "complex weight": (Z, P, W.to(torch.complex64)),
    "boolean pos_weight": (Z, P, None, None, None, "mean", W.bool()),
    "broader pos_weight": (Z, P, None, None, None, "mean", torch.ones(2, 3, 5)),
    "target elsewhere": (Z, P.to("meta")),
    "batchmean": (Z, P, None, None, None, "batchmean"),
}
DIVERGENCES: dict[str, tuple[Any, ...]] = {
    "shapes that do not broadcast": (Z, P[:2], None, None, "sum"),
    "integer target": (Z, P.long(), None, None, "sum"),
    "complex input": (Z.to(torch.complex64), P, None, None, "sum"),
    "unknown reduction": (Z, P, None, None, "avg"),
    "target elsewhere": (Z, P.to("meta"), None, None, "sum"),
    "list target": (Z, [0.5], None, None, "sum"),
}
ROWS: dict[str, tuple[Any, ...]] = {
    "no such dimension": (Z, 2),
    "a fractional dimension": (Z, 1.0),
    "a string for a dimension": (Z, "a"),
}
MALFORMED = [
    pytest.param(ours, theirs, arguments, id=f"{ours.__name__}: {what}")
    for ours, theirs, calls in [
        (F.nll_loss, T.nll_loss, CLASSES),
        (F.cross_entropy, T.cross_entropy, {**CLASSES, **{f"{k}, probabilities": v for k, v in PROBABILITIES.items()}}),
        (F.binary_cross_entropy_with_logits, T.binary_cross_entropy_with_logits, ELEMENTS),
        (F.kl_div, T.kl_div, DIVERGENCES),
        (F.softmax, T.softmax, {**ROWS, "integers": (Z.long(), 1), "complex": (Z.to(torch.complex64), 1)}),
        (F.log_softmax, T.log_softmax, {**ROWS, "integers": (Z.long(), 1)}),
        (F.logsumexp, torch.logsumexp, {**ROWS, "None": (Z, None), "twice": (Z, (0, -2)), "list": ([1.0], 0)}),
    ]
    for what, arguments in calls.items()
]


@pytest.mark.parametrize(("ours", "theirs", "arguments"), MALFORMED)
def test_what_torch_refuses_is_refused_with_its_class(
    ours: Callable[..., Any], theirs: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(Exception, match=r"\w+") as refused:
        theirs(*arguments)
    with pytest.raises(refused.type, match=r"\w+"):
        ours(*arguments)
