"""Every number that a lesson shows is the library's, whatever the reader put in."""

from __future__ import annotations

import json
import math
from decimal import Decimal

import numpy as np
import pytest

import lastlayer
from lastlayer import information, likelihood
from lastlayer.learn import api
from lastlayer.learn.lesson import Choice, Mistake, Numbers
from lastlayer.learn.lessons import LESSONS, logsumexp, objectives
from lastlayer.learn.notation import show

BY_SLUG = {lesson.slug: lesson for lesson in LESSONS}


def ask(slug, **given):
    """Return an answer as the page gets it, after a trip through JSON that allows no NaN and no infinity."""
    return json.loads(json.dumps(api.answer(slug, json.loads(json.dumps(given))), allow_nan=False))


def numbers(found):
    return [float(each["value"]) for each in found["numbers"]]


def bars(found, title):
    figure = next(figure for figure in found["figures"] if figure["title"].startswith(title))
    return [[float(value) for value in series["values"]] for series in figure["series"]]


def same(found, expected):
    np.testing.assert_array_equal(np.asarray(found, float), np.asarray(expected, float))


def attempt(slug, given):
    """Return what is wrong with a state, or None, and the answer to it."""
    try:
        return None, ask(slug, **given)
    except Mistake as mistake:
        return mistake, {"numbers": []}


def extremes(field):
    """Return states of a field at its ends."""
    if isinstance(field, Choice):
        return list(field.options)
    low, high = field.min if field.low is None else field.low, field.max if field.high is None else field.high

    def filled(value, default):
        return [filled(value, each) for each in default] if isinstance(default, tuple) else value

    return [filled(value, field.default) for value in (field.min, field.max, low, high)]


def test_there_are_ten_with_names_of_their_own():
    assert len({lesson.slug for lesson in LESSONS}) == len(LESSONS) == 10


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.slug)
def test_every_field_may_be_at_its_ends(lesson):
    for field in lesson.fields:
        for value in extremes(field):
            mistake, found = attempt(lesson.slug, {field.name: value})
            if mistake is not None:
                assert mistake.field == field.name
                assert "\n" not in str(mistake)
            for each in found["numbers"]:
                assert isinstance(each["value"], str) or each["text"] == show(each["value"]), each


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.slug)
def test_every_state_to_try_has_an_answer_and_differs_or_is_the_default(lesson):
    for label, state in lesson.tries:
        assert label
        assert set(state) <= {field.name for field in lesson.fields}
        assert ask(lesson.slug, **state)["figures"]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.slug)
def test_every_figure_says_in_words_what_it_shows(lesson):
    for figure in ask(lesson.slug)["figures"]:
        assert figure["title"]
        if figure["kind"] == "bars":
            for series in figure["series"]:
                assert all(words in figure["alt"] for words in series["texts"]), figure["alt"]
        if figure["kind"] == "heat":
            assert all(words in figure["alt"] for row in figure["texts"] for words in row)


def test_odds():
    found = ask("odds", p=0.3, scores=[1, 2, 3])
    x = float(lastlayer.logit(0.3))
    same(numbers(found), [x, np.exp(lastlayer.logit(0.3)), lastlayer.sigmoid(x), lastlayer.log_sigmoid(x)])
    scores, against = bars(found, "Three scores")
    same(scores, [1, 2, 3])
    same(against[0], 1.0 - lastlayer.logsumexp([2.0, 3.0]))
    # What the prose claims: that is the logit of the softmax, up to the rounding of the probability, eps / (1 - p).
    assert against == pytest.approx(lastlayer.logit(lastlayer.softmax([1.0, 2.0, 3.0])), rel=1e-14)


def test_softmax():
    z = np.array([0.5, -1.0, 2.0])
    found = ask("softmax", logits=z.tolist(), temperature=0.7, constant=300)
    p = lastlayer.softmax((z + 300) / 0.7)
    same(bars(found, "Probabilities")[0], p)
    same(numbers(found), [p[2], p.sum(), 2, p[0] / p[2]])


def test_softmax_corrects_what_is_often_copied():
    note = BY_SLUG["softmax"].notes[0][1]
    assert "0.186, 0.689, 0.125" in note
    assert "0.1848, 0.6782, 0.1369" in note


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("logits", [[20, 0], [1000, 1000], [-120, 0], [0.3, 0], [2000, -2000]])
def test_log_softmax(dtype, logits):
    found = ask("logsumexp", logits=logits, dtype=dtype)
    z = np.array(logits, dtype)
    with np.errstate(divide="ignore"):
        naive = np.log(lastlayer.softmax(z)[0])
    same(numbers(found)[:3], [lastlayer.log_softmax(z)[0], naive, lastlayer.logsumexp(z)])


