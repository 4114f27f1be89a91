"""torch.nn's modules of the last layer, computed by lastlayer: only ``forward`` is ours.

Arguments, ``state_dict`` and representation are torch's, so a module can be exchanged for its namesake at any time.
The functions are in functional.py and linear.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lastlayer import _validate
from lastlayer.torch import functional, linear


class Softmax(torch.nn.Softmax):
    """Apply :func:`lastlayer.torch.softmax`.

    Example:
        >>> import torch
        >>> from lastlayer.torch import Softmax
        >>> Softmax(dim=1)(torch.zeros(1, 4))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return probabilities of the input's shape."""
        return functional.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(torch.nn.LogSoftmax):
    """Apply :func:`lastlayer.torch.log_softmax`.

    Example:
        >>> import torch
        >>> from lastlayer.torch import LogSoftmax
        >>> LogSoftmax(dim=0)(torch.tensor([20.0, 0.0]))
        tensor([-2.0612e-09, -2.0000e+01])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return log-probabilities of the input's shape."""
        return functional.log_softmax(input, self.dim, _stacklevel=5)


class NLLLoss(torch.nn.NLLLoss):
    """Apply :func:`lastlayer.torch.nll_loss`.

    Example:
        >>> import torch
        >>> from lastlayer.torch import NLLLoss
        >>> NLLLoss(reduction="sum")(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([1]))
        tensor(0.6931)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of log-probabilities."""
        return functional.nll_loss(
            input, target, weight=self.weight, ignore_index=self.ignore_index, reduction=self.reduction
        )


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """Apply :func:`lastlayer.torch.cross_entropy`.

    Example:
        >>> import torch
        >>> from lastlayer.torch import CrossEntropyLoss
        >>> CrossEntropyLoss()(torch.tensor([[48.0, 0.0]]), torch.tensor([0]))
        tensor(1.4252e-21)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits."""
        return functional.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class LinearCrossEntropyLoss(torch.nn.modules.loss._WeightedLoss):
    """Apply :func:`lastlayer.torch.linear_cross_entropy` to the module's own linear layer.

    Arguments, parameters and ``state_dict`` are those of torch.nn.LinearCrossEntropyLoss (torch 2.13); ``options`` is
    not used. ``z_loss``, ``softcap``, ``scale`` and ``memory_budget`` come on top.

    Example:
        >>> import torch
        >>> from lastlayer.torch import LinearCrossEntropyLoss
        >>> head = LinearCrossEntropyLoss(in_features=8, num_classes=100)
        >>> head(torch.zeros(2, 8), torch.tensor([3, 99]))
        tensor(4.6052, grad_fn=...)
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
        **extras: Any,
    ) -> None:
        if weight is not None and tuple(weight.shape) != (num_classes,):
            raise RuntimeError(f"expected weight shape to be {(num_classes,)}, got {tuple(weight.shape)}")
        _validate.check_label_smoothing(label_smoothing)
        unknown = extras.keys() - {"z_loss", "softcap", "scale", "memory_budget"}
        if unknown:
            raise TypeError(f"LinearCrossEntropyLoss got an unexpected argument {min(unknown)!r}")
        super().__init__(weight, None, None, reduction)
        self.num_classes, self.out_features, self.ignore_index = num_classes, tuple(out_features), ignore_index
        self.label_smoothing, self.options, self.extras = label_smoothing, options, extras
        rows = math.prod(out_features, start=num_classes)
        self.linear = torch.nn.Linear(in_features, rows, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of hidden states."""
        shape = (self.num_classes, *self.out_features)
        bias = None if self.linear.bias is None else self.linear.bias.reshape(shape)
        return linear.linear_cross_entropy(
            input,
            self.linear.weight.reshape(*shape, self.linear.in_features),
            target,
            linear_bias=bias,
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            **self.extras,
        )

    def extra_repr(self) -> str:
        """Return the arguments, torch's first."""
        others = ("reduction", "ignore_index", "label_smoothing", "options")
        shown = {
            "in_features": self.linear.in_features,
            "num_classes": self.num_classes,
            "out_features": self.out_features,
            "bias": self.linear.bias is not None,
            **{name: getattr(self, name) for name in others},
            **self.extras,
        }
        return ", ".join(f"{name}={value}" for name, value in shown.items())
