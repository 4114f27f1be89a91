"""The laws of speculative decoding: what comes out has the target's distribution, whatever the draft's is."""

import itertools

import laws
import numpy as np
import pytest
import scipy.special
import scipy.stats

import lastlayer as ll
from lastlayer import _draws, _speculative
from lastlayer.speculative import speculative_sample

UNLIKELY = 1e-4  # of a correct sampler failing; seeds are fixed, so a test that passes keeps passing
CHAINS = 200_000
FILTERS = {"temperature": 0.8, "top_k": 4, "top_p": 0.95}


def assert_frequencies(tokens, p):
    """Chi-square of classes; those of probability 0 do not come."""
    counts, p = np.bincount(tokens, minlength=p.size).astype(float), p.reshape(-1)
    assert (counts[p == 0] == 0).all()
    if (p > 0).sum() > 1:
        assert scipy.stats.chisquare(counts[p > 0], p[p > 0] * counts.sum()).pvalue > UNLIKELY


def distribution(z, **options):
    """Return the distribution that categorical draws a row from."""
    rules = _draws.Rules(*(None if v is None else np.full(1, float(v)) for v in [
        options.get(name, 1.0 if name == "temperature" else None) for name in _draws.Rules._fields
    ]))  # fmt: skip
    kept, temperature = _draws.truncate(z[None], rules, _draws.STEPS)
    return scipy.special.softmax(np.where(kept, z[None] / temperature[:, None], -np.inf)[0])


def drafted(q, seed, step=0, **options):
    """Draw tokens for chains from the draft's logits (K, V), with the very words that the check could fall upon."""
    draws = [
        ll.categorical(np.broadcast_to(row, (CHAINS, len(row))), seed=seed, step=step + k, **options).index
        for k, row in enumerate(q)
    ]
    return np.stack(draws, -1)


def chains(z, q, seed, step=0, draft_options=None, **options):
    """Check CHAINS drafts of the same logits."""
    x = drafted(q, seed, step, **(options if draft_options is None else draft_options))
    z, q = (np.broadcast_to(each, (CHAINS, *each.shape)) for each in (z, q))
    return x, speculative_sample(z, q, x, seed=seed, step=step, draft_options=draft_options, **options)


@pytest.mark.parametrize(("target", "draft"), [({}, None), (FILTERS, None), ({"top_p": 0.9}, {"temperature": 1.7})])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_every_place_has_the_distribution_of_the_target(length, target, draft, rng):
    z, q = rng.standard_normal((length + 1, 6)) * 1.5, rng.standard_normal((length, 6))
    q[0, 2] = z[1, 4] = -np.inf  # what the draft never says, and the target never
    x, found = chains(z, q, seed=1, draft_options=draft, **target)
    p = [distribution(row, **target) for row in z]
    q = [distribution(row, **(target if draft is None else draft)) for row in q]
    for k in range(length + 1):
        assert_frequencies(found.tokens[found.num_accepted >= k, k], p[k])
    overlap = [np.minimum(a, b).sum() for a, b in zip(p, q, strict=False)]
    reach = np.cumprod([1.0, *overlap])
    expected = reach * np.append(1 - np.array(overlap), 1.0)  # of 0, 1, .. K accepted tokens
    assert_frequencies(found.num_accepted, expected)
    mean = found.num_accepted.mean()
    deviation = np.sqrt((np.arange(length + 1) ** 2 @ expected - reach[1:].sum() ** 2) / CHAINS)
    assert abs(mean - reach[1:].sum()) < scipy.stats.norm.isf(UNLIKELY / 2) * deviation
    exact = np.minimum(1, [a[t] / b[t] for a, b, t in zip(p, q, x[0], strict=False)])
    np.testing.assert_allclose(found.acceptance[0], exact, rtol=16 * np.finfo(float).eps)


def test_two_tokens_in_a_row_are_independent_if_the_logits_say_so(rng):
    """Whatever chain the second token comes from, this one or, when the first ends it, the next."""
    z, q = rng.standard_normal((3, 4)), rng.standard_normal((2, 4))
    _, one = chains(z, q, seed=5)
    _, two = chains(z[1:], q[1:], seed=5, step=1)
    second = np.where(one.num_accepted > 0, one.tokens[:, 1], two.tokens[:, 0])
    p = scipy.special.softmax(z, -1)
    assert_frequencies(one.tokens[:, 0] * 4 + second, np.outer(p[0], p[1]))


def test_tokens_that_were_not_drawn_at_random(rng):
    z = rng.standard_normal((2, 5))
    found = speculative_sample(np.broadcast_to(z, (CHAINS, 2, 5)), None, np.full((CHAINS, 1), 3), seed=3)
    p = scipy.special.softmax(z, -1)
    assert_frequencies(found.tokens[:, 0], p[0])
    assert_frequencies((found.tokens[:, 0] == 3) * 1, np.array([1 - p[0, 3], p[0, 3]]))
    assert np.array_equal(found.num_accepted, (found.tokens[:, 0] == 3) * 1)
    greedy = speculative_sample(
        np.broadcast_to(z, (CHAINS, 2, 5)), np.zeros((CHAINS, 1, 5)), np.full((CHAINS, 1), 3), seed=3,
        draft_options={"temperature": 0},
    )  # fmt: skip
    assert np.array_equal(greedy.tokens, found.tokens)