def test_the_exact_logarithm_is_exact():
    """Against -log1p(exp(-d)) in float64, which has at most two roundings of eps, 2.2e-16, each."""
    for z in ([20.0, 0.0], [0.3, 0.0], [-5.0, 1.0]):
        expected = -np.logaddexp(0.0, z[1] - z[0])
        assert float(logsumexp._exact(np.array(z))) == pytest.approx(expected, rel=1e-15)
    # Where float64 has no room for the 1 beside exp(-100), the answer is exp(-100) itself.
    ratio = logsumexp._exact(np.array([100.0, 0.0])) / -Decimal(-100).exp()
    assert abs(ratio - 1) < Decimal("1e-25")


def test_digits_count_what_is_right():
    assert logsumexp._digits(1.001, Decimal(1)) == pytest.approx(3.0)
    assert logsumexp._digits(math.inf, Decimal(1)) == 0
    assert logsumexp._digits(0.0, Decimal("-2e-9")) == 0


def test_likelihood():
    found = ask("likelihood", heads=4, tails=2, p=0.25)
    same(
        numbers(found),
        [
            likelihood.binomial.likelihood(4, 6, 0.25),
            likelihood.binomial.nll(4, 6, 0.25),
            likelihood.binomial.nll(4, 6, 0.25, unit="bits"),
            4 / 6,
        ],
    )
    same(bars(found, "p fixed")[0], [likelihood.binomial.likelihood(k, 6, 0.25) for k in range(7)])
    rows = found["figures"][-1]["rows"]
    assert rows[0][2] == rows[0][3] == show(likelihood.normal.nll([0.5, 0, 2], [0.0] * 3, 0.7))
    assert rows[1][2] == rows[1][3] == show(likelihood.laplace.nll([0.5, 0, 2], [0.0] * 3, 0.7))


def test_no_throws_are_told_at_the_field():
    with pytest.raises(Mistake, match="at least one throw") as caught:
        api.answer("likelihood", {"heads": 0, "tails": 0})
    assert caught.value.field == "heads"


@pytest.mark.parametrize("unit", ["nats", "bits"])
def test_surprise(unit):
    p = np.array([1, 2, 3, 0, 4]) / 10
    found = ask("surprise", sweets=[1, 2, 3, 0, 4], drawn="blue", unit=unit)
    same(bars(found, "Surprise at")[0], lastlayer.surprisal(p, unit=unit))
    same(
        numbers(found),
        [
            lastlayer.surprisal(p[2], unit=unit),
            lastlayer.entropy(p, unit=unit),
            lastlayer.entropy([0.2] * 5, unit=unit),
            0.3,
        ],
    )


def test_distributions():
    p, q = np.array([1, 1, 2, 0, 0]) / 4, np.array([2, 1, 1, 0, 4]) / 8
    found = ask("distributions", truth=[1, 1, 2, 0, 0], belief=[2, 1, 1, 0, 4])
    same(
        numbers(found),
        [
            information.cross_entropy(p, q),
            lastlayer.entropy(p),
            information.kl_divergence(p, q),
            information.kl_divergence(q, p),
        ],
    )


def test_a_belief_that_excludes_what_happens_costs_without_limit():
    assert numbers(ask("distributions", belief=[0, 1, 1, 1, 1]))[0] == math.inf


def test_loss():
    rng = np.random.default_rng(7)
    z, y = rng.normal(size=(2, 3, 4)).round(2), rng.integers(0, 4, (2, 3))
    found = ask("loss", logits=z.reshape(6, 4).tolist(), targets=y.ravel().tolist(), row="5")
    value, gradient = lastlayer.cross_entropy_value_and_grad(z, y)
    same(numbers(found)[:2], [value, lastlayer.nll_loss(lastlayer.log_softmax(z), y)])
    same(found["figures"][2]["values"], gradient.reshape(6, 4))
    own = bars(found, "Gradient of row [1, 2]")[0]
    # p - y and six times the mean's gradient differ by the roundings of both: 8 eps of values up to 1.
    assert own == pytest.approx(6 * gradient[1, 2], abs=8 * 2.3e-16)


def test_mistakes():
    found = ask("mistakes")
    assert [each["text"] for each in found["numbers"][:2]] == ["1.3743", "−0.3123"]
    right, wrong = bars(found, "Right and wrong")
    z, y = np.array([[1, 2, 0.1], [1.2, 0.5, 0.3], [0.4, 1, 1.5]]), np.array([2, 0, 1])
    each = lastlayer.cross_entropy(z, y, reduction="none")
    loss = lastlayer.cross_entropy(z, y)
    same(right, [loss, loss, loss, lastlayer.cross_entropy(z, [2, 0, -100]), loss])
    same(
        wrong,
        [
            -lastlayer.softmax(z)[np.arange(3), y].mean(),
            lastlayer.cross_entropy(lastlayer.softmax(z), y),
            lastlayer.nll_loss(lastlayer.log_softmax(z, axis=0), y),
            loss,
            (each[0] + each[1:].mean()) / 2,
        ],
    )


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.3},
        {"top_k": 4, "top_p": 0.8, "min_p": 0.1},
        {"temperature": 0.5, "top_p": 0.9},
        {"temperature": 0},
        {"logits": [1, 1, 1, 1, 0, 0], "top_k": 2},
    ],
)
def test_draws(rules):
    found = ask("draws", draws="10000", seed=3, **rules)
    z = np.array(rules.get("logits", [2.5, 1.9, 1.2, 0.4, -0.8, -2.0]))
    given = {name: value for name, value in rules.items() if name != "logits"}
    drawn = lastlayer.categorical(z, 10_000, seed=3, **given)
    shares = np.bincount(drawn.index, minlength=6) / 10_000
    same(bars(found, "Shares")[0], shares)
    _, kept = bars(found, "The model's own")
    # The distribution shown is the one that was drawn from: both are softmax, of one set of classes, 8 eps apart.
    assert np.array(kept)[drawn.index] == pytest.approx(np.exp(drawn.sampled_logprob), rel=1e-14)
    assert sum(kept) == pytest.approx(1, abs=1e-14)
    assert numbers(found)[0] == np.abs(shares - kept).max()


