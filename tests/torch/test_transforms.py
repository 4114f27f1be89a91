"""torch.func, forward-mode AD, torch.compile, autocast, subclasses and fake tensors: the composite path is torch's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import laws
import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as T
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor

import lastlayer.torch as F

# torch's forward-mode AD itself imports what is deprecated; so does its compiler.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]

HALVES = {torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16}
N, V = 6, 7
Y = torch.tensor([0, 6, -100, 3, 3, 1])
GENERATOR = torch.Generator().manual_seed(7)
Z = torch.randn(N, V, dtype=torch.float64, generator=GENERATOR)
P = torch.rand(N, V, dtype=torch.float64, generator=GENERATOR)
W = torch.rand(V, dtype=torch.float64, generator=GENERATOR) + 0.1


def losses(m: Any) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return functions of the logits, by m's functions: ours or torch's."""
    logsumexp = m.logsumexp if m is F else torch.logsumexp
    return {
        "softmax": lambda z: m.softmax(z, -1),
        "log_softmax": lambda z: m.log_softmax(z, -1),
        "logsumexp": lambda z: logsumexp(z, -1),
        "cross_entropy": lambda z: m.cross_entropy(z, Y),
        "cross_entropy none": lambda z: m.cross_entropy(z, Y, reduction="none"),
        "cross_entropy weighted": lambda z: m.cross_entropy(z, Y, W.to(z.dtype), label_smoothing=0.1),
        "cross_entropy probabilities": lambda z: m.cross_entropy(z, P.to(z.dtype), W.to(z.dtype), label_smoothing=0.1),
        "nll_loss": lambda z: m.nll_loss(z - 9, Y, W.to(z.dtype)),
        "binary": lambda z: m.binary_cross_entropy_with_logits(z, P.to(z.dtype), pos_weight=W.to(z.dtype)),
        "kl_div": lambda z: m.kl_div(z, P.to(z.dtype), reduction="batchmean"),
        "logit": lambda z: m.logit(torch.sigmoid(z)) if m is F else torch.logit(torch.sigmoid(z)),
    }


NAMES = list(losses(F))


