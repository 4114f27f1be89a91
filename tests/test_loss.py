"""backend.loss: losses, their sum and their gradient in one visit of each row, over backend x type x shape."""

from __future__ import annotations

from typing import Any, NamedTuple

import laws
import ml_dtypes
import numpy as np
import pytest

from lastlayer._algebra import Terms

TYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
CLASSES = [1, 2, 3, 4, 10, 31, 33, 64, 65, 130, 1000, 2049]
ROWS = [1, 7, 17, 33]


class Case(NamedTuple):
    """Which factors there are, one number or one per row, and what else a call may ask for."""

    nll: float | str | None = None
    cross: float | str | None = None
    square: float | str | None = None
    weight: str | None = None
    ignored: int = -1
    scale: float = 1.0
    softcap: float | None = None
    planted: bool = False  # rows that hold infinities and NaN, ignored ones too


CASES = {
    "nll": Case(nll=1.0),
    "nll by row": Case(nll="by row", ignored=-100, planted=True),
    "smoothed": Case(nll="by row", cross=0.1, weight="by class", ignored=-100, scale=0.3),
    "probabilities": Case(cross="by row", weight="by row", planted=True),
    "squared": Case(nll=0.25, square=0.01, softcap=40.0, planted=True),
    "square alone": Case(square="by row", scale=-2.0),
    "all": Case("by row", "by row", "by row", weight="by class", ignored=0, scale=1.5, softcap=40.0),
    "all planted": Case(1.0, 0.5, "by row", weight="by row", ignored=-100, planted=True),
}


def call(case: Case, rng: np.random.Generator, rows: int, classes: int, dtype: Any) -> tuple[Any, Terms, Any, Any]:
    """Return logits, terms, targets and weights for a case."""
    z = np.clip(rng.normal(size=(rows, classes)) * 5, -39, 39)
    target = rng.integers(0, classes, rows) if case.nll is not None else None
    if rows >= 7:
        z[2] = 0.25  # ties
        z[3, classes // 2] = 39
        z[4, 1:] *= 0.01
    if target is not None and case.ignored < 0 and rows >= 7:
        target[1::3] = case.ignored
    if case.planted and rows >= 7:
        z[0] = -np.inf
        z[1, -1] = np.nan  # ignored, where rows are
        z[2, classes // 2 :] = -np.inf
        z[4, 0] = np.inf  # ignored
        z[5, 0] = np.inf
        z[6, classes // 2] = np.nan
    shape = {"by class": (classes,), "by row": (rows, classes)}.get(case.weight or "", (0,))
    weight = rng.random(shape) * (rng.random(shape) < 0.8) if case.weight else None
    factors = (rng.random(rows) * (np.arange(rows) % 7 != 3) if f == "by row" else f for f in case[:3])
    return z.astype(dtype), Terms(*factors), target, None if weight is None else weight.astype(np.float32)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("classes", CLASSES)
def test_loss_is_its_composition(backend: Any, rng: np.random.Generator, classes: int, dtype: Any) -> None:
    for rows in ROWS:
        for case in CASES.values():
            z, terms, target, weight = call(case, rng, rows, classes, dtype)
            laws.loss_is_exact(
                backend, z, terms, target, weight, ignored=case.ignored, scale=case.scale, softcap=case.softcap
            )


def test_a_target_that_is_no_class_is_nan(backend: Any, rng: np.random.Generator) -> None:
    for classes in (5, 70):
        z, losses = rng.normal(size=(3, classes)), np.zeros(3)
        total = backend.loss(z, Terms(1.0, None, None), np.array([0, classes, -1]), ignored=-100, losses=losses)
        assert np.isnan(losses).tolist() == [False, True, True]
        assert np.isnan(total)


class Broken:
    """The reference with one defect, to see the law fail."""

    def __init__(self, defect: str) -> None:
        self.defect = defect

    def loss(self, z: Any, terms: Any, target: Any, weight: Any, **options: Any) -> Any:
        from lastlayer._backends import reference

        if self.defect == "ignored":
            options["ignored"] = -1
        if self.defect == "scale":
            options["scale"] = 1.0
        if self.defect == "softcap":
            options["softcap"] = None
        if self.defect == "square":
            terms = terms._replace(square=None)
        total = reference.loss(z, terms, target, weight, **options)
        if self.defect == "gradient" and options.get("out") is not None:
            options["out"][-1, -1] += 1e-3
        return total * (1 + 1e-12) if self.defect == "sum" else total


@pytest.mark.parametrize("defect", ["none", "ignored", "scale", "softcap", "square", "gradient", "sum"])
def test_the_law_catches_a_broken_backend(rng: np.random.Generator, defect: str) -> None:
    z, terms, target, weight = call(CASES["all"], rng, 17, 33, np.float64)

    def check() -> None:
        laws.loss_is_exact(Broken(defect), z, terms, target, weight, ignored=int(target[0]), scale=0.5, softcap=40.0)

    if defect == "none":
        check()
    else:
        with pytest.raises(AssertionError):
            check()
