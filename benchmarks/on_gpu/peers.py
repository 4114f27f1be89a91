"""Who is compared with us on a device: PyTorch, its compiler, and libraries that are imported if they are there.

Each table maps a name to a function that makes the peer: one that is not installed, or lacks the function, is named as
not there; one that fails later becomes a row of its table that says so. Compiled functions are made anew for each case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as T
from torch import Tensor

from on_gpu.clock import Bench, reason_of

EAGER, COMPILED = "PyTorch", "torch.compile"
CHUNK = 4096  # rows at a time, of the peer that asks

Head = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden states, weight, targets -> mean loss
Loss = Callable[[Tensor, Tensor], Tensor]  # logits, targets -> mean loss
Rowwise = Callable[[Tensor], Tensor]
Draw = Callable[[Tensor], Tensor]  # logits -> classes


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function compiled for one shape."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)  # type: ignore[no-any-return]


def unfused(h: Tensor, W: Tensor, y: Tensor) -> Tensor:
    """What everyone writes."""
    return T.cross_entropy(T.linear(h, W), y)


def of_torch(options: bool) -> Head:
    """PyTorch's own linear_cross_entropy (2.13 and later): through full logits as it comes, in chunks if asked."""
    function = T.linear_cross_entropy
    given = {"options": torch.nn.LinearCrossEntropyOptions()} if options else {}
    return lambda h, W, y: function(h, W, y, **given)


def liger_head() -> Head:
    """Liger's head takes the weight first."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda h, W, y: loss(W, h, y)


def cce_head() -> Head:
    """Cut cross-entropy as it comes: it leaves out small gradients."""
    from cut_cross_entropy import linear_cross_entropy

    return lambda h, W, y: linear_cross_entropy(h, W, y)


def cce_exact_head() -> Head:
    """Cut cross-entropy that leaves nothing out."""
    from cut_cross_entropy import linear_cross_entropy

    return lambda h, W, y: linear_cross_entropy(h, W, y, impl="cce_exact")


def quack_head() -> Head:
    """QuACK's chunked head."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda h, W, y: chunked_linear_cross_entropy(h, W, y, chunk_size=CHUNK)


HEADS: Mapping[str, Callable[[], Head]] = {
    EAGER: lambda: unfused,
    COMPILED: lambda: compiled(unfused),
    "PyTorch linear_cross_entropy": lambda: of_torch(False),
    "PyTorch linear_cross_entropy, chunked": lambda: of_torch(True),
    "Liger": liger_head,
    "cut-cross-entropy": cce_head,
    "cut-cross-entropy, exact": cce_exact_head,
    "QuACK": quack_head,
}


def liger_loss() -> Loss:
    """Liger's cross-entropy writes the gradient over the logits."""
    from liger_kernel.transformers import LigerCrossEntropyLoss

    return LigerCrossEntropyLoss()  # type: ignore[no-any-return]


def quack_loss() -> Loss:
    """QuACK's cross-entropy."""
    from quack.cross_entropy import cross_entropy

    return lambda z, y: cross_entropy(z, y)


LOSSES: Mapping[str, Callable[[], Loss]] = {
    EAGER: lambda: T.cross_entropy,
    COMPILED: lambda: compiled(lambda z, y: T.cross_entropy(z, y)),
    "Liger": liger_loss,
    "QuACK": quack_loss,
}
WRITES_OVER_ITS_INPUT = {"Liger"}


def quack_softmax() -> Rowwise:
    """QuACK's softmax."""
    from quack.softmax import softmax

    return lambda z: softmax(z)


def rowwise(name: str) -> dict[str, Callable[[], Rowwise]]:
    """Return who computes softmax, log_softmax or logsumexp along rows."""
    function = {"softmax": torch.softmax, "log_softmax": torch.log_softmax, "logsumexp": torch.logsumexp}[name]
    found: dict[str, Callable[[], Rowwise]] = {
        EAGER: lambda: lambda z: function(z, -1),
        COMPILED: lambda: compiled(lambda z: function(z, -1)),
    }
    return found | ({"QuACK": quack_softmax} if name == "softmax" else {})


def multinomial(z: Tensor) -> Tensor:
    """Torch's own draw, from probabilities."""
    return torch.multinomial(torch.softmax(z.float(), -1), 1)[:, 0]


def race(z: Tensor) -> Tensor:
    """What serving engines write in torch: exponential times, the first to arrive; nothing is waited for."""
    p = torch.softmax(z.float(), -1)
    return (p / torch.empty_like(p).exponential_()).argmax(-1)


def flashinfer_draw() -> Draw:
    """FlashInfer's draw from logits, which it converts to float32."""
    from flashinfer.sampling import sampling_from_logits

    return lambda z: sampling_from_logits(z)


TEMPERATURE, TOP_K, TOP_P, MIN_P = 0.8, 50, 0.9, 0.02


def sorted_chain(z: Tensor) -> Tensor:
    """Temperature, top_k, top_p, min_p by a sort, as in transformers; then multinomial."""
    x, order = (z.float() / TEMPERATURE).sort(-1, descending=True)
    x[:, min(TOP_K, x.shape[1]) :] = -torch.inf
    p = torch.softmax(x, -1)
    p = p.masked_fill(p.cumsum(-1) - p >= TOP_P, 0.0)
    p = p.masked_fill(p < MIN_P * p[:, :1], 0.0)
    return order.gather(1, torch.multinomial(p, 1))[:, 0]


def flashinfer_chain() -> Draw:
    """FlashInfer has no top_k, top_p and min_p in one: a mask, a softmax, a renormalisation, a draw."""
    from flashinfer import sampling

    def draw(z: Tensor) -> Tensor:
        p = torch.softmax(sampling.top_k_mask_logits(z.float() / TEMPERATURE, TOP_K), -1)
        return sampling.min_p_sampling_from_probs(sampling.top_p_renorm_probs(p, TOP_P), MIN_P)

    return draw


def flashinfer_top_k_top_p() -> Draw:
    """FlashInfer's fused top_k and top_p, without min_p: less than the others do."""
    from flashinfer.sampling import top_k_top_p_sampling_from_logits

    return lambda z: top_k_top_p_sampling_from_logits(z.float() / TEMPERATURE, TOP_K, TOP_P)


DRAWS: Mapping[str, Callable[[], Draw]] = {
    "softmax, multinomial": lambda: multinomial,
    "softmax, exponential race": lambda: race,
    "torch.compile, exponential race": lambda: compiled(race),
    "FlashInfer": flashinfer_draw,
}
CHAINS: Mapping[str, Callable[[], Draw]] = {
    "sort, multinomial": lambda: sorted_chain,
    "FlashInfer, four kernels": flashinfer_chain,
    "FlashInfer, no min_p": flashinfer_top_k_top_p,
}


def found(bench: Bench, table: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Return the peers that are there; name the others once."""
    there = {}
    for name, make in table.items():
        if any(name.startswith(left) for left in bench.without):
            reason = f"{name}: not asked for"
        else:
            try:
                there[name] = make()
                continue
            except Exception as error:  # whatever an import runs into on a machine without its device or compiler
                reason = f"{name}: {reason_of(error)}"
        if reason not in bench.left_out:
            bench.left_out.append(reason)
    return there