def pair(name: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return our function and torch's."""
    return losses(F)[name], losses(T)[name]


@pytest.mark.parametrize("name", NAMES)
def test_grad(name: str) -> None:
    ours, theirs = pair(name)
    torch.testing.assert_close(
        torch.func.grad(lambda z: ours(z).sin().sum())(Z), torch.func.grad(lambda z: theirs(z).sin().sum())(Z)
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("jacobian", [torch.func.jacrev, torch.func.jacfwd])
def test_jacobians(name: str, jacobian: Callable[..., Any]) -> None:
    ours, theirs = pair(name)
    torch.testing.assert_close(jacobian(ours)(Z), jacobian(theirs)(Z))


@pytest.mark.parametrize("name", NAMES)
def test_hessian(name: str) -> None:
    ours, theirs = pair(name)
    got = torch.func.hessian(lambda z: ours(z).sin().sum())(Z)
    torch.testing.assert_close(got, torch.func.hessian(lambda z: theirs(z).sin().sum())(Z))


@pytest.mark.parametrize("name", NAMES)
def test_jvp_and_forward_mode(name: str) -> None:
    ours, theirs = pair(name)
    tangent = torch.linspace(-1, 1, N * V, dtype=torch.float64).reshape(N, V)
    value, expected = torch.func.jvp(theirs, (Z,), (tangent,))
    torch.testing.assert_close(torch.func.jvp(ours, (Z,), (tangent,)), (value, expected))
    with forward_ad.dual_level():
        dual = ours(forward_ad.make_dual(Z, tangent))
        torch.testing.assert_close(tuple(forward_ad.unpack_dual(dual)), (value, expected))
        assert forward_ad.unpack_dual(ours(Z)).tangent is None  # a tensor without a tangent takes the fused path


def test_vmap_over_rows_columns_and_targets() -> None:
    row, y = Z[:2], torch.tensor([2, 5])
    for ours, theirs in ((F.cross_entropy, T.cross_entropy), (F.nll_loss, T.nll_loss)):
        torch.testing.assert_close(torch.vmap(ours)(row, y), torch.vmap(theirs)(row, y))
        torch.testing.assert_close(torch.vmap(ours, (None, 0))(row[0], y), torch.vmap(theirs, (None, 0))(row[0], y))
        batch, targets = row.expand(3, 2, V), y.expand(3, 2)
        torch.testing.assert_close(torch.vmap(ours)(batch, targets), torch.vmap(theirs)(batch, targets))
    for ours, theirs in ((F.softmax, T.softmax), (F.log_softmax, T.log_softmax), (F.logsumexp, torch.logsumexp)):
        got, expected = (torch.vmap(lambda z, f=f: f(z, 0), 1, -1)(Z) for f in (ours, theirs))
        torch.testing.assert_close(got, expected)
    got = torch.vmap(torch.func.grad(F.cross_entropy))(row, y)
    torch.testing.assert_close(got, torch.vmap(torch.func.grad(T.cross_entropy))(row, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_both_paths_agree(name: str, dtype: torch.dtype) -> None:
    ours = losses(F)[name]
    z = Z.to(dtype)
    fused, composite = ours(z), torch.vmap(ours)(z[None])[0]
    assert composite.dtype == fused.dtype
    torch.testing.assert_close(composite, fused)
    x = z.clone().requires_grad_()
    expected = torch.autograd.grad(ours(x).float().sin().sum(), x)[0]
    got = torch.func.grad(lambda z: ours(z).float().sin().sum())(z)
    gradients_agree(name, got, expected)


def gradients_agree(name: str, a: Tensor, b: Tensor) -> None:
    """Assert that gradients of sin(result) are equal, or both as good as torch's where a 16-bit result is saved."""
    assert a.dtype == b.dtype
    if a.dtype not in HALVES or name not in ("softmax", "log_softmax"):
        torch.testing.assert_close(a, b)
        return
    z = Z.to(a.dtype)
    theirs, exact = (torch.func.grad(lambda z: losses(T)[name](z).sin().sum())(z) for z in (z, z.double()))
    for gradient in (a, b):
        laws.assert_within(gradient, exact, theirs, HALVES[a.dtype], name, terms=V)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compile_without_graph_breaks(name: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    ours = losses(F)[name]
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    results, gradients = [], []
    for function in (compiled, ours):
        x = Z.to(dtype).requires_grad_()
        result = function(x)
        results.append(result)
        gradients.append(torch.autograd.grad(result.float().sin().sum(), x)[0])
    assert results[0].dtype == results[1].dtype
    torch.testing.assert_close(*results)
    gradients_agree(name, *gradients)


def test_compile_with_dynamic_shapes() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(F.cross_entropy, fullgraph=True, backend="aot_eager", dynamic=True)
    for n, v in ((3, 5), (4, 9), (7, 2)):
        z, y = torch.randn(n, v, requires_grad=True), torch.randint(v, (n,))
        y[0] = -100
        loss, expected = compiled(z, y), T.cross_entropy(z, y)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, z), torch.autograd.grad(expected, z))


def test_compile_with_settings_that_change() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(F.cross_entropy, fullgraph=True, backend="aot_eager")
    for ignored, smoothing in ((-100, 0.0), (1, 0.1), (2, 0.2), (3, 0.3)):  # constants first, then symbols
        settings = {"ignore_index": ignored, "label_smoothing": smoothing, "validate": False}
        torch.testing.assert_close(compiled(Z, Y.clamp(0), **settings), F.cross_entropy(Z, Y.clamp(0), **settings))


def deleted(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return loss and gradient of the rows that are not ignored, 0 elsewhere."""
    x = z[y != -100].detach().requires_grad_()
    loss = F.cross_entropy(x, y[y != -100])
    dz = torch.zeros_like(z)
    dz[y != -100] = torch.autograd.grad(loss, x)[0]
    return loss, dz


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a C++ compiler"
)
def test_inductor_keeps_digits_and_ignores_rows() -> None:
    """One compilation; Liger #1338: a compiled loss of 61.73 instead of 21.40 with any ignored row."""
    torch._dynamo.reset()
    compiled = torch.compile(F.cross_entropy, fullgraph=True, backend="inductor")
    z, y = torch.randn(5, 40, generator=GENERATOR) * 8, torch.tensor([0, -100, 39, -100, 7])
    z[1], z[3, 0] = torch.nan, -torch.inf
    z[4, 7] = z[4].max() + 40  # a confident row: nothing may be reassociated
    z[0], z[2] = z[4].clone(), z[4].clone()
    z.requires_grad_()
    loss = compiled(z, torch.where(y == -100, y, 7))
    expected, dz = deleted(z, torch.where(y == -100, y, 7))
    assert 0 < expected < torch.finfo(torch.float32).eps
    rtol = 8 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], dz, rtol=rtol, atol=0)


def test_ignored_rows_under_transforms_are_deleted() -> None:
    torch._dynamo.reset()
    z, y = Z.clone(), Y.clone()
    z[2] = torch.nan
    expected, dz = deleted(z, y)
    compiled = torch.compile(F.cross_entropy, fullgraph=True, backend="aot_eager")
    for function in (F.cross_entropy, compiled):
        x = z.clone().requires_grad_()
        loss = function(x, y)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, x)[0], dz)
    torch.testing.assert_close(torch.func.grad(F.cross_entropy)(z, y), dz)
    each = torch.vmap(torch.func.grad(lambda z, y: F.cross_entropy(z, y, reduction="sum")))(z, y)
    torch.testing.assert_close(each / (y != -100).sum(), dz)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "logit"])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_gives_torchs_types(name: str, low: torch.dtype, compiled: bool) -> None:
    ours, theirs = pair(name)
    if compiled:
        torch._dynamo.reset()
        ours = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for dtype in (low, torch.float32):
        z = Z.to(dtype)
        with torch.autocast("cpu", dtype=low):
            got, expected = ours(z), theirs(z)
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, theirs(z.double()).to(expected.dtype), rtol=0.02, atol=0.02)


