"""The Triton kernels of draws, in Triton's interpreter: the draws of the specification, and of the CPU's kernels.

Sums of blocks are compared with float64, classes and kept sets one by one. What only these kernels promise is here
too: the same bits at any alignment, and nothing read on the host. That they compile for a GPU is the last test.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import laws
import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("these tests run in the interpreter", allow_module_level=True)

from draw_laws import LAST  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from lastlayer import _backends, _draws  # noqa: E402
from lastlayer._backends import reference  # noqa: E402
from lastlayer._backends.triton import blocks, candidates, draws, inverse  # noqa: E402
from lastlayer._draws import (  # noqa: E402
    BLOCK,
    FINE,
    HAS_INFINITY,
    HAS_NAN,
    HAS_NOTHING,
    ORDERS,
    STEPS,
    Drawn,
    Edits,
    Rules,
)  # fmt: skip

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
CLASSES = [1, 2, 31, 1023, 1024, 1025, 5000]
INF, NAN = math.inf, math.nan
tl = triton.language


@pytest.fixture(autouse=True)
def _as_on_a_device() -> Iterator[None]:
    """Compute without NumPy's warnings of infinities, which a device does not know."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        yield


def statistics_type(z: Any) -> Any:
    """Return the NumPy type of statistics."""
    return np.float64 if z.dtype == torch.float64 else np.float32


def rules_of(rows: int, **numbers: Any) -> Rules:
    """Return rules of one number for all rows, or one per row."""
    numbers = {"temperature": 1.0, **numbers}
    return Rules(
        *(
            np.broadcast_to(np.asarray(numbers[name], np.float64), rows).copy() if name in numbers else None
            for name in Rules._fields
        )
    )


def ask(backend: Any, z: Any, uniforms: Any, order: Any = STEPS, edits: Any = None, replacement: Any = True,
        **numbers: Any) -> Drawn:  # fmt: skip
    """Draw with rules of one number for all rows, or one per row."""
    uniforms = np.asarray(uniforms, np.float64)
    return backend.draw(z, uniforms, rules_of(len(z), **numbers), ORDERS.get(order, order), edits, replacement)


def assert_same(found: Drawn, expected: Drawn, z: Any, columns: Any = slice(None)) -> None:
    """Classes, ranks and counts are the same; numbers are within the roundings of their type."""
    for name, a, b in zip(Drawn._fields, found, expected, strict=True):
        a, b = (each[:, columns] if each.dim() == 2 else each[:, None] for each in (a, b))
        if a.dtype == torch.int64:
            assert torch.equal(a, b), name
        else:
            laws.assert_within(a, b, b, statistics_type(z), name, z.shape[1], size=1.0)


# Masses


