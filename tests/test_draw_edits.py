"""The laws of edits: bias, penalties and bans change single logits as a model of one row does, and nothing else."""

from __future__ import annotations

from typing import Any

import laws
import ml_dtypes
import numpy as np
import pytest
import sampling_models as models
import scipy.special
from draw_laws import assert_frequencies

import lastlayer as ll
from lastlayer import _backends, sampling

TYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
NAN, INF, EPS = np.nan, np.inf, np.finfo(np.float64).eps


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Each backend in turn, named by the user."""
    module = getattr(_backends, request.param)
    if module is None:
        pytest.skip("the native module is not built")
    monkeypatch.setenv("LASTLAYER_BACKEND", request.param)
    return module


def assert_equal(some: Any, others: Any) -> None:
    """Two samples are the same, to the bit."""
    for name, a, b in zip(sampling.Sample._fields, some, others, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def edited_rows(rng: np.random.Generator, z: Any) -> tuple[dict[str, Any], Any]:
    """Return arguments that change the logits of all rows, and the logits that they make, by a model of one row."""
    rows, classes = z.shape
    tokens, prompt = rng.integers(-3, classes, (rows, 9)), rng.integers(-3, classes, (rows, 5))
    tokens[:, 3] = tokens[:, 4]
    tokens[0], prompt[1] = -1, -100
    penalties = {
        "repetition_penalty": rng.uniform(0.5, 2.5, rows),
        "presence_penalty": rng.uniform(-1, 2, rows),
        "frequency_penalty": rng.uniform(-1, 1, rows),
    }
    bias = rng.integers(0, rows, 30), rng.integers(0, 6, 30), rng.normal(size=30) * 3
    bias[2][:3] = -INF
    bans = rng.integers(0, rows, 10), rng.integers(0, classes, 10)
    made = [
        models.edited(
            row,
            bias=[(j, value) for i, j, value in zip(*bias, strict=True) if i == n],
            tokens=tokens[n],
            prompt=prompt[n],
            repetition=penalties["repetition_penalty"][n],
            presence=penalties["presence_penalty"][n],
            frequency=penalties["frequency_penalty"][n],
            bans=[j for i, j in zip(*bans, strict=True) if i == n],
        )
        for n, row in enumerate(z.astype(np.float64))
    ]
    arguments = {**penalties, "token_ids": tokens, "prompt_ids": prompt, "logit_bias": bias, "bans": bans}
    return arguments, np.array(made)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("classes", [20, 1500])
def test_edits_equal_a_model_of_one_row(dtype, classes, rng):
    z = (rng.standard_normal((12, classes)) * 2).astype(dtype)
    z[3, 7], z[4, :5] = -INF, -INF
    arguments, made = edited_rows(rng, z)
    kind = np.float64 if dtype == np.float64 else np.float32
    for numbers in ({}, {"temperature": 0.6}, {"top_k": 6, "temperature": 0.6}):
        sample = ll.categorical(z, 40, seed=2, **arguments, **numbers)
        alone = ll.categorical(made.astype(kind), 40, seed=2, **numbers)
        for name in ("index", "kept"):
            assert np.array_equal(getattr(sample, name), getattr(alone, name)), name
        laws.assert_within(sample.sampled_logprob, alone.sampled_logprob, alone.sampled_logprob, kind, terms=classes)
        plain = ll.categorical(z, 40, seed=2)  # what is said of the model is said of its own logits
        assert np.array_equal(sample.logsumexp, plain.logsumexp)
        own = np.take_along_axis(scipy.special.log_softmax(z.astype(np.float64), -1), sample.index, -1)
        laws.assert_within(sample.logprob, own, own, kind, terms=classes, size=np.abs(made[made > -INF]).max())


def test_each_edit_alone(rng):
    z = (rng.standard_normal((12, 50)) * 2).astype(np.float32)
    arguments, _ = edited_rows(rng, z)
    tokens, prompt = arguments["token_ids"], arguments["prompt_ids"]
    every = {
        "repetition": {"repetition_penalty": 1.7, "token_ids": tokens},
        "prompt": {"repetition_penalty": 1.7, "prompt_ids": prompt},
        "both": {"repetition_penalty": 1.7, "token_ids": tokens, "prompt_ids": prompt},
        "presence": {"presence_penalty": 0.8, "token_ids": tokens, "prompt_ids": prompt},
        "frequency": {"frequency_penalty": -0.8, "token_ids": tokens},
        "bias": {"logit_bias": arguments["logit_bias"]},
        "bans": {"bans": arguments["bans"]},
        "one ban for all": {"bans": (np.arange(12), 4)},
    }
    names = {"repetition_penalty": "repetition", "presence_penalty": "presence", "frequency_penalty": "frequency"}
    for what, given in every.items():
        made = []
        for n, row in enumerate(z.astype(np.float64)):
            places = {key: np.broadcast_arrays(*given[key]) for key in ("logit_bias", "bans") if key in given}
            mine = {key: [field[place[0] == n] for field in place[1:]] for key, place in places.items()}
            more = {names[key]: value for key, value in given.items() if key in names}
            more |= {"tokens": tokens[n]} if "token_ids" in given else {}
            more |= {"prompt": prompt[n]} if "prompt_ids" in given else {}
            more |= {"bias": list(zip(*mine["logit_bias"], strict=True))} if "logit_bias" in mine else {}
            more |= {"bans": mine["bans"][0]} if "bans" in mine else {}
            made.append(models.edited(row, **more))
        sample = ll.categorical(z, 30, seed=2, **given)
        alone = ll.categorical(np.array(made, np.float32), 30, seed=2)
        assert np.array_equal(sample.index, alone.index), what
        assert np.array_equal(sample.sampled_logprob, alone.sampled_logprob), what


def test_bias_that_names_a_place_twice_adds_up(rng):
    z = rng.standard_normal((2, 30)).astype(np.float64)
    twice = ll.categorical(z, 200, seed=1, logit_bias=([1, 0, 1], [3, 3, 3], [0.5, 0.25, 0.5]))
    z[0, 3] += 0.25
    z[1, 3] += 1.0
    assert np.array_equal(twice.index, ll.categorical(z, 200, seed=1).index)


def test_repetition_penalty_is_that_of_transformers(rng):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("transformers.generation.logits_process")
    z, ids = rng.standard_normal((10, 60)) * 3, rng.integers(0, 60, (10, 15))
    for penalty in (0.5, 1.0, 1.3, 5.0):
        theirs = hf.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(ids), torch.tensor(z)).numpy()
        sample = ll.categorical(z, 50, seed=1, repetition_penalty=penalty, token_ids=ids)
        assert np.array_equal(sample.index, ll.categorical(theirs, 50, seed=1).index)


def test_rows_are_counted_through_all_dimensions(rng):
    z = rng.standard_normal((2, 3, 40))
    sample = ll.categorical(z, 20, seed=1, bans=([4, 5], [7, 8]), logit_bias=(0, [1, 2], 9.0))
    z[1, 1, 7] = z[1, 2, 8] = -INF
    z[0, 0, 1:3] += 9.0
    assert np.array_equal(sample.index, ll.categorical(z, 20, seed=1).index)


def test_a_banned_class_is_never_drawn(rng):
    z = rng.standard_normal(40).astype(np.float32)
    banned = np.array([0, 5, int(z.argmax()), 39])
    index = ll.categorical(z, 1_000_000, seed=3, bans=(0, banned)).index
    assert not np.isin(index, banned).any()
    probs = scipy.special.softmax(np.where(np.isin(np.arange(40), banned), -INF, z.astype(np.float64)))
    assert_frequencies(np.bincount(index, minlength=40), probs)


def test_the_mass_that_bans_leave_has_its_digits():
    for gap in (1.0, 20.0, 40.0):
        sample = ll.categorical([gap, 0.0, 0.0, 0.0], seed=1, bans=(0, 0))
        np.testing.assert_allclose(sample.kept_mass, 3 / (3 + np.exp(gap)), rtol=(2 * gap + 8) * EPS)


NO_EDIT = [
    {"token_ids": np.zeros((2, 0), int), "presence_penalty": 1.0},
    {"token_ids": [[-1, -1], [-1, -5]], "frequency_penalty": 2.0},
    {"token_ids": [], "repetition_penalty": 2.0},
    {"logit_bias": ([], [], [])},
    {"bans": ([], [])},
]


@pytest.mark.parametrize("empty", NO_EDIT, ids=str)
def test_nothing_to_edit(empty, rng):
    z = rng.standard_normal((2, 9))
    assert_equal(ll.categorical(z, 4, seed=1, **empty), ll.categorical(z, 4, seed=1))


def test_edits_decide_about_rows(rng):
    """Bans can empty a row; they do not mend one that has NaN, and no bias lifts a logit of -inf."""
    with pytest.raises(ValueError, match=r"row\[1\] of input has no logit above -inf"):
        ll.categorical(np.zeros((2, 2)), seed=0, bans=([1, 1], [0, 1]))
    with pytest.raises(ValueError, match="the row of input has NaN"):
        ll.categorical([NAN, 0.0], seed=0, bans=(0, 0))
    assert ll.categorical([-INF, -5.0], seed=0, logit_bias=(0, 0, 100.0)).index == 1