def test_a_draft_like_the_target_stands_whole(rng):
    z = rng.standard_normal((500, 5, 300)).astype(np.float32) * 20
    x = ll.categorical(z[:, :4], top_k=40, seed=0, offset=np.arange(500)[:, None], step=np.arange(4)).index
    found = speculative_sample(z, z[:, :4], x, top_k=40, seed=0)
    assert (found.num_accepted == 4).all()
    assert np.array_equal(found.tokens[:, :4], x)
    assert (found.acceptance == 1).all()
    last = ll.categorical(z[:, 4], top_k=40, seed=0, step=4)
    assert np.array_equal(found.tokens[:, 4], last.index)
    for name in ("logprob", "sampled_logprob"):
        ours = getattr(found, name)[:, 4]
        laws.assert_within(getattr(last, name), ours, ours, np.float32, terms=300)


def test_a_draft_unlike_the_target_falls_whole(rng):
    z, q = np.full((2, 100, 4, 6), -np.inf)
    z[..., 3:] = rng.standard_normal((100, 4, 3))
    q[..., :3] = 0
    found = speculative_sample(z, q[:, :3], rng.integers(0, 3, (100, 3)), seed=1)
    assert (found.num_accepted == 0).all()
    assert (found.tokens[:, 0] >= 3).all()
    assert (found.tokens[:, 1:] == -1).all()
    assert (found.logprob[:, 1:] == 0).all()
    assert (found.acceptance == 0).all()


def test_roundings_leave_a_token_to_draw():
    """Where p is q but for the last digits, max(p - q, 0) may be all zeros: then p serves."""
    z = np.array([[0.0, 1.0, 2.0]])
    p = scipy.special.softmax(z)
    ones = np.full((1, 2), 1 - 2.0**-53)
    words = _speculative.Words(ones, ones, ones[:, 0])
    weights, u = _speculative.ending(p[None].repeat(2, 1), p[None], p[None].repeat(2, 1), words, np.zeros((1, 1), int))
    assert _draws.draw_masses(weights, u).tolist() == [[2]]
    np.testing.assert_array_equal(weights, p)


def test_a_token_as_likely_as_drafted_stands_however_unlikely():
    """The product of the last uniform and a probability of few digits rounds to that probability."""
    z = np.array([[[0.0, -744.0]]]).repeat(2, 1)
    rules = [_draws.Rules(np.ones(places)) for places in (2, 1)]
    ones = np.full((1, 2), 1 - 2.0**-53)
    words = _speculative.Words(ones, ones, ones[:, 0])
    found = _speculative.verify(z, z[:, :1], np.array([[1]]), words, rules, (_draws.STEPS, _draws.STEPS))
    assert found.accepted.tolist() == [1]
    assert found.acceptance.tolist() == [[1.0]]


def test_greedy_verification(rng):
    z = rng.integers(0, 4, (300, 4, 5)).astype(float)  # many ties: the first of the largest counts
    best = z.argmax(-1)
    x = np.where(rng.random((300, 3)) < 0.7, best[:, :3], rng.integers(0, 5, (300, 3)))
    found = speculative_sample(z, rng.standard_normal((300, 3, 5)), x, temperature=0)
    agree = np.cumprod(x == best[:, :3], -1).sum(-1)
    assert np.array_equal(found.num_accepted, agree)
    assert len(set(agree)) == 4
    for tokens, row, n in zip(found.tokens, best, agree, strict=True):
        assert tokens.tolist() == [*row[: n + 1], *[-1] * (3 - n)]
    assert (found.sampled_logprob == 0).all()


def test_a_chain_does_not_depend_on_the_others(rng):
    z, q = rng.standard_normal((7, 4, 50)), rng.standard_normal((7, 3, 50))
    seeds, steps, t = rng.integers(0, 1 << 62, 7), rng.integers(0, 1 << 31, 7), rng.random(7) + 0.5
    k = rng.integers(0, 50, 7)
    x = ll.categorical(q, temperature=t[:, None], top_k=k[:, None], seed=9).index
    whole = speculative_sample(z, q, x, temperature=t, top_k=k, seed=seeds, step=steps)
    assert len(set(whole.num_accepted)) > 1
    for i in range(7):
        one = speculative_sample(z[i], q[i], x[i], temperature=t[i], top_k=k[i], seed=int(seeds[i]), step=int(steps[i]))
        for a, b in zip(whole, one, strict=True):
            np.testing.assert_array_equal(a[i], b)
    turned = speculative_sample(*(each[::-1] for each in (z, q, x)), temperature=t[::-1], top_k=k[::-1],
                                seed=seeds[::-1], step=steps[::-1])  # fmt: skip
    for a, b in zip(whole, turned, strict=True):
        np.testing.assert_array_equal(a[::-1], b)


