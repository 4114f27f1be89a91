"""Distributions are torch's where torch is right, in float64; in float32 they keep the digits that torch loses."""

import copy
import math
import re

import laws
import mpmath
import numpy as np
import pytest
import scipy.stats

torch = pytest.importorskip("torch")

from torch.distributions import Categorical as TorchCategorical  # noqa: E402
from torch.distributions import Distribution, Independent, MixtureSameFamily, Normal, kl_divergence  # noqa: E402

import lastlayer.torch as F  # noqa: E402
from lastlayer.torch.distributions import Categorical, LinearCategorical, _distinct  # noqa: E402

INF, NAN = math.inf, math.nan
CLASSES = 5
BATCHES = [(), (3,), (2, 3)]
SAMPLES = [(), (4,), (2, 4), (1, 1, 1)]
UNLIKELY = 1e-4
HEADS = [{}, {"scale": 0.7, "softcap": 2.0}]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(20261122)


@pytest.fixture(autouse=True)
def validated():
    """Torch's default; the first torch.compile of a process switches it off."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    yield
    Distribution.set_default_validate_args(before)


def weights_of(batch, dtype=torch.float64):
    return torch.rand(*batch, CLASSES, dtype=dtype) + 0.1


def pair(batch, given):
    """Ours and torch's, of the same parameter."""
    parameter = weights_of(batch) if given == "probs" else torch.randn(*batch, CLASSES, dtype=torch.float64) * 3
    validate = None if parameter.numel() else False  # torch cannot check no rows at all
    return Categorical(**{given: parameter}), TorchCategorical(**{given: parameter}, validate_args=validate)


def head_of(batch, bias=True, dtype=torch.float64):
    """Hidden states, weight and bias."""
    h, W = torch.randn(*batch, 4, dtype=dtype), torch.randn(CLASSES, 4, dtype=dtype)
    return h, W, torch.randn(CLASSES, dtype=dtype) if bias else None


def linear_pair(batch, options, bias=True):
    """Ours from hidden states, and torch's of the logits that they stand for."""
    h, W, b = head_of(batch, bias)
    z = torch.nn.functional.linear(h, W, b) * options.get("scale", 1.0)
    z = z if "softcap" not in options else options["softcap"] * torch.tanh(z / options["softcap"])
    ours = LinearCategorical(h, W, linear_bias=b, **options)
    return ours, TorchCategorical(logits=z, validate_args=None if z.numel() else False)


def assert_same(got, expected, size=0.0):
    """Equal to a result of torch's in float64, itself rounded: numbers of this size, or 1, at the most were added."""
    got, expected = got.detach().reshape(-1, 1), expected.detach().reshape(-1, 1)
    more = 2**8  # eight roundings: on either side a difference, an exponential, a logarithm, a product
    laws.assert_within(got, expected, expected, np.float64, terms=CLASSES * more, size=max(size, 1.0))