def test_autocast_accepts_weights_of_another_type() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for z, w in ((Z.bfloat16(), W.float()), (Z.float(), W.bfloat16())):
            assert F.cross_entropy(z, Y, w).dtype == T.cross_entropy(z, Y, w).dtype == torch.float32


class Tagged(Tensor):
    """A subclass, as users write them: results stay in it."""


@pytest.mark.parametrize("name", NAMES)
def test_subclasses_stay_subclasses(name: str) -> None:
    ours, theirs = pair(name)
    got = ours(Z.as_subclass(Tagged))
    assert type(got) is Tagged
    torch.testing.assert_close(got.as_subclass(Tensor), theirs(Z))


@pytest.mark.parametrize("name", NAMES)
def test_wrapper_subclasses_see_torchs_operations(name: str) -> None:
    ours, theirs = pair(name)
    both = ours(TwoTensor(Z, 2 * Z))  # it has no memory of its own: each operation runs on both of its tensors
    torch.testing.assert_close(both.a, theirs(Z))
    torch.testing.assert_close(both.b, theirs(2 * Z))


@pytest.mark.parametrize("name", NAMES)
def test_fake_tensors_have_shapes_only(name: str) -> None:
    ours, theirs = pair(name)
    expected = theirs(Z)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        got = ours(mode.from_tensor(Z))
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)


def test_meta_tensors() -> None:
    z, y = Z.to("meta"), Y.to("meta")
    for got in (F.softmax(z, 1), F.log_softmax(z, 1)):
        assert got.is_meta
        assert got.shape == Z.shape
    assert F.cross_entropy(z, y).shape == ()
    assert F.cross_entropy(z, y, reduction="none").shape == (N,)
    assert F.logsumexp(z, 0).shape == (V,)
    assert F.binary_cross_entropy_with_logits(z, z, pos_weight=torch.tensor(2.0)).shape == ()  # one number, on the CPU


def test_make_fx_sees_the_operations() -> None:
    graph = make_fx(lambda z: F.cross_entropy(z, Y))(Z)
    torch.testing.assert_close(graph(Z + 1), T.cross_entropy(Z + 1, Y))
    torch.testing.assert_close(graph(2 * Z), T.cross_entropy(2 * Z, Y))


def test_export_with_dynamic_batches() -> None:
    class Model(torch.nn.Module):
        def forward(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return F.cross_entropy(z, y, label_smoothing=0.1), F.nll_loss(F.log_softmax(z, 1), y)

    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Model(), (Z, Y), dynamic_shapes=({0: batch}, {0: batch}))
    for z, y in ((Z, Y), (Z[:4], Y[:4])):
        torch.testing.assert_close(program.module()(z, y), Model()(z, y))
