"""The mutants of mutants.py can be made: what they change is in the kernels, once."""

from pathlib import Path

import pytest
from mutants import MUTANTS, TESTS, UNITS

NATIVE = Path(__file__).parents[1] / "native"


@pytest.mark.parametrize(("name", "old", "new", "description"), MUTANTS, ids=[mutant[3] for mutant in MUTANTS])
def test_a_mutant_changes_one_place(name: str, old: str, new: str, description: str) -> None:
    assert (NATIVE / name).read_text().count(old) == 1
    assert new != old
    unit = UNITS.get(name, "rows.cpp")
    assert unit == name or f'#include "{name}"' in (NATIVE / unit).read_text()
    assert unit in TESTS