@pytest.mark.parametrize("kind", objectives.LOSSES)
def test_four_numbers_are_the_gradient(kind):
    given = {"loss": kind, "logits": [0.3, -1.0, 2.0, 0.1], "target": 1, "focus": 1.5, "bonus": 0.7, "weight": 3.0}
    found = ask("objectives", **given)
    z, y, h = np.array(given["logits"]), 1, 1e-5
    shown = np.array(bars(found, "Gradient")[1])

    def loss(logits):
        return numbers(ask("objectives", **{**given, "logits": logits.tolist()}))[0]

    slope = [(loss(z + h * unit) - loss(z - h * unit)) / (2 * h) for unit in np.eye(4)]
    # Central differences: h^2 of third derivatives below 100, and eps / h of the loss's rounding.
    assert shown == pytest.approx(np.array(slope), abs=100 * h**2 + 10 * 2.3e-16 / h)
    state = BY_SLUG["objectives"].read(given)
    s = lastlayer.logit_statistics(z, y, entropy=True)
    alpha, beta, gamma, delta = objectives._four(s, objectives._losses(s, state)[kind])
    logs = lastlayer.log_softmax(z)
    by_hand = np.exp(logs) * (alpha + beta * logs) + gamma * np.eye(4)[y] + delta / 4
    assert shown == pytest.approx(by_hand, abs=1e-14)


@pytest.mark.parametrize(
    ("kind", "keywords"),
    [("plain", {}), ("smoothing", {"label_smoothing": 0.25}), ("weights", {"weight": [1, 3, 1, 1]})],
)
def test_the_losses_that_cross_entropy_has_are_its_own(kind, keywords):
    found = ask("objectives", loss=kind, smoothing=0.25, weight=3)
    expected = lastlayer.cross_entropy([1.2, 2.5, 0.9, -0.4], 1, reduction="sum", **keywords)
    assert numbers(found)[0] == pytest.approx(float(expected), rel=1e-15)


def field():
    return Numbers("z", "Logits", (1.0, 2.0), -5, 5, 0.1, low=-10)


@pytest.mark.parametrize(
    ("value", "message", "index"),
    [
        ([1, "a"], "z[1]: expected a number from −10 to 5, got 'a'", (1,)),
        ([1, ""], "z[1]: expected a number from −10 to 5, got nothing", (1,)),
        ([1, None], "z[1]: expected a number from −10 to 5, got nothing", (1,)),
        ([-11, 0], "z[0]: expected a number from −10 to 5, got −11", (0,)),
        (["nan", 0], "z[0]: expected a number from −10 to 5, got 'nan'", (0,)),
        (["-inf", 0], "z[0]: expected a number from −10 to 5, got −∞", (0,)),
        ([math.inf, 0], "z[0]: expected a number from −10 to 5, got ∞", (0,)),
        ([True, 0], "z[0]: expected a number from −10 to 5, got 'True'", (0,)),
        ([1], "z: expected 2 numbers, got a list of 1", ()),
        ("1", "z: expected 2 numbers, got '1'", ()),
    ],
)
def test_a_value_that_does_not_fit_is_told_in_one_line(value, message, index):
    with pytest.raises(Mistake) as caught:
        field().read(value)
    assert (str(caught.value), caught.value.field, caught.value.index) == (message, "z", index)


def test_what_fits_is_read():
    assert field().read(["-1.5", 3]) == [-1.5, 3.0]
    assert field().read(["−1.5", " 2e0 "]) == [-1.5, 2.0]


def test_whole_numbers_and_unknown_names():
    with pytest.raises(Mistake, match=r"heads: expected a whole number from 0 to 40, got 1\.5"):
        api.answer("likelihood", {"heads": 1.5})
    with pytest.raises(Mistake, match="'tail' is no field of the lesson likelihood, which has heads, tails"):
        api.answer("likelihood", {"tail": 1})
    with pytest.raises(Mistake, match="loss: expected one of plain, smoothing"):
        api.answer("objectives", {"loss": "none"})