def agree(ours, theirs, size):
    """Everything a distribution tells is what torch's tells."""
    assert ours.batch_shape == theirs.batch_shape
    assert ours.event_shape == theirs.event_shape == ()
    assert ours.param_shape == theirs.param_shape
    assert repr(ours.support) == repr(theirs.support)
    assert torch.equal(ours.mode, theirs.mode)
    for name in ("mean", "variance", "stddev"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert bool(a.isnan().all())
    for name in ("entropy", "perplexity"):
        assert getattr(ours, name)().shape == ours.batch_shape
        assert_same(getattr(ours, name)(), getattr(theirs, name)(), CLASSES * size)
    assert ours.logits.shape == ours.probs.shape == theirs.param_shape
    assert_same(ours.logits, theirs.logits, size)
    assert_same(ours.probs, theirs.probs, size)
    for shape in (*SAMPLES, (0,), (2 * CLASSES,)):
        value = torch.randint(CLASSES, (*shape, *ours.batch_shape))
        assert ours.log_prob(value).shape == value.shape
        assert_same(ours.log_prob(value), theirs.log_prob(value), size)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("given", ["logits", "probs"])
def test_it_is_torchs_categorical(batch, given):
    ours, theirs = pair(batch, given)
    agree(ours, theirs, float(theirs.logits.abs().max()))
    assert isinstance(ours, TorchCategorical)
    assert ours.has_enumerate_support
    for expand in (True, False):
        assert torch.equal(ours.enumerate_support(expand), theirs.enumerate_support(expand))
    everything = ours.enumerate_support()
    assert_same(ours.log_prob(everything), theirs.log_prob(everything), float(theirs.logits.abs().max()))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("options", HEADS, ids=["plain", "capped"])
@pytest.mark.parametrize("bias", [True, False])
def test_from_hidden_states_it_is_torchs_categorical_of_the_logits(batch, options, bias):
    ours, theirs = linear_pair(batch, options, bias)
    size = float(theirs.logits.abs().max())
    agree(ours, theirs, size)
    assert not ours.has_enumerate_support
    assert ours.dense().batch_shape == torch.Size(batch)
    assert_same(ours.dense().logits, theirs.logits, size)


@pytest.mark.parametrize(
    "make", [lambda: pair((3,), "logits"), lambda: pair((3,), "probs"), lambda: linear_pair((3,), {})]
)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3)])
@pytest.mark.parametrize("asked_before", [False, True])
def test_expanded(make, shape, asked_before):
    ours, theirs = make()
    if asked_before:
        assert ours.probs.shape == ours.logits.shape == (3, CLASSES)
    ours, theirs = ours.expand(shape), theirs.expand(shape)
    agree(ours, theirs, float(theirs.logits.abs().max()))
    assert type(ours.expand(shape)) is type(ours)


@pytest.mark.parametrize("make", [lambda b: pair(b, "logits"), lambda b: linear_pair(b, {})])
@pytest.mark.parametrize(
    ("batch", "shape"), [((3,), ()), ((2, 3), (3,)), ((2, 3), (1, 3)), ((1, 3), (2, 3)), ((1,), (4, 3)), ((3,), (2, 1))]
)
def test_values_broadcast_against_the_batch(make, batch, shape):
    ours, theirs = make(batch)
    value = torch.randint(CLASSES, shape)
    expected = theirs.log_prob(value)
    assert ours.log_prob(value).shape == expected.shape
    assert_same(ours.log_prob(value), expected, float(theirs.logits.abs().max()))
    assert torch.equal(ours.log_prob(value.double()), ours.log_prob(value))  # as torch, which takes whole floats


