"""generate() with exact draws: the distribution, the log-probabilities and the seeds, on a small random model."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the library and its dependencies say on import is not ours
    transformers = pytest.importorskip("transformers")
    from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList, StoppingCriteria
    from transformers.generation import logits_process

import lastlayer.torch as F  # noqa: E402
from lastlayer.torch.generation import WARPERS, ExactDraws, ExactSampling, split  # noqa: E402

UNLIKELY = 1e-4
SIZE, EOS, PAD = 40, 3, 0
FILTERS = {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95, "epsilon_cutoff": 1e-3}
PLAIN = {"do_sample": True, "top_k": 0}
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
takes_functions = pytest.mark.skipif(VERSION < (4, 56), reason="this transformers takes no function as custom_generate")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=SIZE, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.35,
        bos_token_id=1, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def prompts(*rows):
    """Return prompts of unequal lengths, padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def many(rows, prompt):
    return {
        "input_ids": torch.tensor([prompt] * rows),
        "attention_mask": torch.ones(rows, len(prompt), dtype=torch.int),
    }


def next_logits(model, sequence):
    with torch.no_grad():
        return model(torch.tensor([sequence])).logits[0, -1]


A, B, C = [5, 6, 7, 8, 9], [10, 11], [12, 13, 14]


def assert_frequencies(tokens, p):
    counts = np.bincount(tokens, minlength=p.size).astype(float)
    assert (counts[p == 0] == 0).all()
    rare = p * counts.sum() < 10
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, p * counts.sum()))
    some = expected > 0
    assert scipy.stats.chisquare(counts[some], expected[some]).pvalue > UNLIKELY


def truncated(z, options):
    """Return the softmax that the library's own truncations leave, in float64."""
    scores = z.double()[None]
    for warper, (name, attribute) in WARPERS.items():
        if options.get(name):
            scores = getattr(logits_process, warper)(**{attribute: options[name]})(None, scores)
    return scores.softmax(-1)[0].numpy()


@takes_functions
@pytest.mark.parametrize("options", [PLAIN, {"do_sample": True, **FILTERS}, {**PLAIN, "eta_cutoff": 2e-2}])
def test_the_first_token_has_the_truncated_distribution(model, options):
    sampling = ExactSampling(seed=1)
    found = model.generate(**many(4000, A), max_new_tokens=1, custom_generate=sampling, **options)
    z = next_logits(model, A)
    p = truncated(z, options)
    assert_frequencies(found[:, -1].numpy(), p)
    sample = sampling.sample
    assert torch.equal(sample.index[:, 0], found[:, -1])
    assert (sample.kept == int((p > 0).sum())).all()
    chosen = np.log(p[sample.index[:, 0]])
    error = 8 * SIZE * np.finfo(np.float32).eps * np.abs(z.numpy()).max()
    np.testing.assert_allclose(sample.sampled_logprob[:, 0], chosen, atol=error)


@takes_functions
def test_log_probabilities_are_those_of_the_model(model):
    sampling = ExactSampling(seed=5)
    batch = prompts(A, B, C, A)
    found = model.generate(
        **batch, max_new_tokens=12, custom_generate=sampling, do_sample=True, repetition_penalty=1.3, **FILTERS
    )
    sample, width = sampling.sample, batch["input_ids"].shape[1]
    assert found.shape[1] == width + sample.index.shape[1]
    for row, tokens, prompt in zip(range(4), sample.index, (A, B, C, A), strict=True):
        new = tokens[tokens >= 0].tolist()
        assert found[row, width : width + len(new)].tolist() == new
        assert (found[row, width + len(new) :] == PAD).all()
        for k, token in enumerate(new):
            z = next_logits(model, prompt + new[:k])
            # padding changes the model's own sums, whose logits have this error, and the two differ by no more
            error = 64 * np.finfo(np.float32).eps * float(z.abs().max())
            assert abs(float(torch.log_softmax(z.double(), -1)[token]) - float(sample.logprob[row, k])) < error
            assert abs(float(torch.logsumexp(z.double(), -1)) - float(sample.logsumexp[row, k])) < error
            assert int(sample.rank[row, k]) == 1 + int((z > z[token]).sum())
        past = slice(len(new), None)
        assert all(
            (field[row, past] == 0).all() for name, field in zip(sample._fields, sample, strict=True) if name != "index"
        )


@takes_functions
def test_the_end_of_a_sequence_is_kept_apart(model):
    sampling = ExactSampling(seed=2)
    found = model.generate(**many(300, B), max_new_tokens=8, custom_generate=sampling, **PLAIN, pad_token_id=EOS)
    tokens, new = sampling.sample.index, found[:, len(B) :]
    assert tokens.shape == new.shape
    before = torch.cat([torch.zeros(300, 1, dtype=torch.int), (new == EOS).int()[:, :-1]], -1).cumsum(-1) == 0
    assert int((~before).sum()) > 0
    assert torch.equal(torch.where(before, new, -1), tokens)