def test_seeds_offsets_and_steps_are_those_of_plain_draws(rng):
    """Without a draft there is nothing to check, and the token is the one that categorical draws."""
    z = rng.standard_normal((40, 1, 30)) * 3
    empty = np.zeros((40, 0, 30)), np.zeros((40, 0), int)
    for key in [{"seed": 3}, {"seed": 3, "offset": 8}, {"seed": np.arange(40), "step": 7}]:
        found, plain = speculative_sample(z, *empty, top_p=0.9, **key), ll.categorical(z[:, 0], top_p=0.9, **key)
        assert np.array_equal(found.tokens[:, 0], plain.index)
        for name in ("logprob", "sampled_logprob"):
            ours = getattr(found, name)[:, 0]
            laws.assert_within(getattr(plain, name), ours, ours, np.float64, terms=30)
        assert found.num_accepted.tolist() == [0] * 40


def test_shapes_and_types():
    for shape, k, dtype in itertools.product([(), (3,), (2, 3), (0,)], [0, 1, 4], [np.float16, np.float32, np.float64]):
        z, q = np.zeros((*shape, k + 1, 5), dtype), np.zeros((*shape, k, 5), dtype)
        found = speculative_sample(z, q, np.zeros((*shape, k), np.int32), seed=0)
        kind = np.float64 if dtype == np.float64 else np.float32
        assert [np.shape(each) for each in found] == [
            (*shape, k + 1),
            shape,
            (*shape, k + 1),
            (*shape, k + 1),
            (*shape, k),
        ]
        assert [each.dtype for each in found] == [np.int64, np.int64, kind, kind, kind]


def test_generators():
    z, q, x = np.zeros((20, 3, 9)), np.zeros((20, 2, 9)), np.zeros((20, 2), int)
    a, b = (speculative_sample(z, q, x, rng=np.random.default_rng(4)).tokens for _ in range(2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, speculative_sample(z, q, x, rng=5).tokens)
    assert not np.array_equal(*(speculative_sample(z, q, x).tokens for _ in range(2)))


def bad(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


Z, Q, X = np.zeros((2, 3, 4)), np.zeros((2, 2, 4)), np.zeros((2, 2), int)


@pytest.mark.parametrize(
    ("args", "options", "error", "match"),
    [
        ((Z[0, 0], Q, X), {}, ValueError, r"target_logits has shape \(4,\), expected"),
        ((Z[:, :0], Q, X), {}, ValueError, "there must be a place and a class"),
        ((Z[..., :0], Q[..., :0], X), {}, ValueError, "there must be a place and a class"),
        ((Z, Q[:, :1], X), {}, ValueError, r"draft_logits has shape \(2, 1, 4\), expected \(2, 2, 4\)"),
        ((Z, Q[..., :3], X), {}, ValueError, r"draft_logits has shape \(2, 2, 3\), expected \(2, 2, 4\)"),
        ((Z, Q, X[:1]), {}, ValueError, r"draft_tokens has shape \(1, 2\), expected \(2, 2\)"),
        ((Z, Q, bad(X, (1, 0), 4)), {}, IndexError, r"draft_tokens\[1, 0\] = 4 is outside \[0, 4\)"),
        ((Z, Q, bad(X, (0, 1), -1)), {}, IndexError, r"draft_tokens\[0, 1\] = -1 is outside \[0, 4\)"),
        ((Z, Q, X * 1.0), {}, TypeError, "draft_tokens has dtype float64, expected integers"),
        ((bad(Z, (1, 2, 0), np.nan), Q, X), {}, ValueError, r"target_logits\[1, 2\] has the largest logit nan"),
        ((Z, bad(Q, (0, 1, 3), np.inf), X), {}, ValueError, r"draft_logits\[0, 1\] has the largest logit inf"),
        ((Z, bad(Q, (0, 1), -np.inf), X), {}, ValueError, r"draft_logits\[0, 1\] has the largest logit -inf"),
        ((Z, bad(Q, (1, 1, 0), -np.inf), X), {}, ValueError, r"draft_tokens\[1, 1\] = 0 has the probability 0 under"),
        ((Z, bad(Q, (0, 0, 2), 1), X), {"top_k": 1}, ValueError, r"draft_tokens\[0, 0\] = 0 has the probability 0"),
        ((Z, Q, X), {"temperature": -1}, ValueError, "temperature = -1"),
        ((Z, Q, X), {"top_p": [0.5, 2]}, ValueError, r"top_p\[1\] = 2.0 must lie in \[0, 1\]"),
        ((Z, Q, X), {"top_p": [0.5] * 3}, ValueError, "does not broadcast to the rows"),
        ((Z, Q, X), {"draft_options": {"seed": 1}}, TypeError, "draft_options has an unexpected key 'seed'"),
        ((Z, Q, X), {"draft_options": {"min_p": 2}}, ValueError, "min_p = 2"),
        ((Z, Q, X), {"seed": 1, "rng": 1}, ValueError, "seed and rng are both given"),
        ((Z, Q, X), {"seed": 1, "step": (1 << 32) - 1}, ValueError, r"step\[0\] = 4294967296 must lie in"),
    ],
)
def test_malformed_calls_raise(args, options, error, match):
    with pytest.raises(error, match=match):
        speculative_sample(*args, **options)