@pytest.mark.parametrize("classes", [1, 2, 7, 40])
@pytest.mark.parametrize("values", [1, 2, 7, 15])
def test_values_of_a_row_become_distinct_targets(classes, values):
    for highest in (1, (classes + 1) // 2, classes):
        y = torch.randint(classes - highest, classes, (6, values))
        target, place = _distinct(y, classes)
        assert target.shape == (6, min(values, classes))
        assert torch.equal(target.gather(-1, place), y)
        assert bool(((target >= 0) & (target < classes)).all())
        assert all(len(set(row)) == len(row) for row in target.tolist())


def confident_rows(dtype):
    """Rows in which one class is ahead by a margin of 0 to 60."""
    margins = torch.linspace(0, 60, 25)
    return torch.cat([margins[:, None], torch.randn(25, CLASSES - 1) / 2], 1).to(dtype)


def exact(z, name, y=0):
    """The statistics by mpmath, nearest float64."""
    with mpmath.workdps(60):
        found = []
        for row in z.double().tolist():
            total = mpmath.log(sum(mpmath.exp(x) for x in row))
            logp = [mpmath.mpf(x) - total for x in row]
            entropy = -sum(mpmath.exp(x) * x for x in logp)
            found.append(float({"log_prob": logp[y], "entropy": entropy, "perplexity": mpmath.exp(entropy)}[name]))
        return np.array(found)[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["log_prob", "entropy", "perplexity"])
def test_confident_rows_keep_their_digits(dtype, name):
    z = confident_rows(dtype)
    y = torch.zeros(len(z), dtype=torch.int64)
    hidden = torch.eye(len(z), dtype=dtype), z.T.contiguous()  # W h is a row of z
    truth = exact(z, name)

    def told(d):
        result = d.log_prob(y) if name == "log_prob" else getattr(d, name)()
        assert result.dtype == torch.float32
        return result[:, None]

    steps = 4 * CLASSES  # beyond the sum's: exp(H), and the rounding of H that it takes over
    for ours in (Categorical(logits=z), LinearCategorical(*hidden)):
        laws.assert_within(told(ours), truth, truth, np.float32, name, terms=steps)
    logits = Categorical(logits=z).logits[:, :1]
    laws.assert_within(logits, exact(z, "log_prob"), exact(z, "log_prob"), np.float32, "logits", terms=steps)
    several = Categorical(logits=z).log_prob(torch.stack([y, y, y + 1]))
    laws.assert_within(several[1][:, None], exact(z, "log_prob"), exact(z, "log_prob"), np.float32, terms=steps)
    if name != "perplexity":
        theirs = told(TorchCategorical(logits=z.float()))
        with pytest.raises(AssertionError, match="error"):
            laws.assert_within(theirs, truth, truth, np.float32, name, terms=steps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_are_of_float32_or_better(dtype):
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    y = torch.tensor([1, 2])
    z, (h, W, b) = torch.randn(2, CLASSES).to(dtype), head_of((2,), dtype=dtype)
    for d in (Categorical(logits=z), Categorical(probs=z.abs()), LinearCategorical(h, W, linear_bias=b)):
        for result in (d.log_prob(y), d.entropy(), d.perplexity(), d.mean, d.variance, d.probs, d.logits):
            assert result.dtype == kind
        assert d.mode.dtype == torch.int64
    assert torch.equal(Categorical(logits=z).entropy(), Categorical(logits=z.to(kind)).entropy())


def test_classes_of_probability_0():
    z = torch.tensor([[0.0, -INF, 0.0, -INF], [-INF, -INF, -INF, 3.0]])
    value = torch.tensor([[0, 3], [1, 0]])
    for d in (Categorical(logits=z), Categorical(probs=z.exp())):
        laws.assert_within(d.entropy()[:, None], [[math.log(2)], [0]], [[math.log(2)], [0]], np.float32)
        assert d.log_prob(value)[1].tolist() == [-INF, -INF]
        assert d.log_prob(value)[0, 1] == 0
        assert bool((d.sample((200,))[:, 1] == 3).all())
        assert set(d.sample((200,))[:, 0].tolist()) == {0, 2}
        assert d.probs[1].tolist() == [0, 0, 0, 1]


def test_a_class_of_probability_0_leaves_gradients_finite():
    z = torch.tensor([0.5, -INF, 1.0, 0.0], requires_grad=True)
    weights = torch.tensor([0.5, 0.0, 1.0, 2.0], requires_grad=True)
    for d, leaf in ((Categorical(logits=z), z), (Categorical(probs=weights), weights)):
        (d.entropy() + d.log_prob(torch.tensor(0)) + d.log_prob(torch.tensor([2, 3])).sum()).backward()
        assert bool(torch.isfinite(leaf.grad).all())
        assert leaf.grad[1] == 0
        assert bool((leaf.grad[[0, 2, 3]] != 0).all())


def test_mode_is_the_lowest_of_equals():
    z = torch.tensor([[0.0, 2.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 3.0]])
    assert Categorical(logits=z).mode.tolist() == [1, 0, 3]
    assert Categorical(probs=z + 1).mode.tolist() == [1, 0, 3]
    assert LinearCategorical(torch.eye(3), z.T.contiguous()).mode.tolist() == [1, 0, 3]


@pytest.mark.parametrize("shape", [(2, 3), (4, 2, 3)])
@pytest.mark.parametrize("options", HEADS, ids=["plain", "capped"])
def test_gradients(shape, options):
    z = (torch.randn(2, 3, CLASSES, dtype=torch.float64) * 2).requires_grad_()
    p = weights_of((2, 3)).requires_grad_()
    value = torch.randint(CLASSES, shape)
    logits = [lambda z: Categorical(logits=z).log_prob(value), lambda z: Categorical(logits=z).entropy()]
    for function in logits:
        assert torch.autograd.gradcheck(function, z)
        assert torch.autograd.gradgradcheck(function, z)
    for function in (lambda p: Categorical(probs=p).log_prob(value), lambda p: Categorical(probs=p).perplexity()):
        assert torch.autograd.gradcheck(function, p)
    h, W, b = (t.requires_grad_() for t in head_of((2, 3)))

    def told(h, W, b):
        d = LinearCategorical(h, W, linear_bias=b, **options)
        return d.log_prob(value), d.entropy()

    assert torch.autograd.gradcheck(told, (h, W, b))


def test_a_second_derivative_from_hidden_states_says_what_to_do():
    h, W, _ = (t if t is None else t.requires_grad_() for t in head_of((3,), bias=False))
    d = LinearCategorical(h, W)
    (slope,) = torch.autograd.grad(d.entropy().sum(), h, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        slope.sum().backward()
    assert torch.autograd.gradgradcheck(lambda h: LinearCategorical(h, W.detach()).dense().entropy(), h)


@pytest.mark.parametrize("first", ["ours", "ours, probs", "torch", "torch, probs"])
@pytest.mark.parametrize("second", ["ours", "ours, probs", "torch", "torch, probs"])
@pytest.mark.parametrize("batches", [((), ()), ((2, 3), (2, 3)), ((2, 3), (3,)), ((3,), (2, 3))])
def test_kl_divergence_of_all_pairs(first, second, batches):
    made = []
    for which, batch in zip((first, second), batches, strict=True):
        both = pair(batch, "probs" if "probs" in which else "logits")
        made.append((both["torch" in which], both[1]))
    (p, p_torch), (q, q_torch) = made
    got, expected = kl_divergence(p, q), kl_divergence(p_torch, q_torch)
    assert got.shape == expected.shape
    size = float(p_torch.logits.abs().max() + q_torch.logits.abs().max())
    assert_same(got, expected, CLASSES * size)
    if "ours" in first or "ours" in second:
        assert bool((kl_divergence(Categorical(logits=p.logits), Categorical(logits=p.logits)) == 0).all())


def test_a_small_kl_divergence_keeps_its_digits():
    z = torch.randn(20, CLASSES)
    other = z + torch.randn(20, CLASSES) * 1e-4
    p, q = Categorical(logits=z), Categorical(logits=other)
    truth = kl_divergence(Categorical(logits=z.double()), Categorical(logits=other.double()))
    error = (kl_divergence(p, q).double() - truth).abs()
    plain = (kl_divergence(TorchCategorical(logits=z), TorchCategorical(logits=other)).double() - truth).abs()
    # Each r_j = log q_j - log p_j, about 1e-4, carries a rounding or two of log p_j, and enters squared.
    r, logp = (q.logits - p.logits).abs().amax(-1), p.logits.abs().amax(-1)
    assert bool((error <= 4 * r * logp * 2.0**-23).all())
    assert bool((kl_divergence(p, q) >= 0).all())
    assert float(error.max()) < float(plain.max())


def test_gradients_of_the_kl_divergence():
    z, w = (torch.randn(3, CLASSES, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda z, w: kl_divergence(Categorical(logits=z), Categorical(logits=w)), (z, w))
    assert torch.autograd.gradcheck(
        lambda z, w: kl_divergence(Categorical(logits=z), TorchCategorical(logits=w)), (z, w)
    )


@pytest.mark.parametrize("asked_before", [False, True])
def test_kl_divergence_where_classes_are_impossible(asked_before):
    some, all_ = torch.tensor([0.5, 0.0, 0.5]), torch.tensor([0.5, 0.25, 0.25])
    for make_p, make_q in (
        (Categorical, Categorical),
        (Categorical, TorchCategorical),
        (TorchCategorical, Categorical),
    ):
        p, q = make_p(probs=some), make_q(probs=all_)
        back_p, back_q = make_p(probs=all_), make_q(probs=some)
        if asked_before:
            p, q, back_p, back_q = (d.expand((1,)) for d in (p, q, back_p, back_q) if d.logits is not None)
        truth = 0.5 * math.log(0.5 / 0.25)
        laws.assert_within(kl_divergence(p, q).reshape(1, 1), [[truth]], [[truth]], np.float32, terms=8)
        assert kl_divergence(back_p, back_q).item() == INF
    far = TorchCategorical(logits=torch.tensor([0.0, -120.0]))  # p = 0 in float32, but it is possible
    assert math.isfinite(kl_divergence(Categorical(logits=torch.zeros(2)), far))


def test_kl_divergence_of_hidden_states_says_what_to_do():
    linear, _ = linear_pair((3,), {})
    ours, theirs = pair((3,), "logits")
    for p, q in ((linear, linear), (linear, ours), (ours, linear), (linear, theirs), (theirs, linear)):
        names = f"{type(p).__name__} || {type(q).__name__}"
        with pytest.raises(NotImplementedError, match=re.escape(names) + r".*dense\(\).*linear_cross_entropy"):
            kl_divergence(p, q)
    assert kl_divergence(linear.dense(), ours).shape == (3,)
    with pytest.raises(NotImplementedError, match="No KL"):
        kl_divergence(linear, Normal(0.0, 1.0))


def test_kl_divergence_needs_the_same_classes():
    with pytest.raises(ValueError, match="p has 5 classes, q 4"):
        kl_divergence(Categorical(logits=torch.zeros(5)), TorchCategorical(logits=torch.zeros(4)))
    with pytest.raises(ValueError, match="p has 1 classes, q 4"):
        kl_divergence(Categorical(logits=torch.zeros(1)), Categorical(logits=torch.zeros(4)))


def linear_draws():
    """Skip where there are no draws from hidden states."""
    pytest.importorskip("lastlayer.torch.linear_sampling", reason="draws from hidden states are not there")


@pytest.mark.parametrize("kind", ["logits", "probs", "linear"])
def test_samples_follow_the_distribution(kind):
    if kind == "linear":
        linear_draws()
    ours, theirs = linear_pair((2, 3), {"softcap": 4.0}) if kind == "linear" else pair((2, 3), kind)
    draws = ours.sample((4000,), generator=torch.Generator().manual_seed(1)).reshape(4000, -1)
    for column, p in zip(draws.T, theirs.probs.reshape(-1, CLASSES), strict=True):
        counts, expected = np.bincount(column.numpy(), minlength=CLASSES), p.numpy() * 4000
        head = expected >= 10
        counts, expected = (np.append(x[head], x[~head].sum()) for x in (counts, expected))
        some = expected > 0
        assert (counts[~some] == 0).all()
        assert scipy.stats.chisquare(counts[some], expected[some]).pvalue > UNLIKELY


@pytest.mark.parametrize("kind", ["logits", "probs", "linear"])
@pytest.mark.parametrize("batch", [*BATCHES, (0,), (2, 0)])
def test_samples_have_torchs_shapes_and_follow_seeds(kind, batch):
    if kind == "linear":
        linear_draws()
    d = (linear_pair(batch, {}) if kind == "linear" else pair(batch, kind))[0]
    for shape in (*SAMPLES, (0,), (3, 0)):
        found = d.sample(shape)
        assert found.shape == (*shape, *batch)
        assert found.dtype == torch.int64
        assert not found.requires_grad
    assert d.sample([2]).shape == d.sample(torch.Size([2])).shape == (2, *batch)

    def drawn(seed):
        return d.sample((50,), generator=torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(0), drawn(0))
    torch.manual_seed(3)
    first = d.sample((50,))
    torch.manual_seed(3)
    assert torch.equal(d.sample((50,)), first)
    if 0 not in batch:
        assert not torch.equal(drawn(0), drawn(1))
        assert not torch.equal(d.sample((50,)), first)


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_no_rows_at_all(batch):
    for d in (pair(batch, "logits")[0], pair(batch, "probs")[0], linear_pair(batch, {})[0]):
        value = torch.zeros(batch, dtype=torch.int64)
        for result in (d.log_prob(value), d.entropy(), d.perplexity(), d.mode, d.mean):
            assert result.shape == batch
        assert d.log_prob(value.expand(4, *batch)).shape == (4, *batch)
        assert kl_divergence(*[d if isinstance(d, Categorical) else d.dense()] * 2).shape == batch


def test_expanded_rows_are_drawn_independently():
    d = Categorical(logits=torch.zeros(50)).expand((100,))
    assert len(set(d.sample().tolist())) > 1


def test_there_is_no_reparameterised_sample():
    assert not Categorical.has_rsample
    for d in (pair((2,), "logits")[0], linear_pair((2,), {})[0]):
        with pytest.raises(NotImplementedError):
            d.rsample()


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ([[0.0, 1.0], [NAN, 0.0]], "logits[1, 0] = nan must be a number below inf"),
        ([[0.0, INF], [0.0, 0.0]], "logits[0, 1] = inf must be a number below inf"),
        ([[0.0, 1.0], [-INF, -INF]], "logits[1] has nothing but -inf"),
        ([-INF, -INF], "logits has nothing but -inf"),
    ],
)
def test_logits_without_a_distribution(logits, message):
    z = torch.tensor(logits)
    with pytest.raises(ValueError, match=re.escape(message)):
        Categorical(logits=z)
    with pytest.raises(ValueError, match="satisfy the constraint"):
        TorchCategorical(logits=z)
    assert bool(Categorical(logits=z, validate_args=False).entropy().isnan().any())


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([[0.5, 0.5], [0.5, -0.5]], "probs[1, 1] = -0.5 must be a finite number >= 0"),
        ([0.5, NAN], "probs[1] = nan must be a finite number >= 0"),
        ([0.5, INF], "probs[1] = inf must be a finite number >= 0"),
        ([[0.5, 0.5], [0.0, 0.0]], "probs[1] is all 0"),
    ],
)
def test_probs_without_a_distribution(probs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Categorical(torch.tensor(probs))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "one of `probs` and `logits`, got neither"),
        ({"probs": torch.ones(2), "logits": torch.ones(2)}, ValueError, "got both"),
        ({"logits": torch.tensor(1.0)}, ValueError, "`logits` parameter must be at least one-dimensional"),
        ({"probs": torch.tensor(1.0)}, ValueError, "`probs` parameter must be at least one-dimensional"),
        ({"logits": torch.ones(2, 0)}, ValueError, "(2, 0), expected (..., V) with at least one class"),
        ({"logits": [0.0, 1.0]}, TypeError, "logits must be a Tensor, not list"),
        ({"probs": 1.0}, TypeError, "probs must be a Tensor, not float"),
        ({"logits": torch.tensor([1, 2])}, RuntimeError, "torch.int64, expected a floating type"),
    ],
)
def test_malformed_parameters(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Categorical(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": [[0.0]]}, TypeError, "input must be a Tensor, not list"),
        ({"input": torch.full((3, 4), NAN, dtype=torch.float64)}, ValueError, "input[0, 0] = nan must be finite"),
        ({"input": torch.ones(3, 5, dtype=torch.float64)}, RuntimeError, "got 5 and 4"),
        ({"input": torch.ones(3, 4, dtype=torch.float32)}, RuntimeError, "expected the same floating type"),
        ({"linear_weight": torch.ones(2, 5, 4, dtype=torch.float64)}, ValueError, "(2, 5, 4), expected (V, D)"),
        ({"linear_weight": torch.ones(0, 4, dtype=torch.float64)}, RuntimeError, "at least one class"),
        (
            {"linear_bias": torch.ones(4, dtype=torch.float64)},
            RuntimeError,
            "expected linear_bias shape (5,), got (4,)",
        ),
        ({"scale": NAN}, ValueError, "scale = nan must be finite"),
        ({"softcap": 0.0}, ValueError, "softcap = 0.0 must be a finite number above 0"),
        ({"memory_budget": 1.5}, TypeError, "memory_budget = 1.5 must be an integer"),
    ],
)
def test_malformed_heads(change, error, message):
    h, W, b = head_of((3,))
    with pytest.raises(error, match=re.escape(message)):
        LinearCategorical(**{"input": h, "linear_weight": W, "linear_bias": b, **change})


