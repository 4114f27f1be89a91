"""Small calls, 8 x 10 logits: what a call costs with nothing to compute, ours beside the torch function it mirrors."""

from __future__ import annotations

from typing import Any

from timed import peers, rounds
from timed.logits import references
from timed.rounds import Effort, Jobs

ROWS, CLASSES = 8, 10
OPERATIONS = ("softmax", "log_softmax", "logsumexp", "forward", "forward with grad", "step")


def with_grad(job_of: peers.Peer, logits: peers.Logits) -> dict[str, Any]:
    """Return the jobs, and the forward pass that records itself for a backward pass."""
    recorded = job_of(logits._replace(z=logits.z.detach().requires_grad_()))
    return job_of(logits) | {"forward with grad": recorded["forward"]}


def measure(effort: Effort, left_out: list[str]) -> dict[str, Any]:
    """Return the median seconds per call by operation and competitor."""
    logits = peers.random_logits(ROWS, CLASSES)
    jobs: Jobs = {operation: {} for operation in OPERATIONS}
    for name, of in (("lastlayer", peers.of_lastlayer), ("PyTorch", peers.of_pytorch)):
        table = with_grad(of, logits)
        for operation in OPERATIONS:
            jobs[operation][name] = table[operation]
    expected = references(logits, [o for o in OPERATIONS if o != "forward with grad"])
    expected["forward with grad"] = expected["forward"]
    passed = rounds.gate(jobs, expected, effort.patience, f"{ROWS} x {CLASSES}", left_out)
    return {"rows": ROWS, "classes": CLASSES, "seconds": rounds.interleaved(passed, effort)}