@takes_functions
def test_any_stopping_criterion_ends_a_sequence(model):
    class AfterTwo(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([input_ids.shape[1] >= len(B) + 2, False])

    sampling = ExactSampling(seed=2)
    model.generate(
        **many(2, B),
        max_new_tokens=4,
        custom_generate=sampling,
        stopping_criteria=[AfterTwo()],
        suppress_tokens=[EOS],
        **PLAIN,
    )
    assert (sampling.sample.index >= 0).sum(-1).tolist() == [2, 4]


@takes_functions
def test_a_sequence_does_not_depend_on_the_batch(model):
    def tokens(rows, seeds):
        sampling = ExactSampling(seed=seeds)
        model.generate(**prompts(*rows), max_new_tokens=10, custom_generate=sampling, do_sample=True, **FILTERS)
        return [[token for token in row if token >= 0] for row in sampling.sample.index.tolist()]

    whole = tokens([A, B, C, A], [1, 2, 3, 4])
    assert whole[0] != whole[3]
    assert tokens([C, A], [3, 1]) == [whole[2], whole[0]]
    assert [tokens([row], [seed])[0] for seed, row in enumerate([A, B, C, A], 1)] == whole
    assert tokens([A, A], [4, 4]) == [whole[3], whole[3]]


@takes_functions
def test_several_sequences_of_a_prompt(model):
    options = {**PLAIN, "max_new_tokens": 6, "num_return_sequences": 3}
    both = model.generate(**prompts(A, C), custom_generate=ExactSampling(seed=[7, 8]), **options)
    assert len({tuple(row) for row in both[:3].tolist()}) == 3
    one = model.generate(**prompts(A), custom_generate=ExactSampling(seed=[7]), **options)
    assert torch.equal(both[:3, : one.shape[1]], one)
    every = model.generate(**prompts(A, C), custom_generate=ExactSampling(seed=[7] * 6), **options)
    assert torch.equal(every[0], every[1])
    with pytest.raises(ValueError, match=r"seed has shape \(4,\), expected one per prompt, 2, or per row, 6"):
        model.generate(**prompts(A, C), custom_generate=ExactSampling(seed=[7] * 4), **options)


@takes_functions
def test_seeds_and_generators(model):
    def run(**key):
        return model.generate(**many(4, A), max_new_tokens=6, custom_generate=ExactSampling(**key), **PLAIN).tolist()

    assert run(seed=1) == run(seed=1) != run(seed=2)
    one, two = (run(generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert one == two
    torch.manual_seed(4)
    one, other = run(), run()
    torch.manual_seed(4)
    assert one == run() != other
    sampling = ExactSampling(seed=1)
    twice = [model.generate(**many(4, A), max_new_tokens=6, custom_generate=sampling, **PLAIN) for _ in range(2)]
    assert torch.equal(*twice)


@takes_functions
def test_without_sampling_the_largest_logit_comes(model):
    sampling = ExactSampling()
    found = model.generate(**prompts(A, B), max_new_tokens=8, custom_generate=sampling, do_sample=False)
    assert torch.equal(found, model.generate(**prompts(A, B), max_new_tokens=8, do_sample=False))
    assert (sampling.sample.sampled_logprob == 0).all()
    assert (sampling.sample.logprob[:, 0] < 0).all()


@takes_functions
def test_scores_are_the_log_probabilities_of_the_draws(model):
    sampling = ExactSampling(seed=1)
    found = model.generate(
        **many(3, A), max_new_tokens=5, custom_generate=sampling, do_sample=True, output_scores=True,
        output_logits=True, return_dict_in_generate=True, suppress_tokens=[EOS], **FILTERS,
    )  # fmt: skip
    scores = model.compute_transition_scores(found.sequences, found.scores)
    assert torch.equal(scores, sampling.sample.sampled_logprob)
    raw = torch.stack(found.logits, 1).log_softmax(-1).gather(-1, sampling.sample.index[..., None])[..., 0]
    error = 4 * SIZE * np.finfo(np.float32).eps * float(torch.stack(found.logits).abs().max())
    np.testing.assert_allclose(sampling.sample.logprob, raw, atol=error)


@takes_functions
def test_options_of_the_sampler_replace_those_of_the_call(model):
    kept = [
        ExactSampling(seed=1, **options) for options in ({}, {"top_k": 2}, {"top_n_sigma": 0.0}, {"temperature": 0.0})
    ]
    for sampling in kept:
        model.generate(**many(50, A), max_new_tokens=1, custom_generate=sampling, do_sample=True, top_k=5)
    assert [int(sampling.sample.kept.max()) for sampling in kept] == [5, 2, 1, 1]


@pytest.mark.parametrize("options", [PLAIN, {"do_sample": True, "top_k": 4, "top_p": 0.5, "temperature": 0.7}, {}])
def test_a_logits_processor_alone(model, options):
    """What comes after it, the library's own truncation or argmax, finds one token: nothing is truncated twice."""
    draws = ExactDraws(seed=1, **FILTERS)
    found = model.generate(
        **prompts(A, B, C), max_new_tokens=5, logits_processor=LogitsProcessorList([draws]), suppress_tokens=[EOS],
        **options,
    )  # fmt: skip
    assert torch.equal(found[:, len(A) :], draws.sample.index)
    for row, prompt in enumerate([A, B, C]):
        for k, token in enumerate(draws.sample.index[row].tolist()):
            z = next_logits(model, prompt + draws.sample.index[row, :k].tolist())
            z[EOS] = -torch.inf
            one = F.categorical(z, seed=1, offset=row, step=k, **FILTERS)
            assert (token, int(draws.sample.kept[row, k])) == (int(one.index), int(one.kept))


def test_one_processor_serves_one_call(model):
    draws = ExactDraws(seed=1)
    model.generate(**many(2, A), max_new_tokens=2, logits_processor=LogitsProcessorList([draws]), **PLAIN)
    with pytest.raises(ValueError, match=r"input_ids has shape \(2, 5\), expected \(2, 7\): one ExactDraws serves one"):
        model.generate(**many(2, A), max_new_tokens=2, logits_processor=LogitsProcessorList([draws]), **PLAIN)


def test_which_truncations_become_ours():
    class Own(LogitsProcessor):
        pass

    t, k, p = (
        getattr(logits_process, f"{name}LogitsWarper")(number)
        for name, number in [("Temperature", 0.5), ("TopK", 7), ("TopP", 0.9)]
    )
    own, end, two = Own(), logits_process.LogitNormalization(), logits_process.TopKLogitsWarper(3)
    wide = logits_process.MinPLogitsWarper(0.1, min_tokens_to_keep=2)
    numbers = {"temperature": 0.5, "top_k": 7, "top_p": 0.9}
    assert split([]) == ([], {})
    assert split([own]) == ([own], {})
    assert split([own, t, k, p, end]) == ([own], {"order": ("temperature", "top_k", "top_p"), **numbers})
    assert split([p, t, k]) == ([], {"order": ("top_p", "temperature", "top_k"), **numbers})
    assert split([t, own, k]) == ([t, own], {"order": ("top_k",), "top_k": 7})
    assert split([t, wide, k])[0] == [t, wide]
    assert split([k, two, p])[0] == [k]


@takes_functions
def test_a_truncation_that_is_not_ours_stays_the_librarys(model):
    class Three(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.masked_fill_(scores < scores.topk(3).values[:, -1:], -torch.inf)  # in place

    sampling = ExactSampling(seed=1)
    model.generate(
        **many(400, A), max_new_tokens=1, logits_processor=[Three()], custom_generate=sampling, do_sample=True, top_k=20
    )
    assert (sampling.sample.kept == 3).all()
    z = next_logits(model, A)
    assert set(sampling.sample.index[:, 0].tolist()) == set(z.topk(3).indices.tolist())
    error = 4 * SIZE * np.finfo(np.float32).eps * float(z.abs().max())
    np.testing.assert_allclose(
        sampling.sample.logprob[:, 0], z.log_softmax(-1)[sampling.sample.index[:, 0]], atol=error
    )


@takes_functions
def test_malformed_calls_raise(model):
    with pytest.raises(TypeError, match="unexpected option 'repetition_penalty', expected one of temperature"):
        ExactSampling(repetition_penalty=2.0)
    with pytest.raises(TypeError, match="unexpected option 'topk'"):
        ExactDraws(topk=2)
    with pytest.raises(ValueError, match="seed and generator are both given"):
        ExactSampling(seed=1, generator=torch.Generator())
    for empty in (ExactSampling(), ExactDraws()):
        with pytest.raises(RuntimeError, match="nothing has been drawn yet"):
            empty.sample  # noqa: B018
    with pytest.raises(ValueError, match="num_beams = 2: exact draws are for one sequence per row"):
        model.generate(**many(2, A), max_new_tokens=2, custom_generate=ExactSampling(), num_beams=2)
    with pytest.raises(ValueError, match="seed has shape"):
        model.generate(**many(2, A), max_new_tokens=2, custom_generate=ExactSampling(seed=[1, 2, 3]), **PLAIN)


@takes_functions
def test_the_example_runs_as_it_says():
    path = Path(__file__).parents[2] / "examples" / "generate.py"
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < 100
    assert "python examples/generate.py" in text.split('"""')[1]
    found = subprocess.run(
        [sys.executable, "-W", "error", str(path), "6"], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    forward, drawn = re.search(r"forward pass (\d+\.\d+), by the draws (\d+\.\d+)", found.stdout).groups()
    assert float(forward) == pytest.approx(float(drawn), abs=2e-4)  # the last digit printed of each