@pytest.mark.parametrize("kind", ["logits", "linear"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.tensor([0, 5, 1]), ValueError, "value[1] = 5 is not in the support, the integers in [0, 5)"),
        (torch.tensor([[0, 1, -1]]), ValueError, "value[0, 2] = -1 is not in the support"),
        (torch.tensor([0.0, 0.5, 1.0]), ValueError, "value[1] = 0.5 is not in the support"),
        (torch.tensor(NAN), ValueError, "value = nan is not in the support"),
        (torch.tensor([0, -100, 0]), ValueError, "value[1] = -100 is not in the support"),
        (torch.tensor([0, 1]), ValueError, "value has shape (2,), which does not broadcast with (3,), the batch's"),
        (1, TypeError, "value must be a Tensor, not int"),
    ],
)
def test_values_outside_the_support(kind, value, error, message):
    d = (pair((3,), "logits") if kind == "logits" else linear_pair((3,), {}))[0]
    for same in (d, d.expand((3,))):
        with pytest.raises(error, match=re.escape(message)):
            same.log_prob(value)


@pytest.mark.parametrize("value", [torch.tensor([0, 5, 1]), torch.tensor([0, -100, 1])])
def test_unchecked_values_never_pass_for_a_class(value):
    z, (h, W, _) = torch.zeros(3, CLASSES), head_of((3,))
    for d in (Categorical(logits=z, validate_args=False), LinearCategorical(h, W, validate_args=False)):
        with pytest.raises(IndexError, match=re.escape("[1]")):
            d.log_prob(value)


