"""The Triton kernels as a backend for torch tensors on a GPU: the protocol of _backends, under its names.

launch.py decides tiles and launches; rows.py has the kernels of rows, on fold.py, slopes.py and tiles.py; targets.py
has two small ones; draws.py the draws. Under Triton's interpreter they take tensors of the CPU too. Its siblings are
cpu.py and reference.py, against which it is tested.
"""

from lastlayer._backends.triton.draws import choose, draw, inside, masses, multinomial, tempered, topk
from lastlayer._backends.triton.launch import (
    check_targets,
    fold,
    gradient,
    log_softmax,
    loss,
    reserve,
    softmax,
    statistics,
    takes,
    times_,
)
from lastlayer._philox import uniforms, uniforms_of_rows

__all__ = [
    "check_targets",
    "choose",
    "draw",
    "fold",
    "gradient",
    "inside",
    "log_softmax",
    "loss",
    "masses",
    "multinomial",
    "reserve",
    "softmax",
    "statistics",
    "takes",
    "tempered",
    "times_",
    "topk",
    "uniforms",
    "uniforms_of_rows",
]
