"""One run from text to report; everything it finds is in one dictionary, which results.json and the page both show.

What depends on the clock is kept under "timing" and "head"; the rest is the same to the bit for the same --seed and
--steps on the same machine.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lastlayer
from lastlayer import _backends
from lastlayer.demo import corpus as corpora
from lastlayer.demo import evaluate, measure, report, terminal, train
from lastlayer.demo.corpus import Corpus
from lastlayer.demo.model import LanguageModel
from lastlayer.demo.options import DemoError, Options
from lastlayer.demo.train import Training


def check_writable(out: Path) -> None:
    """Make the output directory, or say why nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise DemoError(f"cannot write to {out}: {error.strerror}") from None


def settings(options: Options, corpus: Corpus, model: LanguageModel) -> dict[str, Any]:
    """Return what was trained on what."""
    return {
        "text": corpus.name,
        "text_bytes": corpus.bytes,
        "training_tokens": len(corpus.training),
        "vocab_size": corpus.vocab_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch_size": options.batch_size,
        "context": options.context,
        "width": options.width,
        "layers": options.layers,
        "seed": options.seed,
        "steps_asked": options.steps,
        "seconds_asked": options.seconds if options.steps is None else None,
    }


def machine() -> dict[str, Any]:
    """Return what computed: versions, threads, and the backend of the last layer."""
    return {
        "lastlayer": lastlayer.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch_threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "backend": _backends.choose(torch.empty(1, 1)).__name__.rsplit(".", 1)[-1],
    }


def held_out(corpus: Corpus, nats: Tensor) -> dict[str, Any]:
    """Return the score of the model and of the unigram baseline, over the same tokens."""
    scores = {
        "model": evaluate.score(corpus, nats),
        "unigram": evaluate.score(corpus, -corpus.unigram()[corpus.scored]),
    }
    numbers = {
        name: {
            "nats": score.nats,
            "nats_per_token": score.nats_per_token,
            "bits_per_byte": score.bits_per_byte,
            "perplexity": score.perplexity,
        }
        for name, score in scores.items()
    }
    return {"tokens": len(nats), "bytes": corpus.scored_bytes, **numbers}


def measured_heads(model: LanguageModel, corpus: Corpus, options: Options) -> list[dict[str, Any]]:
    """Measure the heads on hidden states and weights of this very model, then on the larger shape."""
    window = train.batch(corpus.training, options, torch.Generator().manual_seed(options.seed))
    with torch.no_grad():
        hidden = model.eval()(window[:, :-1]).flatten(0, 1)
    larger = measure.random_inputs(options.measure_shape)
    own = measure.Inputs(hidden, model.weight.detach(), window[:, 1:].flatten())
    return [
        measure.compare(own, options.repeats, "hidden states, weight and targets of this model"),
        measure.compare(larger, options.repeats, "h normal, W normal with standard deviation 0.02"),
    ]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def learn(corpus: Corpus, options: Options) -> tuple[LanguageModel, Training]:
    """Train a model, telling on stderr how it goes."""
    with seeded(options.seed):
        model = LanguageModel(corpus.unigram(), options.width, options.layers)

        def held_out_nats() -> float:
            return evaluate.score(corpus, evaluate.token_nats(model, corpus.held_out, options.context)).nats_per_token

        with terminal.progress() as watcher:
            training = train.train(model, corpus, options, held_out_nats, watcher)
    if training.interrupted:
        terminal.note(f"stopped by Ctrl-C after {training.steps} steps; going on with what was learned (again to quit)")
    return model, training


def collect(corpus: Corpus, model: LanguageModel, training: Training, options: Options) -> dict[str, Any]:
    """Evaluate and draw; return all results but the measured heads."""
    nats = evaluate.token_nats(model, corpus.held_out, options.context)
    training.held_out.append((training.steps, evaluate.score(corpus, nats).nats_per_token))
    samples = [evaluate.sample(model, corpus, options.context, t, options.seed) for t in evaluate.TEMPERATURES]
    tokens = training.steps * options.batch_size * options.context
    return {
        "settings": settings(options, corpus, model),
        "machine": machine(),
        "training": {
            "steps": training.steps,
            "tokens": tokens,
            "interrupted": training.interrupted,
            "curve": train.smoothed(training.nats),
            "held_out": training.held_out,
        },
        "held_out": held_out(corpus, nats),
        "most_surprising": [s._asdict() for s in evaluate.most_surprising(corpus, nats)],
        "most_surprising_known": [s._asdict() for s in evaluate.most_surprising(corpus, nats, least=1)],
        "samples": [s._asdict() for s in samples],
        "timing": {
            "training_seconds": training.seconds,
            "tokens_per_second": tokens / training.seconds if training.steps else None,
        },
        "head": {
            "how_time": measure.HOW_TIME,
            "how_memory": measure.HOW_MEMORY,
            "baseline": measure.BASELINE,
            "shapes": [],
        },
    }


def write(results: dict[str, Any], out: Path) -> None:
    """Write the page, the numbers and the drawn texts."""
    files = {
        "results.json": json.dumps(results, indent=1, ensure_ascii=False) + "\n",
        "report.html": report.page(results),
        "samples.txt": report.samples(results),
    }
    try:
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DemoError(f"cannot write to {out}: {error.strerror}") from None


def run(options: Options) -> int:
    """Do it all; return the exit code: 1 if a head disagreed with the baseline."""
    check_writable(options.out)
    corpus = corpora.load(options)
    terminal.note(
        f"{corpus.name}: {corpus.bytes:,} bytes, {len(corpus.training):,} training tokens of {corpus.vocab_size:,} "
        f"kinds, {len(corpus.scored):,} held out"
    )
    model, training = learn(corpus, options)
    results = collect(corpus, model, training, options)
    write(results, options.out)
    if options.measure:
        terminal.note(f"measuring the heads (N,D,V = {options.measure_shape} takes longest; --no-measure skips this)")
        results["head"]["shapes"] = measured_heads(model, corpus, options)
        write(results, options.out)
    terminal.summary(results, options.out)
    agreed = all(row["agrees"] for shape in results["head"]["shapes"] for row in shape["heads"])
    if not agreed:
        print("lastlayer demo: heads disagree in loss or gradients; see the report", file=sys.stderr)
    return 0 if agreed else 1