def test_validation_is_torchs_setting():
    before, z = Distribution._validate_args, torch.tensor([0.0, NAN])
    try:
        Distribution.set_default_validate_args(False)
        assert math.isnan(Categorical(logits=z).entropy())
        with pytest.raises(ValueError, match="nan"):
            Categorical(logits=z, validate_args=True)
        assert math.isnan(LinearCategorical(torch.tensor([NAN]), torch.ones(2, 1)).entropy())
    finally:
        Distribution.set_default_validate_args(before)
    assert not Categorical(logits=z, validate_args=False).expand((2,))._validate_args


def test_torchs_other_distributions_take_it():
    ours, theirs = pair((2, 3), "logits")
    value = torch.randint(CLASSES, (4, 2, 3))
    size = 3 * float(theirs.logits.abs().max())
    assert_same(Independent(ours, 1).log_prob(value), Independent(theirs, 1).log_prob(value), size)
    components = Normal(torch.arange(float(CLASSES)).double(), 1.0)
    x = torch.randn(2, 3, dtype=torch.float64)
    mixtures = [MixtureSameFamily(each, components.expand((2, 3, CLASSES))) for each in (ours, theirs)]
    assert_same(*(mixture.log_prob(x) for mixture in mixtures), size + 20)
    assert mixtures[0].sample((7,)).shape == (7, 2, 3)
    again = copy.deepcopy(ours)
    assert torch.equal(again.log_prob(value), ours.log_prob(value))


