"""The certificate of draws runs, and each of its laws fails where it should."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import certificate  # noqa: E402
from timed import draws_mass, draws_shards, draws_ways  # noqa: E402

import lastlayer  # noqa: E402
import lastlayer.torch as F  # noqa: E402

DOCUMENT = "Before.\n<!-- certificate -->\nold\n<!-- /certificate -->\nAfter.\n"
Draw = Callable[..., Any]


def test_all_laws_hold_and_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, figures = tmp_path / "draws.md", tmp_path / "out" / "certificate.json"
    document.write_text(DOCUMENT)
    assert certificate.main(["--quick", "--json", str(figures), "--write", str(document)]) == 0
    said, written, laws = capsys.readouterr().out, document.read_text(), json.loads(figures.read_text())
    assert len(laws) == 9
    assert all(law["holds"] and law["words"] in said for law in laws)
    assert written.startswith("Before.\n<!-- certificate -->\n- ")
    assert written.endswith("\n<!-- /certificate -->\nAfter.\n")
    assert "\nold\n" not in written
    assert " NO " not in written


def next_class(sample: Any, z: Any) -> Any:
    """Each class drawn is the one after."""
    return sample._replace(index=(sample.index + 1) % np.shape(z)[-1])


def one_more_kept(sample: Any, z: Any) -> Any:
    """One class too many is said to be kept."""
    return sample._replace(kept=sample.kept + 1)


def without_tail(sample: Any, z: Any) -> Any:
    """The unlikely classes are never drawn, as by cumulative sums in float32."""
    return sample._replace(index=sample.index % 100)


def never_the_first(sample: Any, z: Any) -> Any:
    """Half of the draws of class 0 become class 1."""
    index = np.asarray(sample.index)
    return sample._replace(index=torch.from_numpy(np.where((index == 0) & (np.arange(index.size) % 2 > 0), 1, index)))


def by_place(sample: Any, z: Any) -> Any:
    """A draw depends on where its row is in the batch."""
    index = np.array(sample.index)
    if index.ndim == 2:
        index[1:, 0] = 0
    return sample._replace(index=index)


def broken(draw: Draw, change: Callable[[Any, Any], Any]) -> Draw:
    """Return draws with a change."""
    return lambda z, *args, **options: change(draw(z, *args, **options), z)


@pytest.mark.parametrize(
    ("section", "module", "change", "fails"),
    [
        (certificate.same_uniforms, lastlayer, next_class, [True, False]),
        (certificate.same_uniforms, lastlayer, one_more_kept, [False, True]),
        (certificate.frequencies, F, without_tail, [True, True]),
        (certificate.frequencies, F, never_the_first, [True, True]),
        (certificate.forbidden, lastlayer, next_class, [True, False]),
        (certificate.invariances, lastlayer, by_place, [True]),
        (certificate.kept_sets, lastlayer, next_class, [True]),
        (certificate.kept_sets, lastlayer, one_more_kept, [True]),
    ],
)
def test_a_law_fails_where_it_should(
    section: Callable[[bool], certificate.Section],
    module: Any,
    change: Callable[[Any, Any], Any],
    fails: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "categorical", broken(module.categorical, change))
    assert [not law.holds for law in section(True)[0]] == fails


def test_a_missing_error_and_a_drawn_end_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lastlayer, "multinomial", lambda *args, **options: None)
    (law,), _ = certificate.errors(True)
    assert not law.holds
    assert law.found == "no error for NaN, weights, a negative weight, weights, zeros, weights"
    monkeypatch.setattr(certificate, "LAST", 0.0)
    assert not certificate.ends()


def test_shards_are_compared_with_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    z = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    assert draws_shards.cuts(50, 3) == [0, 8, 25, 50]

    def drawn(z: Any, asked: list[dict[str, Any]], ranks: int) -> Any:
        """Two processes do as one; three change a draw."""
        index = np.stack([lastlayer.categorical(z, 4, **options).index for options in asked])
        index[-1, -1, -1] += ranks - 2
        return index

    monkeypatch.setattr(draws_shards, "drawn", drawn)
    found = list(draws_ways.shards(z, [{}, {"top_k": 3}], (2, 3)))
    assert [holds for _, holds in found] == [True, False]


def test_a_failed_law_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failed = certificate.Law("pigs fly", False, "none seen")
    monkeypatch.setattr(
        certificate,
        "SECTIONS",
        (
            certificate.errors,
            lambda quick: ([failed], []),
        ),
    )
    monkeypatch.setattr(certificate.SECTIONS[1], "__name__", "pigs")
    assert certificate.main(["--quick"]) == 1
    assert "pigs fly" in capsys.readouterr().out


def test_the_row_of_many_decades_is_one() -> None:
    row = draws_mass.make_row()
    low = 10.0 ** -(row.decade + 1.0)
    assert ((row.p >= low) & (row.p < 10 * low)).all()
    assert row.p.sum() == pytest.approx(1)
    assert (np.diff(row.z) <= 0).all()
    assert [level.item() for level, n in row.levels for _ in range(n)] == row.z.tolist()


def test_maxima_of_equal_noises_have_the_law_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped draws beside plain Gumbel-max draws, one noise for each class."""
    monkeypatch.setattr(draws_mass, "CLASSES", (1, 6, 30))
    row, draws = draws_mass.make_row(), 20_000
    grouped = draws_mass.gumbel_by_decade(row, draws)
    rng = np.random.default_rng(1)
    with np.errstate(divide="ignore"):
        noisy = row.z - np.log(-np.log(rng.random((draws, len(row.z)), np.float32)))
    plain = draws_mass.by_decade(row, np.bincount(noisy.argmax(-1), minlength=len(row.z)))
    # Two counts of one law: their difference has the variance of both.
    deviation = np.sqrt(2 * plain * (1 - plain / draws))
    assert (np.abs(grouped - plain) < 4 * deviation).all()
