"""The laws of speculative decoding for tensors: what the NumPy front end says, to the token."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lastlayer as ll  # noqa: E402
from lastlayer import speculative  # noqa: E402
from lastlayer.torch.sampling import categorical  # noqa: E402
from lastlayer.torch.speculative import SpeculativeSample, speculative_sample  # noqa: E402

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
ROWS, LENGTH, SIZE = 300, 4, 700
EPS = np.finfo(np.float64).eps


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("options", "draft_options"),
    [({}, None), ({"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.01}, None), ({"temperature": 0.0}, {})],
)
def test_the_numpy_front_end_says_the_same(options, draft_options, dtype, device):
    generator = torch.Generator().manual_seed(0)
    z = (torch.randn(ROWS, LENGTH + 1, SIZE, generator=generator) * 3).to(dtype)
    q = (z[:, :LENGTH] + torch.randn(ROWS, LENGTH, SIZE, generator=generator)).to(dtype)
    x = categorical(q, **(options if draft_options is None else draft_options), seed=1).index
    key = {"seed": 1, "step": 5, "draft_options": draft_options}
    ours = speculative_sample(z.to(device), q.to(device), x.to(device), **options, **key)
    wide = (each.double().numpy() for each in (z, q))
    exact = speculative.speculative_sample(*wide, x.numpy(), **options, **key)
    assert isinstance(ours, SpeculativeSample)
    assert ours.tokens.device.type == device
    assert len(set(exact.num_accepted)) > 1
    for name in ("tokens", "num_accepted"):
        np.testing.assert_array_equal(getattr(ours, name).cpu(), getattr(exact, name))
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    for name in ("logprob", "sampled_logprob", "acceptance"):
        found = getattr(ours, name)
        assert found.dtype == kind
        # sums of V numbers in another order, then one rounding
        bound = torch.finfo(kind).eps + SIZE * EPS
        np.testing.assert_allclose(found.cpu().double(), getattr(exact, name), rtol=bound, atol=SIZE * EPS)


def test_a_chain_does_not_depend_on_the_others():
    generator = torch.Generator().manual_seed(1)
    z, q = torch.randn(9, 4, 60, generator=generator), torch.randn(9, 3, 60, generator=generator)
    seeds = torch.randint(1 << 60, (9,), generator=generator)
    x = torch.randint(60, (9, 3), generator=generator)
    whole = speculative_sample(z, q, x, seed=seeds)
    for i in range(9):
        one = speculative_sample(z[i : i + 1], q[i : i + 1], x[i : i + 1], seed=seeds[i : i + 1])
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(whole, one, strict=True))


def test_tokens_that_were_not_drawn_at_random():
    z, x = torch.randn(50, 3, 20, generator=torch.Generator().manual_seed(2)) * 5, torch.zeros(50, 2, dtype=torch.int32)
    ours = speculative_sample(z, None, x, seed=4)
    exact = speculative.speculative_sample(z.numpy(), None, x.numpy(), seed=4)
    np.testing.assert_array_equal(ours.tokens, exact.tokens)


def test_generators_and_gradients():
    z, q, x = torch.zeros(30, 3, 9, requires_grad=True), torch.zeros(30, 2, 9), torch.zeros(30, 2, dtype=torch.int64)
    one, two = (speculative_sample(z, q, x, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.tokens, two.tokens)
    assert not one.logprob.requires_grad
    torch.manual_seed(8)
    one, two = (speculative_sample(z, q, x) for _ in range(2))
    assert not torch.equal(one.tokens, two.tokens)
    torch.manual_seed(8)
    assert torch.equal(one.tokens, speculative_sample(z, q, x).tokens)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_shapes(shape):
    z = torch.zeros(*shape, 1, 5)
    found = speculative_sample(z, torch.zeros(*shape, 0, 5), torch.zeros(*shape, 0, dtype=torch.int64), seed=1)
    assert [tuple(each.shape) for each in found] == [(*shape, 1), shape, (*shape, 1), (*shape, 1), (*shape, 0)]
    plain = ll.categorical(np.zeros((*shape, 5)), seed=1)
    np.testing.assert_array_equal(found.tokens[..., 0], plain.index)


Z, Q, X = torch.zeros(2, 3, 4), torch.zeros(2, 2, 4), torch.zeros(2, 2, dtype=torch.int64)
NAN = Z.clone()
NAN[1, 0, 2] = torch.nan


@pytest.mark.parametrize(
    ("args", "options", "error", "match"),
    [
        ((Z.numpy(), Q, X), {}, TypeError, "target_logits is ndarray, expected a tensor"),
        ((Z, Q.long(), X), {}, TypeError, r"draft_logits is torch.int64, expected a tensor"),
        ((Z.to("meta"), Q, X), {}, RuntimeError, "target_logits is on meta"),
        ((Z, Q[:, :1], X), {}, ValueError, r"draft_logits has shape \(2, 1, 4\), expected \(2, 2, 4\)"),
        ((Z, Q, X + 4), {}, IndexError, r"draft_tokens\[0, 0\] = 4 is outside \[0, 4\)"),
        ((Z, Q, X.double()), {}, TypeError, "draft_tokens has dtype float64, expected integers"),
        ((NAN, Q, X), {}, ValueError, r"target_logits\[1, 0\] has the largest logit nan"),
        ((Z, Q, X + 1), {"draft_options": {"top_k": 1}}, ValueError, r"draft_tokens\[0, 0\] = 1 has the probability 0"),
        ((Z, Q, X), {"seed": 1, "generator": torch.Generator()}, ValueError, "seed and generator are both given"),
    ],
)
def test_malformed_calls_raise(args, options, error, match):
    with pytest.raises(error, match=match):
        speculative_sample(*args, **options)