def test_it_says_what_it_is():
    assert repr(Categorical(logits=torch.zeros(2, 3))) == "Categorical(logits: torch.Size([2, 3]))"
    assert repr(Categorical(torch.ones(3))) == "Categorical(probs: torch.Size([3]))"
    d = LinearCategorical(torch.zeros(2, 4), torch.zeros(3, 4))
    assert repr(d) == "LinearCategorical(input: torch.Size([2, 4]), linear_weight: torch.Size([3, 4]))"


def test_from_hidden_states_no_row_of_logits_is_stored():
    """The statistics of more rows than the budget holds are those of all the rows at once."""
    h, W = torch.randn(40, 8), torch.randn(3000, 8)
    value, budget = torch.randint(3000, (6, 40)), 64 * 1024
    assert budget < h.shape[0] * W.shape[0] * 4
    small, large = (LinearCategorical(h, W, memory_budget=each) for each in (budget, 1 << 30))
    truth = Categorical(logits=h.double() @ W.double().T)
    dense = small.dense()
    for name, told in (("log_prob", lambda d: d.log_prob(value).T), ("entropy", lambda d: d.entropy()[:, None])):
        got = told(small)
        size = float(truth.logits.abs().max())
        laws.assert_within(got, told(truth), told(dense), np.float32, name, terms=3000, size=size)
        laws.assert_within(got, told(truth), told(large), np.float32, name, terms=3000, size=size)
    assert torch.equal(small.mode, F.logit_statistics(dense.logits, argmax=True).argmax)