@triton.jit
def power_kernel(z_ptr, out_ptr, SIZE: tl.constexpr):
    """Write the powers of a tile of exponents <= 0."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    zero, one = tl.full((), 0.0, tl.float32), tl.full((), 1.0, tl.float64)
    tl.store(out_ptr + at, blocks.powers(tl.load(z_ptr + at), zero, one))


def test_a_million_powers(rng: np.random.Generator) -> None:
    size, tiles = 1 << 16, 16
    exponents = -np.concatenate([rng.random(size) * 0.5, rng.random(size * (tiles - 1)) * 55.5]).astype(np.float32)
    z, out = torch.from_numpy(exponents), torch.full((size * tiles,), NAN, dtype=torch.float64)
    power_kernel[(tiles,)](z, out, SIZE=size)
    exact = np.exp2(exponents.astype(np.float64))
    assert (np.abs(out.numpy() / exact - 1) <= blocks.ERROR).all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_masses_are_those_of_float64(dtype: Any, classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    z = (torch.randn(5, classes, generator=generator) * torch.tensor([4.0, 4, 0.01, 20, 1])[:, None]).to(dtype)
    t = torch.tensor([1.0, 0.3, 3.0, 1.0, 1e-3], dtype=torch.float64)
    top, mass, plain, some = blocks.sum_blocks(z, t, plain=True)
    exact_top, exact = _draws.masses(z, t)
    assert torch.equal(top, exact_top)
    assert torch.equal(some.sum(-1), torch.full((5,), float(classes), dtype=torch.float64))
    _, exact_plain = _draws.masses(z, torch.ones_like(t))
    if dtype == torch.float64:
        laws.assert_within(mass, exact, exact, np.float64, terms=BLOCK)
    else:
        assert (((mass - exact) / exact).abs() <= blocks.ERROR).all()
    laws.assert_within(plain, exact_plain, exact_plain, statistics_type(z), terms=BLOCK)
    same = blocks.masses(z, t.numpy())
    assert torch.equal(same[0], top)
    assert torch.equal(same[1], mass)


def test_an_offset_common_to_all_logits_costs_no_digits() -> None:
    """z - max of 16-bit logits does not always fit float32: 1 and its neighbours' 2^-24."""
    z = torch.cat([torch.ones(1), torch.full((1023,), 2.0**-20 * 1.5)])[None].to(torch.float16) * 4
    for t in (1.0, 0.5, 0.25):
        temperature = torch.tensor([t], dtype=torch.float64)
        exact = _draws.masses(z, temperature)[1]
        assert (((blocks.masses(z, temperature)[1] - exact) / exact).abs() <= blocks.ERROR).all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_masses_have_the_same_bits_at_any_address_and_stride(dtype: Any) -> None:
    z = (torch.randn(2, 2075, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    t = torch.tensor([0.7, 1.0], dtype=torch.float64)
    expected = blocks.sum_blocks(z, t, plain=True)
    apart = torch.full((2, 4150), NAN).to(dtype)
    apart[:, ::2] = z
    layouts = [apart[:, ::2], z.T.contiguous().T]
    for offset in range(1, 9):
        room = torch.full((2, 2075 + offset), NAN).to(dtype)
        room[:, offset:] = z
        layouts.append(room[:, offset:])
    for layout in layouts:
        assert torch.equal(blocks.sum_blocks(layout, t, plain=True), expected)


def test_several_blocks_per_program_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    z, t = torch.randn(2, 6 * BLOCK + 3), torch.tensor([1.0, 0.5], dtype=torch.float64)
    expected = blocks.sum_blocks(z, t, plain=True)
    monkeypatch.setattr(blocks, "FEW", 1)
    assert blocks.build(z.dtype, 14, True, True)["STEPS"] == blocks.EACH
    assert torch.equal(blocks.sum_blocks(z, t, plain=True), expected)


# Draws among all classes


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_draws_are_those_of_the_other_backends(dtype: Any, classes: int, rng: np.random.Generator) -> None:
    z = torch.from_numpy(rng.standard_normal((4, classes)) * 4).to(dtype)
    uniforms, t = rng.random((4, 5)), np.array([0, 0.3, 1.0, 3.0])
    found = ask(draws, z, uniforms, temperature=t)
    assert_same(found, ask(reference, z, uniforms, temperature=t), z)
    if _backends.cpu is not None:
        assert torch.equal(found.index, ask(_backends.cpu, z, uniforms, temperature=t).index)
    one = ask(draws, z[3:], uniforms[3:, 3:4], temperature=t[3:])
    assert torch.equal(one.index, found.index[3:, 3:4])
    assert torch.equal(one.rank, found.rank[3:, 3:4])


def test_more_draws_than_a_program_counts_for(rng: np.random.Generator) -> None:
    z, uniforms = torch.from_numpy(rng.standard_normal((2, 1500))).float(), rng.random((2, inverse.TOGETHER + 3))
    assert_same(ask(draws, z, uniforms), ask(reference, z, uniforms), z)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("margin", [20, 40, 60])
def test_confident_rows_keep_their_digits(dtype: Any, margin: int, rng: np.random.Generator) -> None:
    z = torch.from_numpy(rng.standard_normal((2, 1100))).to(dtype)
    z[0, 11], z[1, 1060] = margin, margin
    found = ask(draws, z, np.full((2, 1), 0.5), temperature=np.array([1.0, 0.8]))
    wide = z.double().numpy()
    for i, t in enumerate((1.0, 0.8)):
        y = int(found.index[i, 0])
        assert wide[i, y] == margin
        others = np.delete(wide[i], y) - margin
        for logprob, s in ((found.logprob, 1.0), (found.sampled_logprob, t)):
            exact = np.array([-np.log1p(np.exp(others / s).sum())])
            laws.assert_within(logprob[i], exact, exact, statistics_type(z), terms=1100)


@pytest.mark.parametrize("classes", [1, 37, 1024, 1030, 2500])
@pytest.mark.parametrize("numbers", [{}, {"temperature": 0.8}, {"top_p": 0.95}], ids=str)
def test_both_ends_of_the_uniforms_stay_inside(classes: int, numbers: Any, rng: np.random.Generator) -> None:
    z = torch.from_numpy(np.log(rng.random((2, classes)))).float()
    first, last = min(3, classes - 1), max(0, classes - 6)
    z[:, :first], z[:, last + 1 :] = -INF, -INF
    z[:, [first, last]] = 0.0
    found = ask(draws, z, [[0.0, LAST]] * 2, **numbers)
    assert found.index.tolist() == [[first, last]] * 2


def test_classes_without_a_mass_are_never_drawn(rng: np.random.Generator) -> None:
    """Masked, or so far below the largest that their mass is 0 in float64, in blocks of nothing else too."""
    z = torch.from_numpy(np.where(rng.random((1, 4200)) < 0.7, -INF, rng.uniform(-2000, 0, (1, 4200)))).float()
    z[0, 1024:2048], z[0, 2048:3072] = -INF, -3000.0
    z[0, 5] = z[0, 4100] = 0.0
    uniforms = np.concatenate([[[0.0, LAST]], rng.random((1, 60))], 1)
    for t in (1.0, 20.0):
        weight = torch.exp(z.double() / t)
        assert (weight[0, ask(draws, z, uniforms, temperature=t).index[0]] > 0).all()


def test_the_least_likely_class_is_drawn_at_0() -> None:
    """Far below what the sums can show, but a class all the same."""
    for dtype, gap in ((torch.float32, 700.0), (torch.float64, 740.0), (torch.bfloat16, 80.0)):
        z = torch.tensor([[-gap, 0.0, -1.0]]).to(dtype)
        found = ask(draws, z, [[0.0]])
        assert found.index.tolist() == [[0]]
        assert_same(found, ask(reference, z, [[0.0]]), z)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 1e300])
