"""The one rule of numerical agreement: an op may err at most twice as much as same-dtype eager PyTorch does.

Errors are relative RMS against the reference in float64, for the loss and for every gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from statistics import geometric_mean
from typing import Any

import eager
import torch
from torch import Tensor

from fastdistill_kernels import attention_score_mse
from fastdistill_kernels.spec import Spec
from fastdistill_kernels.specs import ATTENTION_SCORE_MSE

TILED, GRAM = (
    replace(ATTENTION_SCORE_MSE, op=partial(attention_score_mse, algorithm=name)) for name in ("tiled", "gram")
)

LAST_BITS = 1e-6  # of float32: eager may err by none of them
GRAM_BOUND = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
LOSS_SCALE = 1024.0  # without one, eager float16 loses small gradients and the bar would be too low
HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


def loss_and_gradients(
    function: Callable[..., Any], inputs: dict[str, Any], differentiable: tuple[str, ...]
) -> dict[str, Tensor]:
    """The loss, outputs of a tuple added up, and the gradient of every differentiable argument in float64, by name.

    Gradients of several layers are stacked.
    """
    leaves = {name: each(inputs[name], lambda x: x.detach().requires_grad_()) for name in differentiable}
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


def each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`function` of a tensor, or of every layer's; what is none stays as it is."""
    if isinstance(value, tuple):
        return tuple(map(function, value))
    return function(value) if isinstance(value, Tensor) else value


def sliced(x: Tensor) -> Tensor:
    """The same rows, each before others in memory, as the queries in a projection to queries, keys and values."""
    return torch.stack([x, x + 1, x + 2], dim=1)[:, 0]


def in_double(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs with floating tensors as float64."""
    return {name: each(value, _to_double) for name, value in inputs.items()}


def _to_double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def relative_rms(actual: Tensor, truth: Tensor) -> float:
    error, size = (actual.double() - truth).square().mean().sqrt(), truth.square().mean().sqrt()
    return float(error if size == 0 else error / size)


def assert_within_twice_eager(actual: dict[str, Tensor], in_eager: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    for name, value in truth.items():
        error, bound = relative_rms(actual[name], value), 2 * relative_rms(in_eager[name], value) + LAST_BITS
        assert error <= bound, f"{name}: relative RMS error {error:.2e}, allowed {bound:.2e}"  # false for NaN too


def assert_exact_within(bound: float, spec: Spec, inputs: dict[str, Any]) -> None:
    """Hold `spec.op` to a bound of its own, where it computes otherwise than eager does."""
    actual = loss_and_gradients(spec.op, inputs, spec.differentiable)
    truth = loss_and_gradients(spec.reference, in_double(inputs), spec.differentiable)
    errors = {name: relative_rms(actual[name], truth[name]) for name in truth}
    assert all(error < bound for error in errors.values()), f"relative RMS errors {errors}, allowed {bound:.0e}"


def three_ways(spec: Spec, inputs: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The loss and gradients by `spec.op`, by eager PyTorch, and in truth."""
    actual = loss_and_gradients(spec.op, inputs, spec.differentiable)
    in_eager = loss_and_gradients(getattr(eager, spec.name), inputs, spec.differentiable)
    truth = loss_and_gradients(spec.reference, in_double(inputs), spec.differentiable)
    return actual, in_eager, truth


def assert_parity(spec: Spec, inputs: dict[str, Any]) -> None:
    """Hold `spec.op` to the rule for these inputs."""
    assert_within_twice_eager(*three_ways(spec, inputs))


def assert_parity_of_many(spec: Spec, draws: Iterable[dict[str, Any]]) -> None:
    """Hold `spec.op` to the rule in the geometric mean of several draws, where the error of one is chance."""
    ratios = defaultdict(list)
    for inputs in draws:
        actual, in_eager, truth = three_ways(spec, inputs)
        for name, value in truth.items():
            mine, bar = (relative_rms(x[name], value) + LAST_BITS for x in (actual, in_eager))
            ratios[name].append(mine / bar)
    for name, found in ratios.items():
        assert geometric_mean(found) <= 2, f"{name}: errors are {found} times those of eager"  # false for NaN too
