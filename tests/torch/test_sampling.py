"""The laws of draws for tensors: the same class as the NumPy front end, and torch.multinomial's contract."""

import itertools
import re

import laws
import numpy as np
import pytest
import scipy.stats

torch = pytest.importorskip("torch")

import lastlayer as ll  # noqa: E402
from lastlayer import sampling  # noqa: E402
from lastlayer.torch.sampling import Sample, categorical, multinomial  # noqa: E402

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAST = 1 - 2.0**-53
UNLIKELY = 1e-4
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.fixture(params=DEVICES)
def generator(request):
    return torch.Generator(request.param).manual_seed(20261122)


def assert_frequencies(counts, probs):
    """Chi-square over the classes that are expected at least 10 times, the rest as one."""
    counts, expected = np.asarray(counts, np.float64), np.asarray(probs) * counts.sum()
    head = expected >= 10
    counts, expected = (np.append(x[head], x[~head].sum()) for x in (counts, expected))
    some = expected > 0
    assert (counts[~some] == 0).all()
    assert scipy.stats.chisquare(counts[some], expected[some]).pvalue > UNLIKELY


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("classes", [1, 3, 64, 5000])
@pytest.mark.parametrize("device", DEVICES)
def test_the_same_uniforms_give_the_class_of_the_numpy_front_end(dtype, temperature, classes, device):
    z = (torch.randn(9, classes, generator=torch.Generator().manual_seed(classes)) * 4).to(dtype)
    uniforms = np.random.default_rng(0).random((9, 40))
    wide, times = z.double().numpy(), np.full(9, temperature)
    ours = sampling.from_logits(z.to(device), torch.tensor(times).to(device), torch.tensor(uniforms).to(device), (9,))
    exact = sampling.from_logits(wide, times, uniforms, (9,))
    assert np.array_equal(ours.index.cpu(), exact.index)
    for a, b in zip(ours[1:], exact[1:], strict=True):
        laws.assert_within(a.cpu(), b, b, np.float32, terms=classes)


@pytest.mark.parametrize("device", DEVICES)
def test_both_ends_of_the_uniforms(device):
    weights = torch.tensor([[0, 0, 1, 0, 2, 0], [1e-300, 0, 3, 0, 5, 0]], dtype=torch.float64, device=device)
    first = sampling.draw(weights, torch.zeros(2, 1, dtype=torch.float64, device=device))
    last = sampling.draw(weights, torch.full((2, 1), LAST, dtype=torch.float64, device=device))
    assert first.tolist() == [[2], [0]]
    assert last.tolist() == [[4], [4]]


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
        decade = np.floor(np.log10(np.where(probs > 0, probs, 1.0)))
        for d in set(decade[probs > 0]):
            expected = probs[decade == d].sum()
            low, high = scipy.stats.binom(1_000_000, expected).interval(1 - UNLIKELY)
            assert low <= counts[decade == d].sum() <= high


def test_pairs_without_replacement(generator):
    p = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0], device=generator.device)
    pairs = multinomial(p.expand(200_000, 5), 2, generator=generator)
    counts = torch.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25).cpu().numpy()
    probs, exact = np.zeros(25), p.double().cpu().numpy()
    for i, j in itertools.permutations(range(4), 2):
        probs[i * 5 + j] = exact[i] * exact[j] / (exact.sum() - exact[i]) / exact.sum()
    assert_frequencies(counts, probs)
    assert counts[probs == 0].sum() == 0


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


@pytest.mark.parametrize("dtype", TYPES)
def test_shapes_and_types(dtype, generator):
    device = generator.device
    z = torch.randn(3, 4, 5, device=device).to(dtype).requires_grad_()
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    one, many = categorical(z, generator=generator), categorical(z, 7, generator=generator)
    assert isinstance(one, Sample)
    assert all(x.shape == (3, 4) for x in one)
    assert all(x.shape == (3, 4, 7) for x in many)
    assert [x.dtype for x in many] == [torch.int64, kind, kind]
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
    torch.manual_seed(1)
    a = multinomial(z + 1, 3)
    assert not torch.equal(a, multinomial(z + 1, 3))
    torch.manual_seed(1)
    assert torch.equal(a, multinomial(z + 1, 3))


def test_a_temperature_per_row():
    z = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([[0.0, 0.5, 1.0], [2.0, 1e-9, 1.0]])
    sample = categorical(z, 6, temperature=t, generator=torch.Generator().manual_seed(1))
    uniforms = torch.rand((6, 6), dtype=torch.float64, generator=torch.Generator().manual_seed(1)).numpy()
    exact = sampling.from_logits(z.double().numpy().reshape(6, 50), t.double().numpy().reshape(6), uniforms, (2, 3))
    assert np.array_equal(sample.index.reshape(6, 6), exact.index)
    laws.assert_within(sample.sampled_logprob.reshape(6, 6), exact[2], exact[2], np.float32, terms=50)


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
MALFORMED = [
    (categorical, (BAD,), {}, ValueError, "row[1] of input has NaN"),
    (categorical, (Z - torch.inf,), {}, ValueError, "row[0] of input has no logit above -inf"),
    (categorical, (Z + torch.inf,), {}, ValueError, "row[0] of input has +inf"),
    (categorical, (Z,), {"temperature": -1.0}, ValueError, "temperature = -1.0 must be"),
    (categorical, (Z,), {"temperature": torch.tensor([1.0, torch.nan])}, ValueError, "temperature[1] = nan must be"),
    (categorical, (Z,), {"temperature": torch.ones(3)}, ValueError, "temperature has shape (3,), which does not"),
    (categorical, (Z, 0), {}, ValueError, "num_samples = 0 must be at least 1"),
    (categorical, (Z.long(),), {}, TypeError, "input is torch.int64, expected a tensor of float16"),
    (categorical, ([0.0, 1.0],), {}, TypeError, "input is list"),
    (categorical, (torch.tensor(1.0),), {}, ValueError, "input has no dimensions"),
    (categorical, (torch.zeros(2, 0),), {}, ValueError, "input has no classes"),
    (multinomial, ([0.0, 1.0], 1), {}, TypeError, "input is list"),
    (multinomial, (Z + 1, 1.5), {}, TypeError, "float"),
    (multinomial, (Z + 1, True), {}, TypeError, "num_samples = True must be an integer"),
    (multinomial, (torch.tensor([[1.0, 1.0], [0.0, 1.0]]), 2), {}, RuntimeError, "row 1 has 1 weights above 0"),
    (multinomial, (torch.zeros(2, 0), 1, True), {}, RuntimeError, "invalid multinomial distribution"),
]


@pytest.mark.parametrize(("f", "args", "kwargs", "error", "message"), MALFORMED)
def test_malformed_calls_raise(f, args, kwargs, error, message):
    with pytest.raises(error, match=re.escape(message)):
        f(*args, **kwargs)


def test_one_sample_for_both_front_ends():
    assert Sample is ll.Sample
