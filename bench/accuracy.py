"""How far an implementation is from the truth: relative RMS errors of the loss and of every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdistill_kernels.spec import Shape, Spec

MAPS_OF_REFERENCE = 2**29  # scores of one side that the definition may form: 4 GiB in float64, five such at most alive


def layers(value: Any) -> tuple[Tensor, ...]:
    """An input of one layer or of several, as several."""
    return value if isinstance(value, tuple) else (value,)


def leaves(inputs: dict[str, Any], differentiable: tuple[str, ...]) -> list[Tensor]:
    """What receives gradients, marked so: all implementations share it, therefore none may leave a `.grad`."""
    return [x.requires_grad_() for name in differentiable for x in layers(inputs[name])]


def loss_of(function: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
    """The loss; outputs of a tuple are added up."""
    output = function(**inputs)
    return torch.stack(output).sum() if isinstance(output, tuple) else output


def outcome(function: Callable[..., Any], inputs: dict[str, Any], differentiable: tuple[str, ...]) -> dict[str, Tensor]:
    """The loss and the gradient of every differentiable argument by name, those of several layers stacked."""
    flat = leaves(inputs, differentiable)
    loss = loss_of(function, inputs)
    gradients = iter(torch.autograd.grad(loss, flat))
    return {
        "loss": loss.detach(),
        **{name: torch.stack([next(gradients) for _ in layers(inputs[name])]) for name in differentiable},
    }


def truth(spec: Spec, shape: Shape, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """What the definition gives in float64; where its maps would not fit, what the op gives in float64 without any."""
    fits = shape.heads * shape.pairs <= MAPS_OF_REFERENCE or not spec.name.startswith("attention")
    doubled = {name: _in_double(value) for name, value in inputs.items()}
    return outcome(spec.reference if fits else spec.op, doubled, spec.differentiable)


def errors(
    function: Callable[..., Any], inputs: dict[str, Any], differentiable: tuple[str, ...], expected: dict[str, Tensor]
) -> dict[str, float]:
    """Relative RMS errors by name."""
    actual = outcome(function, inputs, differentiable)
    return {name: _relative_rms(actual[name], value) for name, value in expected.items()}


def _relative_rms(actual: Tensor, expected: Tensor) -> float:
    error = torch.linalg.vector_norm(actual.double() - expected) / torch.linalg.vector_norm(expected)
    return float(f"{float(error):.2e}")


def _in_double(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_in_double, value))
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value