def test_temperatures_at_the_ends_of_the_type(temperature: float) -> None:
    z = torch.tensor([[-60000.0, 0.0, -INF, 60000, 59000]])
    uniforms = np.array([[0.0, 0.24, 0.26, 0.49, 0.51, 0.74, 0.76, LAST]])
    flat = [[0, 0, 1, 1, 3, 3, 4, 4]]
    for kind in (torch.float16, torch.float32, torch.float64):
        found = ask(draws, z.to(kind), uniforms, temperature=temperature).index.tolist()
        assert found == (flat if temperature > 1 else [[3] * 8])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("numbers", [{}, {"top_k": 2, "top_p": 0.9}, {"temperature": 0.0}], ids=str)
def test_rows_without_a_distribution_say_why(dtype: Any, numbers: Any, rng: np.random.Generator) -> None:
    z = torch.from_numpy(rng.standard_normal((8, 1030))).to(dtype)
    z[1, -1], z[2, 0], z[3], z[5, 500], z[6] = NAN, INF, -INF, NAN, INF
    z[5, 0], z[6, 3] = -INF, NAN
    found = ask(draws, z, rng.random((8, 2)), **numbers)
    assert found.status.tolist() == [FINE, HAS_NAN, HAS_INFINITY, HAS_NOTHING, FINE, HAS_NAN, HAS_NAN, FINE]


