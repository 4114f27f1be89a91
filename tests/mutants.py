"""Break the kernels on purpose, one line at a time, and expect the laws to fail each time: ``make mutants``.

Each mutant is an edit of native/; it is built beside the package and the backend tests run against it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MUTANTS = [
    ("rows.cpp", "buffer[i] = -std::numeric_limits<F>::infinity()", "buffer[i] = 0", "a tail padded with logit 0"),
    (
        "rows.cpp",
        "const double gap = m - max, decay = std::exp(-gap)",
        "const double gap = m - max, decay = 1",
        "no rescaling",
    ),
    ("rows.cpp", "if (raised && count > 0) count -= 1;", "", "the maximum counted with the rest"),
    ("rows.cpp", "const vec<F> e = tie ? zero : exp_scaled", "const vec<F> e = exp_scaled", "ties counted twice"),
    ("rows.cpp", "moments += (e > zero ? -x : zero) * e", "moments += -x * e", "0 times infinity in the moment"),
    ("rows.cpp", "spreads += u != zero ? -x * u : zero", "spreads += -x * u", "0 times infinity in the spread"),
    ("rows.cpp", "if (infinite) x = tie ? zero : x;", "", "-inf minus -inf"),
    ("rows.cpp", "(top_slope + base) - q * top_slope);", "(1 - q) * top_slope + base);", "cancellation at the maximum"),
    ("rows.cpp", "const double base = gamma + (u", "const double base = (u", "no gamma"),
    ("rows.cpp", "x = x < floor ? floor : x;", "", "0 times infinity in the gradient"),
    ("rows.cpp", "if (u) dz += d * weights_at(j);", "", "no delta"),
    ("rows.cpp", "call.target[i] - call.first_class", "call.target[i]", "the block's first class forgotten"),
    ("rows.cpp", "const bool here = y >= 0 &&", "const bool here = y > 0 &&", "class 0 is no target"),
    ("rows.cpp", "if (alpha == 0 && beta == 0 && gamma == 0 && delta == 0) {", "if (false) {", "ignored rows poison"),
    ("rows.cpp", "return call.inverse_softcap != 0 ? dz", "return false ? dz", "no softcap factor"),
    ("rows.cpp", "e * unit + e * unit_low", "e * unit * unit_low", "softmax times its own correction"),
    ("exp.h", "- k * T::ln2_low) + low;", "- k * T::ln2_low);", "the rounding of z - m not put back"),
    (
        "exp.h",
        "static constexpr float ln2_high = 0x1.63p-1f",
        "static constexpr float ln2_high = 0x1.62p-1f",
        "a wrong ln 2",
    ),
    ("exp.h", "return gone ? vec<F>{} : e;", "return e;", "no underflow to 0"),
    ("exp.h", "0.1666666668f, 0.5000000013f", "0.1666666668f, 0.500013f", "a coefficient off in the fifth digit"),
    ("narrow.h", "vec_double<F>) - 1.0", "vec_double<F>)", "few classes: the maximum counted with the rest"),
    ("narrow.h", "y == static_cast<Index>(j)", "y == static_cast<Index>(j + 1)", "few classes: the wrong target"),
    ("narrow.h", "(top_slope + exact) - q * top_slope", "(1.0 - q) * top_slope + exact", "few classes: cancellation"),
    (
        "narrow.h",
        "columns[j] = loud ? dz + nothing : zero",
        "columns[j] = dz + nothing",
        "few classes: ignored rows poison",
    ),
    ("narrow.h", "if (call.inverse_softcap != 0) dz", "if (false) dz", "few classes: no softcap factor"),
    ("narrow.h", "call.target[row] - call.first_class", "call.target[row]", "few classes: the first class forgotten"),
    ("narrow.h", "z[j] > m ? z[j] : m", "z[j] < m ? z[j] : m", "few classes: the least for the largest"),
    ("vec.h", "(bits + 0x7fff + (bits >> 16 & 1)) >> 16", "bits >> 16", "bfloat16 truncated"),
]
RUN = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "Redirecting" not in type(finder).__name__]
sys.path.insert(0, {site!r})
import lastlayer._native
assert lastlayer._native.__file__.startswith({site!r}), lastlayer._native.__file__
import pytest
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error", *{tests!r}]))
"""


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def build(source: Path, site: Path) -> None:
    """Build the native module of ``source`` into the package copy in ``site``."""
    for command in (
        ("cmake", "-S", str(source), "-B", str(source / "build"), f"-DPython_EXECUTABLE={sys.executable}", "-Wno-dev"),
        ("cmake", "--build", str(source / "build"), "-j2"),
        ("cmake", "--install", str(source / "build"), "--prefix", str(site)),
    ):
        done = run(*command)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def tests_pass(site: Path) -> bool:
    """Run the backend tests and the digits against the package copy."""
    tests = [str(ROOT / "tests" / "test_backends.py"), str(ROOT / "tests" / "test_accuracy.py")]
    done = run(sys.executable, "-c", RUN.format(site=str(site), tests=tests))
    (site / "log").write_text(done.stdout + done.stderr)
    return done.returncode == 0


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        source, site = Path(place) / "source", Path(place) / "site"
        source.mkdir()
        shutil.copytree(ROOT / "src" / "lastlayer", site / "lastlayer", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "native", source / "native")
        shutil.copy(ROOT / "CMakeLists.txt", source)
        build(source, site)
        if not tests_pass(site):
            print((site / "log").read_text()[-3000:], "the unbroken kernels fail: nothing to learn from mutants")
            return 1
        survivors, chosen = [], [m for m in MUTANTS if all(word in m[3] for word in sys.argv[1:])]
        for name, old, new, what in chosen:
            file = source / "native" / name
            text = (ROOT / "native" / name).read_text()
            assert text.count(old) >= 1, f"{name} has no {old!r}: update tests/mutants.py"
            file.write_text(text.replace(old, new))
            build(source, site)
            survived = tests_pass(site)
            print(f"{'SURVIVED' if survived else 'caught  '} {what}", flush=True)
            survivors += [what] if survived else []
            file.write_text(text)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
