"""The laws of draws for tensors: the same draws as the NumPy front end gives, and torch.multinomial's contract."""

from __future__ import annotations

import itertools
import re
from typing import Any

import laws
import numpy as np
import pytest
import scipy.stats
from draw_laws import LAST, UNLIKELY, assert_frequencies, assert_mass_per_decade

torch = pytest.importorskip("torch")

import lastlayer as ll  # noqa: E402
from lastlayer import _backends, sampling  # noqa: E402
from lastlayer._draws import ORDERS, Edits, Rules  # noqa: E402
from lastlayer.torch.sampling import Sample, categorical, multinomial  # noqa: E402

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.fixture(params=DEVICES)
def generator(request):
    return torch.Generator(request.param).manual_seed(20261122)


@pytest.fixture(params=["reference", "cpu"])
def named(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Each backend in turn, named by the user."""
    if getattr(_backends, request.param) is None:
        pytest.skip("the native module is not built")
    monkeypatch.setenv("LASTLAYER_BACKEND", request.param)
    return request.param


def assert_same(ours: Sample, numpys: Sample, classes: int) -> None:
    """Integers are equal; the others too, but for the last digits of another exp or log."""
    for name, a, b in zip(Sample._fields, ours, numpys, strict=True):
        a, b = a.cpu().numpy(), np.asarray(b)
        if b.dtype.kind == "i":
            assert np.array_equal(a, b), name
        else:
            laws.assert_within(a.reshape(-1), b.reshape(-1), b.reshape(-1), np.float32, name, terms=classes)


# The same draws as NumPy's


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("classes", [1, 3, 64, 5000])
@pytest.mark.parametrize("device", DEVICES)
def test_the_same_words_give_the_draws_of_the_numpy_front_end(named, dtype, temperature, classes, device):
    z = (torch.randn(9, classes, generator=torch.Generator().manual_seed(classes)) * 4).to(dtype)
    ours = categorical(z.to(device), 40, temperature=temperature, seed=5, step=2)
    exact = ll.categorical(
        z.float().numpy() if dtype != torch.float64 else z.numpy(), 40, temperature=temperature, seed=5, step=2
    )
    assert_same(ours, exact, classes)


OPTIONS = [
    {"top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"top_k": [0, 5, -1, 1, 300], "temperature": [0.0, 1.0, 0.5, 2.0, 1e-9]},
    {"typical_p": 0.9, "epsilon_cutoff": 1e-3, "eta_cutoff": [1e-3, 0.0, 1e-2, 1.0, 0.5], "order": "vllm"},
    {"top_n_sigma": 1.5, "temperature": 1.7, "order": "llama.cpp"},
    {"top_p": 0.8, "temperature": 3.0, "order": ("top_p", "temperature")},
    {"replacement": False, "top_k": [0, 40, -1, 30, 300]},
    {"seed": [1, -1, 3, 2**62, 5], "offset": [9, 8, 7, 6, 5], "step": [0, 1, 2, 3, 2**32 - 1]},
    {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.1,
     "token_ids": [[1, 2, 2, -1]] * 5, "prompt_ids": [[7, -1]] * 5},
    {"logit_bias": ([0, 1, 1], [3, 4, 4], [5.0, 1.0, 1.5]), "bans": ([2, 3], [5, 6])},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("as_tensors", [False, True])
def test_every_option_is_that_of_the_numpy_front_end(named, options, as_tensors, generator):
    z = torch.randn(5, 200, generator=torch.Generator().manual_seed(0)) * 3
    exact = ll.categorical(z.numpy(), 25, **{"seed": 3, **options})

    def tensor(value: Any) -> Any:
        if isinstance(value, tuple) and not isinstance(value[0], str):
            return tuple(map(tensor, value))
        return torch.tensor(value, device=generator.device) if isinstance(value, list | float) else value

    spoken = {name: tensor(value) if as_tensors else value for name, value in options.items()}
    assert_same(categorical(z.to(generator.device), 25, **{"seed": 3, **spoken}), exact, 200)


def test_the_reference_is_the_same_for_tensors(generator):
    """Array code for NumPy and torch alike: every step, edits, both ends of the uniforms."""
    rng, device = np.random.default_rng(1), generator.device
    z = (rng.standard_normal((30, 150)) * 3).astype(np.float32)
    z[::4, ::3] = -np.inf
    z[1::4] = np.round(z[1::4])
    z[2, 5], z[6, 0], z[10] = np.nan, np.inf, -np.inf
    uniforms = rng.random((30, 20))
    uniforms[:, :2] = 0, LAST
    some = rng.random((8, 30))
    rules = Rules(
        temperature=np.where(some[0] < 0.2, 0.0, some[0] + 0.3),
        top_n_sigma=some[1] * 6,
        top_k=np.floor(some[2] * 150) + 1,
        top_p=0.5 + some[3] / 2,
        min_p=some[4] / 50,
        typical_p=0.5 + some[5] / 2,
        epsilon_cutoff=some[6] / 100,
        eta_cutoff=some[7] / 100,
    )
    edits = Edits(np.repeat(np.arange(4), [1, 10, 10, 10]), np.array([3, 0, 149]), np.array([9.0, -np.inf, 2.0]))
    for order, replacement in itertools.product(ORDERS.values(), (True, False)):
        u = uniforms if replacement else uniforms[:, :1]
        theirs = _backends.reference.draw(z, u, rules, order, edits, replacement)
        ours = _backends.reference.draw(torch.tensor(z, device=device), u, rules, order, edits, replacement)
        assert np.array_equal(ours.status.cpu(), theirs.status)
        fine = theirs.status == 0
        for name, a, b in zip(theirs._fields, ours, theirs, strict=True):
            a, b = a.cpu().numpy()[fine], b[fine]
            if b.dtype.kind == "i":
                assert np.array_equal(a, b), name
            else:
                laws.assert_within(a.reshape(-1), b.reshape(-1), b.reshape(-1), np.float32, name, terms=150)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_weights_give_the_draws_of_the_numpy_front_end(named, replacement, dtype, generator):
    p = torch.rand(6, 1500, generator=torch.Generator().manual_seed(0)).to(dtype)
    p[:, ::5] = 0
    wide = p.numpy() if dtype == torch.float64 else p.float().numpy()
    ours = multinomial(p.to(generator.device), 12, replacement, seed=3, step=1, offset=torch.arange(6))
    assert np.array_equal(ours.cpu(), ll.multinomial(wide, 12, replacement, seed=3, step=1, offset=np.arange(6)))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_and_strides_change_nothing(named, threads):
    z = torch.randn(9, 40_000, generator=torch.Generator().manual_seed(0)) * 2
    options = {"top_p": 0.9, "temperature": 0.8, "seed": 1}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        drawn = categorical(z, 3, **options)
        torch.set_num_threads(threads)
        others = [z, z.t().contiguous().t(), torch.stack([z, z], -1)[..., 1], z.flip(-1).flip(-1)]
        for other in others:
            for name, a, b in zip(Sample._fields, drawn, categorical(other, 3, **options), strict=True):
                assert torch.equal(a, b), name
    finally:
        torch.set_num_threads(before)


# Frequencies


def test_a_million_draws(generator):
    z = torch.linspace(-14, 0, 2000, device=generator.device)
    z[::7] = -torch.inf
    z = z[torch.randperm(2000, generator=generator, device=generator.device)]
    probs = torch.softmax(z.double(), 0).cpu().numpy()
    for index in [
        categorical(z, 1_000_000, generator=generator).index,
        multinomial(z.exp(), 1_000_000, True, generator=generator),
    ]:
        counts = torch.bincount(index, minlength=2000).cpu().numpy()
        assert_frequencies(counts, probs)
        assert counts[probs == 0].sum() == 0
        assert_mass_per_decade(counts, probs)


def test_pairs_without_replacement(generator):
    p = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0], device=generator.device)
    probs, exact = np.zeros(25), p.double().cpu().numpy()
    for i, j in itertools.permutations(range(4), 2):
        probs[i * 5 + j] = exact[i] * exact[j] / (exact.sum() - exact[i]) / exact.sum()
    rows = p.expand(200_000, 5)
    sample = categorical(rows.log(), 2, replacement=False, generator=generator)
    for pairs in (multinomial(rows, 2, generator=generator), sample.index):
        counts = torch.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25).cpu().numpy()
        assert_frequencies(counts, probs)
        assert counts[probs == 0].sum() == 0
    said = np.log(probs[(sample.index[:, 0] * 5 + sample.index[:, 1]).cpu().numpy()])
    laws.assert_within(sample.sampled_logprob.double().sum(-1).cpu(), said, said, np.float32, terms=5)


def test_no_class_of_probability_zero_without_replacement(generator):
    p = torch.zeros(2000, 100, device=generator.device)
    p[:, ::10] = torch.rand(2000, 10, generator=generator, device=generator.device) * 1e-30 + 1e-38
    index = multinomial(p, 10, generator=generator)
    assert (index.sort(-1).values.cpu() == torch.arange(0, 100, 10)).all()


def test_more_classes_than_torch_takes(generator):
    p = torch.full((2**24 + 3,), 2.0, device=generator.device)
    p[2**23 :] = 1
    index = multinomial(p, 3000, True, generator=generator)
    low, high = scipy.stats.binom(3000, 1 / 3).interval(1 - UNLIKELY)
    assert low <= (index >= 2**23).sum() <= high


# Shapes, types, generators


@pytest.mark.parametrize("dtype", TYPES)
def test_shapes_and_types(dtype, generator):
    device = generator.device
    z = torch.randn(3, 4, 5, device=device).to(dtype).requires_grad_()
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    one, many = categorical(z, generator=generator), categorical(z, 7, generator=generator)
    assert isinstance(one, Sample)
    assert all(x.shape == (3, 4) for x in one)
    for name, x in zip(Sample._fields, many, strict=True):
        assert x.shape == ((3, 4) if name in ("kept", "kept_mass", "logsumexp") else (3, 4, 7))
        assert x.dtype == (torch.int64 if name in ("index", "kept", "rank") else kind)
    assert all(x.device == z.device and not x.requires_grad for x in many)
    exact = torch.log_softmax(z.detach().double(), -1).gather(-1, many.index).cpu()
    laws.assert_within(many.logprob.cpu(), exact, exact, str(kind)[6:], terms=5)
    assert categorical(torch.zeros(0, 3, device=device), 2).index.shape == (0, 2)
    assert categorical(torch.zeros(3, device=device)).index.shape == ()
    transposed = categorical(z.transpose(0, 2).contiguous().transpose(0, 2), 7, generator=generator)
    assert transposed.index.shape == (3, 4, 7)


@pytest.mark.parametrize("shape", [(6,), (2, 6), (0, 6)])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_multinomial_has_the_shapes_of_torch(shape, replacement, dtype, generator):
    p = torch.ones(shape, dtype=dtype, device=generator.device)
    theirs = torch.multinomial(p, 3, replacement, generator=generator)
    index = multinomial(p, 3, replacement, generator=generator)
    out = torch.empty(0, dtype=torch.int64, device=generator.device)
    given = multinomial(input=p, num_samples=3, replacement=replacement, generator=generator, out=out)
    assert given is out
    for ours in (index, given):
        assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)


def test_generators():
    z = torch.zeros(5, 1000)
    a, b = (categorical(z, 3, generator=torch.Generator().manual_seed(7)).index for _ in range(2))
    assert torch.equal(a, b)
    generator = torch.Generator().manual_seed(7)
    assert not torch.equal(*(categorical(z, 3, generator=generator).index for _ in range(2)))
    torch.manual_seed(1)
    a = multinomial(z + 1, 3)
    assert not torch.equal(a, multinomial(z + 1, 3))
    torch.manual_seed(1)
    assert torch.equal(a, multinomial(z + 1, 3))
    before = torch.get_rng_state()
    categorical(z, 3, seed=1)  # a seed leaves the generator alone
    multinomial(z + 1, 3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_of_all_rows_are_read():
    z = torch.zeros(50, 20_000)
    assert len(set(categorical(z, seed=torch.arange(50)).index.tolist())) > 40
    assert len(set(categorical(z, seed=torch.zeros(50, dtype=torch.int64)).index.tolist())) == 1
    seeded = categorical(z, seed=torch.arange(50)).index
    assert torch.equal(categorical(z[17], seed=17, offset=0).index, seeded[17])
    assert torch.equal(categorical(z[[17, 3]], seed=torch.tensor([17, 3])).index, seeded[[17, 3]])


def test_a_temperature_per_row(named):
    z = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([[0.0, 0.5, 1.0], [2.0, 1e-9, 1.0]])
    sample = categorical(z, 6, temperature=t, seed=1)
    for i, j in np.ndindex(2, 3):
        alone = categorical(z[i, j], 6, temperature=float(t[i, j]), seed=1, offset=3 * i + j)
        for name, a, b in zip(Sample._fields, sample, alone, strict=True):
            assert torch.equal(a[i, j], b), name


def test_inputs_on_another_device_are_understood(generator):
    """What is asked for may stay on the CPU, wherever the logits are."""
    z = torch.randn(4, 30, device=generator.device)
    ids, t = torch.randint(0, 30, (4, 5)), torch.rand(4) + 0.5
    sample = categorical(z, 3, temperature=t, token_ids=ids, repetition_penalty=1.2, seed=torch.arange(4))
    there = (each.to(generator.device) for each in (t, ids))
    other = categorical(z, 3, temperature=next(there), token_ids=next(there), repetition_penalty=1.2, seed=range(4))
    assert torch.equal(sample.index, other.index)


def multinomial_errors():
    from torch.testing._internal.common_methods_invocations import op_db

    (op,) = [op for op in op_db if op.name == "multinomial"]
    for case in op.error_inputs("cpu"):
        sample = case.sample_input
        if sample.input.numel() <= 2**24:  # the limit that is not ours
            yield pytest.param(sample, case.error_type, case.error_regex, id=case.error_regex)


@pytest.mark.parametrize(("sample", "error", "regex"), list(multinomial_errors()))
def test_torch_s_own_error_cases(sample, error, regex):
    with pytest.raises(error, match=regex):
        multinomial(sample.input, *sample.args, **sample.kwargs)


Z = torch.zeros(2, 3)
BAD = torch.tensor([[0.0, 1.0, 2.0], [0.0, torch.nan, 1.0]])
IDS = torch.zeros(2, 4, dtype=torch.int64)
MALFORMED = [
    (categorical, (BAD,), {}, ValueError, "row[1] of input has NaN"),
    (categorical, (BAD[None],), {"top_k": 1}, ValueError, "row[0, 1] of input has NaN"),
    (categorical, (Z - torch.inf,), {}, ValueError, "row[0] of input has no logit above -inf"),
    (categorical, (Z + torch.inf,), {}, ValueError, "row[0] of input has +inf"),
    (categorical, (Z,), {"temperature": -1.0}, ValueError, "temperature = -1.0 must be"),
    (categorical, (Z,), {"temperature": torch.tensor([1.0, torch.nan])}, ValueError, "temperature[1] = nan must be"),
    (categorical, (Z,), {"temperature": torch.ones(3)}, ValueError, "temperature has shape (3,), which does not"),
    (categorical, (Z,), {"top_k": torch.tensor([1, -2])}, ValueError, "top_k[1] = -2 must be"),
    (categorical, (Z,), {"top_k": torch.ones(2)}, TypeError, "top_k has dtype float64, expected integers"),
    (categorical, (Z,), {"top_p": torch.tensor(1.5)}, ValueError, "top_p = 1.5 must lie in [0, 1]"),
    (categorical, (Z,), {"token_ids": IDS + 3}, IndexError, "token_ids[0, 0] = 3 is outside [0, 3)"),
    (categorical, (Z,), {"token_ids": IDS.float()}, TypeError, "token_ids has dtype float64"),
    (categorical, (Z,), {"min_p": torch.ones(2, device="meta")}, RuntimeError, "min_p is on meta"),
    (categorical, (Z,), {"bans": (torch.tensor(2), 0)}, IndexError, "row of bans[0] = 2 is outside [0, 2)"),
    (categorical, (Z,), {"seed": torch.tensor([1.0, 2.0])}, TypeError, "seed has dtype float64"),
    (categorical, (Z,), {"seed": 1, "generator": torch.Generator()}, ValueError, "seed and generator are both given"),
    (categorical, (Z, 4), {"replacement": False}, ValueError, "row[0] of input has fewer classes"),
    (categorical, (Z, 0), {}, ValueError, "num_samples = 0 must be at least 1"),
    (categorical, (Z.long(),), {}, TypeError, "input is torch.int64, expected a tensor of float16"),
    (categorical, ([0.0, 1.0],), {}, TypeError, "input is list"),
    (categorical, (torch.tensor(1.0),), {}, ValueError, "input has no dimensions"),
    (categorical, (torch.zeros(2, 0),), {}, ValueError, "input has no classes"),
    (categorical, (Z.to("meta"),), {}, RuntimeError, "input is on meta"),
    (multinomial, ([0.0, 1.0], 1), {}, TypeError, "input is list"),
    (multinomial, (Z + 1, 1.5), {}, TypeError, "float"),
    (multinomial, (Z + 1, True), {}, TypeError, "num_samples = True must be an integer"),
    (multinomial, (Z + 1, 1), {"seed": 1, "generator": torch.Generator()}, ValueError, "seed and generator are both"),
    (multinomial, (torch.tensor([[1.0, 1.0], [0.0, 1.0]]), 2), {}, RuntimeError, "row 1 has 1 weights above 0"),
    (multinomial, (torch.zeros(2, 0), 1, True), {}, RuntimeError, "invalid multinomial distribution"),
]


@pytest.mark.parametrize(("f", "args", "kwargs", "error", "message"), MALFORMED)
def test_malformed_calls_raise(f, args, kwargs, error, message):
    with pytest.raises(error, match=re.escape(message)):
        f(*args, **kwargs)


def test_one_sample_for_both_front_ends():
    assert Sample is ll.Sample
    assert sampling.Sample is Sample