NUMBERS = [{}, {"top_k": 50, "top_p": 0.9, "min_p": 0.02}, {"top_p": 0.8}]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
def test_a_row_does_not_know_its_neighbours_nor_its_strides(
    dtype: Any, numbers: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, from memory that is new or full of NaN."""
    z = torch.from_numpy(rng.standard_normal((4, 1031)) * 3).to(dtype)
    uniforms, t = rng.random((4, 2)), rng.uniform(0.5, 2, 4)
    whole = ask(draws, z, uniforms, temperature=t, **numbers)
    apart = torch.zeros((8, 2062), dtype=dtype)
    apart[::2, ::2] = z
    new = torch.Tensor.new_empty

    def full(self: Any, *given: Any, **named: Any) -> Any:
        made = new(self, *given, **named)
        return made.fill_(NAN if made.dtype.is_floating_point else -(1 << 62))

    monkeypatch.setattr(torch.Tensor, "new_empty", full)
    for layout in (z, z.T.contiguous().T, apart[::2, ::2]):
        for a, b in zip(whole, ask(draws, layout, uniforms, temperature=t, **numbers), strict=True):
            assert torch.equal(a, b)
    for rows in ([2], [3, 0]):
        found = ask(draws, z[rows], uniforms[rows], temperature=t[rows], **numbers)
        for a, b in zip(whole, found, strict=True):
            assert torch.equal(a[rows], b)


def test_offsets_past_two_to_the_31_elements() -> None:
    room = torch.empty(2**31 + 4096, dtype=torch.float16)  # of which few pages are touched
    z = room.as_strided((2, 40), (2**31, 1), 7)
    z[0], z[1] = 0.0, 0.0
    z[0, 5], z[1, 30] = 60.0, 60.0
    for numbers in ({}, {"top_k": 3}):
        assert ask(draws, z, [[0.5]] * 2, **numbers).index.tolist() == [[5], [30]]
    assert draws.topk(z, 2)[1].tolist() == [[5, 0], [30, 0]]


# Draws in two steps, and the largest logits


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 1025, 3000])
def test_block_and_class_make_the_draw(dtype: Any, classes: int, rng: np.random.Generator) -> None:
    z = torch.from_numpy(rng.standard_normal((3, classes)) * 3).to(dtype)
    z[2, :-1] = -INF
    t, uniforms = np.array([1.0, 0.3, 0.5]), rng.random((3, 4))
    top, mass = draws.masses(z, t)
    block, share = draws.choose(top, mass, t, uniforms)
    expected = ask(draws, z, uniforms, temperature=t).index
    for i, s in np.ndindex(3, 4):
        first = int(block[i, s]) * BLOCK
        found = draws.inside(z[i : i + 1, first : first + BLOCK], t[i : i + 1], share[i, s : s + 1])
        assert first + int(found[0]) == int(expected[i, s])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("k", [1, 17, 100])
def test_topk_is_a_stable_sort(dtype: Any, k: int) -> None:
    z = (torch.randn(6, 5000, generator=torch.Generator().manual_seed(k)) * 2).round().to(dtype)
    z[3], z[4, 5:], z[5, 1::2] = -INF, -INF, -0.0
    value, index = draws.topk(z, k)
    expected, order = reference.topk(z, k)
    assert torch.equal(index, order)
    assert torch.equal(value, expected.to(value.dtype))


# Truncation

FILTERS: list[dict[str, Any]] = [
    {"top_k": 5},
    {"top_p": 0.9},
    {"min_p": 0.02},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.02, "temperature": 0.7},
    {"top_p": 0.5, "min_p": 0.1, "temperature": 2.5},
    {"top_k": 1400, "top_p": 0.99},
    {"top_k": 2000, "min_p": 0.01},
    {"top_k": [3, INF, 7], "top_p": [1.0, 1.0, 0.5], "temperature": [0.0, 0.8, 1.5]},
]


@pytest.mark.parametrize("order", [*ORDERS, ("min_p", "top_p", "temperature", "top_k")], ids=str)
@pytest.mark.parametrize("numbers", FILTERS, ids=str)
def test_kept_sets_are_those_of_the_reference(order: Any, numbers: Any, rng: np.random.Generator) -> None:
    """A row spread out, one with ties, one that is flat: with more classes than are looked at, and fewer."""
    if not isinstance(order, str):
        order = (*order, *(name for name in STEPS if name not in order))
    for classes in (40, 1500):
        z = rng.standard_normal((3, classes)) * 2
        z[1], z[2] = np.round(z[1]), z[2] * 0.01
        z[0, ::3] = -INF
        z, uniforms = torch.from_numpy(z).float(), rng.random((3, 1))
        assert_same(ask(draws, z, uniforms, order, **numbers), ask(reference, z, uniforms, order, **numbers), z)


@pytest.mark.parametrize(
    "numbers", [{"top_k": 3}, {"top_k": 0.5}, {"top_p": 0.5}, {"top_p": 0.75}, {"top_p": 0.0}, {"min_p": 1.0}]
)
def test_ties_and_plateaus(numbers: Any) -> None:
    z = torch.tensor([[0.0, 1, 1, 1, 1, 0, 0, 0], [2.0] * 8, [-INF, 3, -INF, 3, 3, 3, -INF, -INF]])
    uniforms = np.tile((np.arange(8) + 0.5) / 8, (3, 1))
    found, expected = ask(draws, z, uniforms, **numbers), ask(reference, z, uniforms, **numbers)
    assert_same(found, expected, z)


class Unread(TorchDispatchMode):
    """Operations on tensors, none of which may ask for a value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


class Unlaunched:
    """A kernel that does nothing: the interpreter would read values."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *given, **named: None


@pytest.mark.parametrize(
    ("numbers", "looks"),
    [({}, False), ({"temperature": 0.0}, False), ({"top_k": 50, "top_p": 0.9}, False), ({"top_p": 0.9}, True)],
    ids=str,
)
def test_nothing_is_read_on_the_host(numbers: Any, looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """But, where truncation may keep more than is looked at, once."""
    for module, name in ((blocks, "masses"), (inverse, "draw"), (inverse, "rank"), (candidates, "shorten"),
                         (candidates, "pick")):  # fmt: skip
        monkeypatch.setattr(module, f"{name}_kernel", Unlaunched())
    seen = []
    copy = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: seen.append(self) or copy(self))
    monkeypatch.setattr(draws, "specified", lambda z, *given: ask(reference, z, given[0]))
    z = torch.zeros(3, 3000)
    with Unread():
        ask(draws, z, np.full((3, 1), 0.5), **numbers)
    assert len(seen) == looks


def test_rows_are_left_to_the_specification_only_in_need(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(3, 1500, generator=torch.Generator().manual_seed(0)) * 4
    z[1] = 0.01 * z[1]
    left = []
    specified = draws.specified
    monkeypatch.setattr(draws, "specified", lambda z, *given: left.append(z) or specified(z, *given))
    ask(draws, z, np.full((3, 1), 0.5), top_p=0.95)
    assert len(left) == 1
    assert torch.equal(left[0], z[1:2])


# What the specification does

OTHERS = [{"typical_p": 0.8}, {"top_n_sigma": 1.0}, {"epsilon_cutoff": 0.01}, {"eta_cutoff": 0.01}]


@pytest.mark.parametrize("numbers", OTHERS, ids=str)
def test_other_filters_are_the_specification(numbers: Any, rng: np.random.Generator, monkeypatch: Any) -> None:
    monkeypatch.setattr(draws, "CHUNK_BYTES", 1)  # row by row
    z, uniforms = torch.from_numpy(rng.standard_normal((3, 50))).float(), rng.random((3, 4))
    for replacement in (True, False):
        found = ask(draws, z, uniforms, replacement=replacement, temperature=[1.0, 0.5, 2.0], **numbers)
        expected = ask(reference, z, uniforms, replacement=replacement, temperature=[1.0, 0.5, 2.0], **numbers)
        assert_same(found, expected, z)
    rules = rules_of(3, temperature=[1.0, 0.5, 2.0], **numbers)
    assert torch.equal(draws.tempered(z, rules, STEPS), reference.tempered(z, rules, STEPS))


def test_edits_and_weights_are_the_specification(rng: np.random.Generator, monkeypatch: Any) -> None:
    monkeypatch.setattr(draws, "CHUNK_BYTES", 1)
    z, uniforms = torch.from_numpy(rng.standard_normal((3, 50))).float(), rng.random((3, 4))
    edits = Edits(np.array([0, 2, 2, 3]), np.array([4, 7, 49]), np.array([-INF, 6.0, 5.0]))
    found, expected = (ask(backend, z, uniforms, edits=edits) for backend in (draws, reference))
    assert_same(found, expected, z)
    for replacement in (True, False):
        index, status = draws.multinomial(z.exp(), uniforms, replacement)
        assert torch.equal(index, reference.multinomial(z.exp(), uniforms, replacement)[0])
        assert status.tolist() == [FINE] * 3


@pytest.mark.parametrize("numbers", [{}, {"top_k": 3}], ids=str)
def test_no_rows(numbers: Any) -> None:
    found = ask(draws, torch.zeros(0, 5), np.zeros((0, 3)), **numbers)
    assert [tuple(each.shape) for each in found] == [(0, 3)] * 4 + [(0,)] * 4


# Compiled

COMPILED = """
import re, subprocess, tempfile
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lastlayer._backends.triton import blocks, candidates, inverse

WHOLE = ("whole_ptr", "index_ptr", "rank_ptr", "block_ptr", "above_ptr")
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}
NVIDIA = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

