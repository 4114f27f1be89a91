"""The modules are torch's, state, arguments and representation, with lastlayer's forward."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import lastlayer.torch as F

NAMES = ("Softmax", "LogSoftmax", "NLLLoss", "CrossEntropyLoss", "LinearCrossEntropyLoss")
ARGUMENTS: dict[str, dict[str, Any]] = {
    "Softmax": {"dim": 1},
    "LogSoftmax": {"dim": 1},
    "NLLLoss": {"weight": torch.tensor([1.0, 2.0, 0.5]), "ignore_index": 1, "reduction": "sum"},
    "CrossEntropyLoss": {
        "weight": torch.tensor([1.0, 2.0, 0.5]),
        "ignore_index": 1,
        "reduction": "none",
        "label_smoothing": 0.1,
    },
    "LinearCrossEntropyLoss": {"in_features": 3, "num_classes": 3, "bias": True, "label_smoothing": 0.1},
}
Z, Y = torch.tensor([[0.2, 0.5, -0.1], [-0.1, 0.1, 0.3], [1.0, 0.0, 2.0]]), torch.tensor([0, 2, 1])


def pair(name: str) -> tuple[Any, Any]:
    """Return our module and torch's, with the same state."""
    ours, theirs = (getattr(m, name)(**ARGUMENTS[name]) for m in (F, torch.nn))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", NAMES)
def test_modules_are_torchs(name: str) -> None:
    ours, theirs = pair(name)
    assert isinstance(ours, getattr(torch.nn, name) if name != "LinearCrossEntropyLoss" else torch.nn.Module)
    assert repr(ours) == repr(theirs)
    mine, torchs = (list(inspect.signature(type(m)).parameters.items()) for m in (ours, theirs))
    defaults = [[(key, p.default, p.kind) for key, p in parameters] for parameters in (mine, torchs)]
    assert defaults[0][: len(torchs)] == defaults[1]  # what is added comes last
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_modules_compute_what_torchs_do(name: str) -> None:
    z = torch.log_softmax(Z, 1) if name == "NLLLoss" else Z
    arguments = (z,) if "Softmax" in name else (z, Y)
    results, gradients = [], []
    for module in pair(name):
        x = z.clone().requires_grad_()
        result = module(x, *arguments[1:])
        results.append(result)
        gradients.append(torch.autograd.grad(result.square().sum(), x)[0])
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)


def test_modules_are_ours() -> None:
    """Each shows a digit, or a warning, that torch's lacks."""
    z = torch.tensor([[20.0, 0.0]])
    tiny = torch.tensor(math.log1p(math.exp(-20)))
    torch.testing.assert_close(F.CrossEntropyLoss()(z, torch.tensor([0])), tiny)
    torch.testing.assert_close(F.LogSoftmax(1)(z)[0, 0], -tiny)
    with pytest.warns(F.NotLogProbabilityWarning):
        F.NLLLoss()(z, torch.tensor([0]))
    head = F.LinearCrossEntropyLoss(2, 2)
    assert head(torch.zeros(2, 2, dtype=torch.float32), torch.tensor([-100, -100])) == 0  # torch: NaN


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax"])
def test_an_implicit_dimension_warns_where_torch_warns(name: str) -> None:
    seen = []
    for m in (F, torch.nn):
        with pytest.warns(UserWarning, match="Implicit dimension choice") as warned:
            getattr(m, name)()(Z)
        seen.append((str(warned[0].message), warned[0].filename))
    assert seen[0] == seen[1]


def test_a_head_takes_what_the_function_takes() -> None:
    head = F.LinearCrossEntropyLoss(3, 4, z_loss=0.1, softcap=2.0, scale=0.5, memory_budget=1000)
    expected = F.linear_cross_entropy(Z, head.linear.weight, Y, z_loss=0.1, softcap=2.0, scale=0.5)
    torch.testing.assert_close(head(Z, Y), expected)
    with pytest.raises(TypeError, match="unexpected argument 'zloss'"):
        F.LinearCrossEntropyLoss(3, 4, zloss=0.1)


def test_k_dimensional_heads() -> None:
    ours, theirs = (m.LinearCrossEntropyLoss(3, 4, out_features=(2,), bias=True) for m in (F, torch.nn))
    ours.load_state_dict(theirs.state_dict())
    y = torch.tensor([[0, 3], [1, 2], [2, 2]])
    torch.testing.assert_close(ours(Z, y), theirs(Z, y))


def test_functional_call_and_per_sample_gradients() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)
            self.loss = F.CrossEntropyLoss(label_smoothing=0.1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.loss(self.linear(x), y)

    model = Model()
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (x, y))

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, Z, Y)
    for i in range(len(Z)):
        alone = torch.autograd.grad(model(Z[i], Y[i]), list(model.parameters()))
        for (name, got), expected in zip(each.items(), alone, strict=True):
            torch.testing.assert_close(got[i], expected, msg=lambda text, name=name: f"{name}: {text}")
