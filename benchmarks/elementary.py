"""Measure exp and log1p as the kernels compute them, in units in the last place (ulp).

    python benchmarks/elementary.py

What isolates them: of a row (0, x) the fold keeps rest = e^x alone, in float64; of a row whose maximum is 0 the
logsumexp is log1p(rest), of the rest that the same call returns. Rows (m, z) with other maxima test the reduction of
large arguments. float32 is measured at every argument there is, 268 million, against NumPy's float64 exp; float64 on a
sample, against a long double of 64 bits (x86).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lastlayer import _backends

Floats = np.ndarray[Any, Any]
LOWEST = {"float32": -131.0, "float64": -708.0}  # float32: below it a term is 0; float64: rest would be subnormal
CHUNK = 2**18


def ulps(got: Floats, exact: Floats, mantissa: int) -> float:
    """Return the worst |got - exact| in ulp of the exact value; the type's exponents have no end here."""
    _, exponent = np.frexp(exact)
    return float(np.max(np.abs(np.ldexp(got - exact, mantissa + 1 - exponent))))


def exp_of_fold(z: Floats, wide: Any, mantissa: int) -> float:
    """Return the worst error of exp(z_2 - z_1), z_1 the maximum, over rows of two logits."""
    rest = _backends.choose(z).fold(z).rest
    exact = np.exp(z[:, 1].astype(wide) - z[:, 0].astype(wide))
    return ulps(rest, exact, mantissa)


def every_float() -> Iterator[Floats]:
    """Yield rows (0, x) for every float32 number x from -131 to -2^-25; nearer to 0 it is e^x = 1, rounded."""
    first, last = (int(np.float32(x).view(np.uint32)) for x in (-(2.0**-25), LOWEST["float32"]))
    for start in range(first, last + 1, CHUNK):
        x = np.arange(start, min(start + CHUNK, last + 1), dtype=np.uint32).view(np.float32)
        yield np.stack([np.zeros_like(x), x], 1)


def sampled(dtype: Any, largest: float, chunks: int) -> Iterator[Floats]:
    """Yield rows (m, z) with m at most ``largest`` in size and z below it, as far down as terms count."""
    rng, lowest = np.random.default_rng(20261122), LOWEST[np.dtype(dtype).name]
    for _ in range(chunks):
        m = rng.uniform(-largest, largest, CHUNK)
        z = np.stack([m, m + rng.uniform(lowest, 0, CHUNK)], 1).astype(dtype)
        yield z[z[:, 1].astype(np.float64) - z[:, 0] > lowest]


def log1p_of_statistics(classes: int, chunks: int) -> float:
    """Return the worst error of log1p(rest) over rows of so many classes, one of them at the maximum 0."""
    rng, worst = np.random.default_rng(classes), 0.0
    for _ in range(chunks):
        z = np.zeros((CHUNK // classes, classes))
        z[:, 1:] = -np.exp(rng.uniform(np.log(1e-3), np.log(700), (len(z), 1)))
        found, state = _backends.choose(z).statistics(z)
        worst = max(worst, ulps(found.logsumexp, np.log1p(state.rest.astype(np.longdouble)), 52))
    return worst


def main() -> None:
    if np.finfo(np.longdouble).nmant < 63:
        raise SystemExit("float64 needs a long double of 64 bits to be judged by")
    print("instruction set:", _backends.cpu.instruction_sets()[0][0] if _backends.cpu else "none (reference)")
    print(f"exp, float32, every argument: {max(exp_of_fold(z, np.float64, 23) for z in every_float()):.3f}")
    for dtype, wide, mantissa in ((np.float32, np.float64, 23), (np.float64, np.longdouble, 52)):
        for largest in (0, 500, 10_000):
            worst = max(exp_of_fold(z, wide, mantissa) for z in sampled(dtype, largest, 16))
            print(f"exp, {np.dtype(dtype).name}, maxima up to {largest}: {worst:.3f}")
    for classes in (2, 32, 33, 1000):
        print(f"log1p, float64, {classes} classes: {log1p_of_statistics(classes, 16):.3f}")


if __name__ == "__main__":
    main()