def compiled(kernel, dtype, target, build, hints):
    warps, signature, constants, attributes = build.pop("num_warps"), {}, build, {}
    for place, name in enumerate(kernel.arg_names):
        pointer = "*i64" if name in WHOLE else "*fp64" if name.endswith("_ptr") else "i32"
        signature[name] = TYPES[dtype] if name == "z_ptr" else pointer
        if name == "class_stride" and name in hints:
            constants[name] = 1
        elif name in hints:
            attributes[(place,)] = [["tt.divisibility", 16]]
        if name in constants:
            signature[name] = "constexpr"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": warps})

def check(kernel, dtype, target, build, *hints):
    made = compiled(kernel, dtype, target, dict(build), hints)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [NVIDIA / "cuobjdump", "--dump-resource-usage", file.name]
        used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    what = (kernel.__name__, dtype, target)
    assert "STACK:0" in used and "LOCAL:0" in used, (what, used)
    assert not re.search(r"\\b(atom|red)\\.", made.asm["ptx"]), what
    return len(re.findall(r"ld\\.global[\\w.:]*v4", made.asm["ptx"]))

HINTS = "z_ptr", "row_stride", "classes", "class_stride"
for target in (80, 90):
    for dtype in (torch.bfloat16, torch.float32):
        build = blocks.build(dtype, 1, True, True)
        # Rows that begin anywhere, of any number of classes: of an aligned address only.
        wide = check(blocks.masses_kernel, dtype, target, build, "z_ptr", "class_stride")
        check(blocks.masses_kernel, dtype, target, blocks.build(dtype, 1, True, False))
        assert wide == 1024 * dtype.itemsize // 16 // 32 // build["num_warps"], (dtype, wide)
    check(blocks.masses_kernel, torch.float64, target, blocks.build(torch.float64, 10**6, True, True), *HINTS)
    check(inverse.draw_kernel, torch.bfloat16, target, inverse.draw_build(128))
    assert check(inverse.rank_kernel, torch.bfloat16, target, inverse.rank_build(1), *HINTS)
    assert check(candidates.collect_kernel, torch.bfloat16, target, candidates.COLLECT, *HINTS)
    check(candidates.shorten_kernel, torch.float32, target, {**candidates.shorten_build(128), "ORDER": 0o4321})
check(inverse.choose_kernel, torch.float32, 90, inverse.choose_build(128))
check(inverse.inside_kernel, torch.float32, 90, inverse.INSIDE)
check(candidates.pick_kernel, torch.float32, 90, candidates.PICK)
"""


def test_kernels_compile_without_spills_or_atomics_and_read_16_bytes_at_a_time(tmp_path: Any) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    made = subprocess.run([sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
