"""The programs in examples/ run as their docstrings say, and what they print is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

EXAMPLES = Path(__file__).parents[1] / "examples"
NUMBER = r"-?\d+\.\d+"


def run(name: str, steps: int) -> str:
    """Return what an example prints; warnings are errors there too."""
    found = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), str(steps)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout


def table(printed: str) -> list[list[float]]:
    """Return the lines of numbers that begin with a step."""
    lines = re.findall(rf"^ *\d+(?: +{NUMBER})+", printed, re.MULTILINE)
    return [[float(number) for number in line.split()] for line in lines]


def test_supervised_fine_tuning_equals_the_dense_way_and_learns() -> None:
    printed = run("sft_loss.py", 12)
    dense, ours, apart = re.search(
        rf"loss ({NUMBER}), ours ({NUMBER}); gradients differ by ([^,\s]+)", printed
    ).groups()
    assert float(dense) == pytest.approx(float(ours), rel=1e-6)
    assert float(apart) < 1e-5
    before, after = (float(number) for number in re.findall(rf"held out .*perplexity=({NUMBER})", printed))
    assert after < before / 2
    count, positions = (int(number) for number in re.search(r"(\d+) words of (\d+) positions", printed).groups())
    assert count < positions
    mib = float(re.search(rf"its logits +({NUMBER}) MiB", printed)[1])
    assert mib == pytest.approx(positions * 4000 * 4 / 2**20, abs=0.05)


def test_the_reward_of_grpo_rises_as_the_policy_leaves_the_reference() -> None:
    rows = table(run("grpo_step.py", 10))
    steps, rewards, entropies, divergences = zip(*rows, strict=True)
    assert steps == (0, 2, 4, 6, 8, 10)
    assert rewards[-1] > rewards[0] + 0.1
    assert 0 < entropies[-1] < entropies[0]
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert divergences[-1] > 0


def test_dpo_starts_at_log_2_and_its_margin_rises() -> None:
    rows = table(run("dpo.py", 15))
    steps, losses, margins, held_out = zip(*rows, strict=True)
    assert steps[-1] == 15
    assert (losses[0], margins[0], held_out[0]) == (0.6931, 0, 0)
    assert losses[-1] < losses[0]
    assert margins[-1] > 0 < held_out[-1]


def test_distillation_from_the_top_k_lowers_a_bound_of_the_divergence() -> None:
    rows = table(run("distil_top_k.py", 20))
    _, losses, some, everything = zip(*rows, strict=True)
    assert losses[-1] < losses[0] / 2
    assert some[-1] < some[0] / 2
    assert everything[-1] < everything[0]
    assert all(0 <= bound <= full for bound, full in zip(some, everything, strict=True))


@pytest.mark.parametrize("name", ["sft_loss.py", "grpo_step.py", "dpo.py", "distil_top_k.py"])
def test_an_example_is_short_and_says_how_to_run_it(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert text.count("\n") < 100
    assert f"python examples/{name}" in text.split('"""')[1]
