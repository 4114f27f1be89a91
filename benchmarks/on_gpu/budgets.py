"""What a budget costs and keeps: memory and time by budget, and the error of the weight's gradient by chunk count.

Memory is what PyTorch's allocator held at the peak of a pass, beyond what it held before, less the gradients. The bound
is the budget and 16 vectors of float64 (docs/design.md). Where a 16-bit weight's gradient is summed over chunks, the
sum is float32: it is a gradient, and named, and a pass that forms the other gradient alone has to do without it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from on_gpu import peers
from on_gpu.clock import Bench, Job, measured, row_of
from on_gpu.exact import Pass, cross_entropy_of_rows, dense_head, exact_head
from on_gpu.floors import TINY_SHAPES, Head, Shape, least
from on_gpu.heads import OURS, judge_of, ours, step
from on_gpu.table import Bar, Found, Row

MIB = 1 << 20
BUDGETS: list[int | None] = [64 * MIB, 128 * MIB, 256 * MIB, 512 * MIB, 1024 * MIB, 2048 * MIB, None]
TINY_BUDGETS: list[int | None] = [1 << 14, 1 << 16, None]
SHAPE = Shape(8_192, 4_096, 128_256)
VECTORS = 16  # of length N in float64, beside the budget
OF_ERROR = Bar(1.5)
INDEPENDENT = Bar(1.05)  # the largest error over the smallest, over budgets
OF_CHUNKS = Shape(8_192, 1_024, 32_000)


def said(budget: int | None) -> str:
    """Return a budget in words."""
    if budget is None:
        return "default"
    return f"{budget // MIB:,} MiB" if budget >= MIB else f"{budget:,} bytes"


def options(budget: int | None) -> dict[str, int]:
    """Return the argument that asks for a budget; the default is not named."""
    return {} if budget is None else {"memory_budget": budget}


def hidden_only(head: Head, budget: int | None) -> Job:
    """Return a pass that forms the gradient of the hidden states alone: no sum of dW beside the budget."""

    def run(i: int) -> Pass:
        h = head.h.detach().requires_grad_()
        loss = ours(**options(budget))(h, head.W, head.y)
        loss.backward()  # type: ignore[no-untyped-call]
        assert h.grad is not None
        return Pass(loss.detach(), h.grad, head.W[:0])

    return run


def extra(bench: Bench, job: Job) -> float | None:
    """Return the MiB at the peak beyond inputs and gradients."""
    if not bench.cuda:
        return None
    job(0)  # what libraries keep, such as cuBLAS's workspace, is there from now on
    bench.tidy()
    bench.wait()
    before = torch.cuda.memory_allocated(bench.device)
    torch.cuda.reset_peak_memory_stats(bench.device)
    result: Pass = job(0)
    bench.wait()
    gradients = sum(g.numel() * g.element_size() for g in result[1:])
    return (torch.cuda.max_memory_allocated(bench.device) - before - gradients) / MIB


def peak_row(where: str, who: str, found: float | None, allowed: int | None, note: str = "") -> Row:
    """Return the row of a peak, judged where a budget was named."""
    if found is None:
        return Row(where, who, note="a CPU does not count")
    return Row(where, who, figure=found, bar=None if allowed is None else Bar(round(allowed / MIB, 2)), note=note)


def budgets(bench: Bench) -> Found:
    """Return time by budget beside three products, behind the gate."""
    shape = TINY_SHAPES[0] if bench.tiny else SHAPE
    head, where = Head(bench, shape), str(shape)
    jobs = {f"{OURS}, {said(b)}": step(head, ours(**options(b))) for b in (TINY_BUDGETS if bench.tiny else BUDGETS)}
    floors = head.floors(3)
    times, _ = measured(bench, where, floors, jobs, judge_of(head, cross_entropy_of_rows))
    floor = least(times, floors)
    rows = [row_of(where, name, each, None if floor is None else each.median / floor) for name, each in times.items()]
    return Found("Time of linear_cross_entropy by budget, bfloat16", "three products", rows)


def memory(bench: Bench) -> Found:
    """Return what a pass takes by budget: with one gradient the budget, with both the sum of dW besides."""
    shape = TINY_SHAPES[0] if bench.tiny else SHAPE
    head, rows = Head(bench, shape), []
    vectors, wide = 8 * VECTORS * shape.N, 4 * shape.V * shape.D
    for budget in TINY_BUDGETS if bench.tiny else BUDGETS:
        who, allowed = f"{OURS}, {said(budget)}", None if budget is None else budget + vectors
        both = None if allowed is None else allowed + wide
        note = "" if budget is None else f"budget, vectors, and {wide / MIB:,.0f} MiB of float32 sum of dW"
        rows += [
            peak_row(f"{shape}, gradient of h", who, extra(bench, hidden_only(head, budget)), allowed),
            peak_row(f"{shape}, both gradients", who, extra(bench, step(head, ours(**options(budget)))), both, note),
        ]
    try:
        unfused = extra(bench, step(head, peers.unfused))
        rows.append(peak_row(f"{shape}, both gradients", peers.EAGER, unfused, None))
    except torch.OutOfMemoryError:
        rows.append(Row(f"{shape}, both gradients", peers.EAGER, note="out of memory"))
    return Found("Memory of linear_cross_entropy by budget, bfloat16", "MiB beyond inputs and gradients", rows)


def distance(got: Tensor, exact: Tensor) -> float:
    """Return ||got - exact|| / ||exact||."""
    return float((got.double() - exact).norm() / exact.norm())


def error(bench: Bench) -> Found:
    """Return the error of dW by budget, beside that of one product over all rows."""
    shape = TINY_SHAPES[0] if bench.tiny else OF_CHUNKS
    budgets = TINY_BUDGETS if bench.tiny else BUDGETS
    head, where = Head(bench, shape), str(shape)
    inputs = head.h, head.W, head.y, head.a
    exact, dense = exact_head(*inputs, cross_entropy_of_rows), dense_head(*inputs, cross_entropy_of_rows)
    one = distance(dense.dW.to(head.W.dtype), exact.dW)
    rows = [Row(where, "one product, float32 sum, rounded once", figure=1.0, note=f"{one:.3e} of the norm")]
    errors = []
    for budget in budgets:
        bench.poison()
        errors.append(distance(step(head, ours(**options(budget)))(0).dW, exact.dW))
        note = f"{errors[-1]:.3e} of the norm"
        rows.append(Row(where, f"{OURS}, {said(budget)}", figure=errors[-1] / one, bar=OF_ERROR, note=note))
    rows.append(Row(where, f"{OURS}, largest / smallest", figure=max(errors) / min(errors), bar=INDEPENDENT))
    return Found("Error of the weight's gradient against float64, bfloat16", "errors of one product", rows)
