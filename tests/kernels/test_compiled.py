"""What a compiler makes of the calls of launch.py, for GPUs that are not here: no spills, whole words, no atomics.

Run as a program, without Triton's interpreter, this file compiles every call and prints what it found, one line of JSON
per call; the tests below run it so, once, and judge. Siblings: test_rows.py, for what the kernels compute.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

PROCESSORS = (80, 90)
SHAPES = ((16, 1000), (4, 50257), (4, 128256))
LAID_ASIDE = 8  # bytes: one number, which the assembler lays aside before the loops to fit one more program


def calls(torch: Any, dtype: Any, rows: int, classes: int) -> dict[str, Any]:
    """Return the calls of launch.py over logits of this kind, by name."""
    from lastlayer._algebra import Coefficients, State, Terms
    from lastlayer._backends.triton import launch

    z, y = torch.empty((rows, classes), dtype=dtype), torch.zeros(rows, dtype=torch.int64)
    block, u = torch.empty((9, rows), dtype=torch.float64), torch.empty(classes)
    state, four = State(*block[:5]), Coefficients(*block[5:])
    half = torch.empty((rows, 2 * classes), dtype=torch.bfloat16)[:, classes:]
    return {
        "fold": launch.statistics_call(z, None, None, False, block[:5], None),
        "statistics": launch.statistics_call(z, y, u, True, block[:5], block[5:]),
        "loss": launch.loss_call(z, Terms(1.0, None, None), y, None, -100, 1.0, None, block[0], z),
        "weighted loss": launch.loss_call(
            z, Terms(block[1], block[2], 0.1), y, u, -100, block[3, 0], 30.0, block[0], z
        ),
        "gradient": launch.gradient_call(z, state, four, y, None, 0, None, z if dtype == torch.bfloat16 else half),
        "softmax": launch.softmax_call(z, False, torch.empty_like(z)),
        "times": launch.times_call(z, block[0, 0]),
    }


def source(call: Any, types: dict[Any, str]) -> Any:
    """Return the source of a call, specialised as a launch does it: by type, alignment, and integers that are 1."""
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(call.kernel.params):
        value, name, open_ = call.arguments[parameter.name], parameter.name, not parameter.do_not_specialize
        aligned = False
        if parameter.is_constexpr or value is None or (open_ and type(value) is int and value == 1):
            signature[name], constants[(i,)] = "constexpr", value
        elif type(value) is float:
            signature[name] = "fp64"
        elif type(value) is int:
            signature[name], aligned = "i32" if abs(value) < 2**31 else "i64", open_ and value % 16 == 0
        else:
            signature[name], aligned = types[value.dtype], value.data_ptr() % 16 == 0
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=call.kernel, signature=signature, constexprs=constants, attrs=attributes)


def compile_all() -> None:
    """Compile the calls, and print what became of each."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget

    types = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    for processor in PROCESSORS:
        for dtype in (torch.bfloat16, torch.float32):
            for shape in SHAPES if processor == PROCESSORS[-1] else SHAPES[-1:]:
                for name, call in calls(torch, dtype, *shape).items():
                    target, options = GPUTarget("cuda", processor, 32), {"num_warps": call.warps}
                    asm = triton.compile(source(call, types), target=target, options=options).asm
                    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                        file.write(asm["cubin"])
                        file.flush()
                        command = [str(tool), "--dump-resource-usage", file.name]
                        used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    found = {
                        "call": f"{name} of {dtype} {shape} on sm_{processor}",
                        "name": name, "classes": shape[1], "dtype": str(dtype),
                        "spilled": sum(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", used)),
                        "atomics": re.findall(r"\b(?:atom|red)\.\S+", asm["ptx"]),
                        # Logits and results are what is read and written with a policy for the caches.
                        "read": re.findall(r"ld\.global\S*evict\S*", asm["ptx"]),
                        "written": re.findall(r"st\.global\S*evict\S*", asm["ptx"]),
                    }  # fmt: skip
                    print(json.dumps(found), flush=True)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What became of each call."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}
    command = [sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_registers_are_spilled(compiled: list[dict[str, Any]]) -> None:
    assert len(compiled) == 7 * 2 * (len(SHAPES) + 1)
    assert not [each["call"] for each in compiled if each["spilled"] > LAID_ASIDE]


def test_there_are_no_atomics(compiled: list[dict[str, Any]]) -> None:
    assert not [each["call"] for each in compiled if each["atomics"]]


def test_logits_are_read_by_words(compiled: list[dict[str, Any]]) -> None:
    for each in compiled:
        if each["classes"] >= 64:
            assert each["read"], each["call"]
            assert all(load.endswith(".v4.b32") for load in each["read"]), (each["call"], each["read"])


def test_results_are_written_by_words(compiled: list[dict[str, Any]]) -> None:
    for each in compiled:
        if each["classes"] >= 64 and each["name"] not in ("fold", "statistics"):
            # Of a row that shares words with others, those are written class by class beside the whole ones.
            over = each["name"] == "gradient" and "float32" in each["dtype"]  # 16 bits for 32: two words give one
            words = [store for store in each["written"] if re.search(r"\.v[24]\.b32$", store)]
            assert words or (over and each["classes"] % 8), (each["call"], each["written"])


if __name__ == "__main__":
    compile_all()
