"""The one rule of numerical agreement: an op may err at most twice as much as same-dtype eager PyTorch does.

Errors are relative RMS against the reference in float64, for the loss and for every gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import eager
import torch
from torch import Tensor

from fastdistill_kernels.spec import Spec

LOSS_SCALE = 1024.0  # without one, eager float16 loses small gradients and the bar would be too low
HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


def loss_and_gradients(
    function: Callable[..., Any], inputs: dict[str, Any], differentiable: tuple[str, ...]
) -> dict[str, Tensor]:
    """The loss, outputs of a tuple added up, and the gradient of every differentiable argument in float64, by name.

    Gradients of several layers are stacked.
    """
    leaves = {name: _map(lambda x: x.detach().requires_grad_(), inputs[name]) for name in differentiable}
    output = function(**{**inputs, **leaves})
    loss = torch.stack(output).sum() if isinstance(output, tuple) else output
    layers = {name: leaf if isinstance(leaf, tuple) else (leaf,) for name, leaf in leaves.items()}
    flat = [x for group in layers.values() for x in group]
    found = iter(torch.autograd.grad(loss, flat, torch.full_like(loss, LOSS_SCALE)))
    gradients = {"loss": loss.detach()}
    for name, group in layers.items():
        own = [next(found) for _ in group]
        for x, gradient in zip(group, own, strict=True):
            assert (gradient.dtype, gradient.shape) == (x.dtype, x.shape)
        gradients[name] = torch.stack(own).double().flatten(0, 1) / LOSS_SCALE
    return gradients


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`function` of a tensor, or of every layer's."""
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


def in_double(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs with floating tensors as float64."""
    return {k: _map(_to_double, v) if isinstance(v, Tensor | tuple) else v for k, v in inputs.items()}


def _to_double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def relative_rms(actual: Tensor, truth: Tensor) -> float:
    error, size = (actual.double() - truth).square().mean().sqrt(), truth.square().mean().sqrt()
    return float(error if size == 0 else error / size)


def assert_within_twice_eager(
    actual: dict[str, Tensor], in_eager: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float
) -> None:
    for name, value in truth.items():
        error, bound = relative_rms(actual[name], value), 2 * relative_rms(in_eager[name], value) + tolerance
        assert error <= bound, f"{name}: relative RMS error {error:.2e}, allowed {bound:.2e}"  # false for NaN too


def assert_parity(spec: Spec, inputs: dict[str, Any], dtype: torch.dtype) -> None:
    """Hold `spec.op` to the rule for these inputs, which are of `dtype`."""
    actual = loss_and_gradients(spec.op, inputs, spec.differentiable)
    in_eager = loss_and_gradients(getattr(eager, spec.name), inputs, spec.differentiable)
    truth = loss_and_gradients(spec.reference, in_double(inputs), spec.differentiable)
    assert_within_twice_eager(actual, in_eager, truth, spec.tolerance[dtype])
