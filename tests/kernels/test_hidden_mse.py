from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from on_device import DEVICE, eye, full, ones, randn, tensor, zeros
from parity import (
    in_double,
    loss_and_gradients,
)
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastdistill_kernels import hidden_mse
from fastdistill_kernels.hidden_mse.op import DISTANCES
from fastdistill_kernels.hidden_mse.reference import hidden_mse as reference
from fastdistill_kernels.hidden_mse.spec import SPEC
from fastdistill_kernels.spec import Shape

LENGTHS = (2, 5, 5, 9)
SHAPE = Shape(LENGTHS, heads=2, head_dim_s=4, head_dim_t=8, layers=3)
both = pytest.mark.parametrize("function", [hidden_mse, reference], ids=["op", "reference"])
each_distance = pytest.mark.parametrize("distance", DISTANCES)


@both
def test_by_hand(function: Callable[..., Any]) -> None:
    """One token: (1, 2) W^T + b = (3, 4) against (1, 1)."""
    weight, bias = tensor([[1.0, 1.0], [0.0, 1.0]]), tensor([0.0, 2.0])
    h_s, h_t = tensor([[1.0, 2.0]]), tensor([[1.0, 1.0]])
    torch.testing.assert_close(function(h_s, h_t, weight, bias), tensor((4.0 + 9.0) / 2))
    torch.testing.assert_close(function(h_s, h_t, weight), tensor((4.0 + 1.0) / 2))
    torch.testing.assert_close(function(h_s, h_t), tensor((0.0 + 1.0) / 2))


@both
@each_distance
def test_layers_are_added_up(function: Callable[..., Any], distance: str) -> None:
    inputs = SPEC.inputs(SHAPE, device=DEVICE)
    projection = inputs["weight"], inputs["bias"]
    layers = [
        function(h_s, h_t, *projection, distance=distance)
        for h_s, h_t in zip(inputs["h_s"], inputs["h_t"], strict=True)
    ]
    torch.testing.assert_close(function(**inputs, distance=distance), torch.stack(layers).sum())


@both
def test_padded_is_the_mean_over_padded_states(function: Callable[..., Any]) -> None:
    inputs = SPEC.inputs(SHAPE, device=DEVICE)
    expected = 0.0
    for h_s, h_t in zip(inputs["h_s"], inputs["h_t"], strict=True):
        projected = F.linear(h_s, inputs["weight"], inputs["bias"])
        expected += F.mse_loss(*(pad_sequence(h.split(LENGTHS)) for h in (projected, h_t)))
    padded: dict[str, Any] = {**inputs, **SHAPE.layout(torch.device(DEVICE)), "normalize": "padded"}
    torch.testing.assert_close(function(**padded), expected)
    torch.testing.assert_close(function(**padded | {"max_seqlen": 80}), expected * max(LENGTHS) / 80)
    real, all_rows = SHAPE.tokens, len(LENGTHS) * max(LENGTHS)
    for distance in ("normalized", "cosine"):
        torch.testing.assert_close(
            function(**padded, distance=distance), function(**inputs, distance=distance) * real / all_rows
        )


@both
@each_distance
@pytest.mark.parametrize("num_layers", [2, 3])
def test_a_projection_for_each_layer(function: Callable[..., Any], distance: str, num_layers: int) -> None:
    inputs = SPEC.inputs(replace(SHAPE, layers=num_layers), device=DEVICE) | {"distance": distance}
    weights, biases = (tuple(inputs[name] * (n + 1) for n in range(num_layers)) for name in ("weight", "bias"))
    layers = zip(inputs["h_s"], inputs["h_t"], weights, biases, strict=True)
    expected = torch.stack([function(*layer, distance=distance) for layer in layers]).sum()
    several = {**inputs, "weight": weights, "bias": biases}
    torch.testing.assert_close(function(**several), expected)
    actual = loss_and_gradients(function, several, SPEC.differentiable)
    truth = loss_and_gradients(reference, in_double(several), SPEC.differentiable)
    torch.testing.assert_close(actual, truth, check_dtype=False, rtol=1e-4, atol=1e-6)


@each_distance
def test_without_a_projection_or_a_bias(distance: str) -> None:
    inputs = SPEC.inputs(Shape(LENGTHS, heads=2, head_dim_s=8, head_dim_t=8, layers=2), device=DEVICE)
    inputs |= {"distance": distance}
    for left in ({"h_s", "h_t", "distance"}, {"h_s", "h_t", "weight", "distance"}):
        some = {name: value for name, value in inputs.items() if name in left}
        wanted = tuple(name for name in SPEC.differentiable if name in left)
        actual = loss_and_gradients(hidden_mse, some, wanted)
        truth = loss_and_gradients(reference, in_double(some), wanted)
        torch.testing.assert_close(actual, truth, check_dtype=False, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_projects_in_its_dtype_and_compares_in_float32(dtype: torch.dtype) -> None:
    """States that differ by less than bfloat16 can resolve: the loss must not be rounded to it."""
    h_t = full((64, 8), 100.0)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        loss = hidden_mse((h_t + 0.5).to(dtype), h_t + 0.25)
        projected = hidden_mse(h_t.to(dtype), h_t + 0.25, eye(8) * (1 + 2**-10))  # 1 in bfloat16
    assert loss.dtype == projected.dtype == torch.float32
    assert loss == 0.25**2
    assert projected == 0.25**2


def test_autocast_leaves_states_alone_that_are_not_projected() -> None:
    h_s, h_t = (0.25 + 2**-10) * ones(64, 8, requires_grad=True), zeros(64, 8)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        (gradient,) = torch.autograd.grad(hidden_mse(h_s, h_t), h_s)
    torch.testing.assert_close(gradient, 2 * h_s.detach() / h_s.numel(), rtol=1e-6, atol=0)


@each_distance
@pytest.mark.parametrize("only", SPEC.differentiable)
def test_gradient_of_one_input_alone(distance: str, only: str) -> None:
    inputs = SPEC.inputs(SHAPE, device=DEVICE) | {"distance": distance}
    every, alone = (loss_and_gradients(hidden_mse, inputs, names) for names in (SPEC.differentiable, (only,)))
    torch.testing.assert_close(alone, {"loss": every["loss"], only: every[only]}, rtol=0, atol=0)


@each_distance
def test_states_of_any_stride(distance: str) -> None:
    """Of unlike strides in one call, and with elements that lie apart."""
    inputs = SPEC.inputs(SHAPE, device=DEVICE) | {"distance": distance}
    expected = loss_and_gradients(hidden_mse, inputs, SPEC.differentiable)
    for ways_s, ways_t in (
        ((_first_half, torch.clone, _first_half),) * 2,
        ((_every_second,) * 3,) * 2,
        ((torch.clone,) * 3, (_one_further,) * 3),
        ((_one_further,) * 3, (torch.clone,) * 3),
    ):
        views = {
            name: tuple(way(x) for way, x in zip(ways, inputs[name], strict=True))
            for name, ways in (("h_s", ways_s), ("h_t", ways_t))
        }
        torch.testing.assert_close(loss_and_gradients(hidden_mse, inputs | views, SPEC.differentiable), expected)


def _first_half(x: Tensor) -> Tensor:
    return torch.cat([x, x + 1], dim=1)[:, : x.shape[1]]


def _one_further(x: Tensor) -> Tensor:
    """Rows an odd number of elements apart."""
    return torch.cat([x[:, :1], x], dim=1)[:, 1:]


def _every_second(x: Tensor) -> Tensor:
    return torch.stack([x, x + 1], dim=-1)[..., 0]


@each_distance
def test_the_loss_is_the_same_without_gradients(distance: str) -> None:
    for shape in (SHAPE, Shape(LENGTHS, heads=1, head_dim_s=8, head_dim_t=8)):
        layers = SPEC.inputs(shape, device=DEVICE)
        expected = hidden_mse(**layers, distance=distance)
        layers["weight"].requires_grad_()
        torch.testing.assert_close(hidden_mse(**layers, distance=distance).detach(), expected, rtol=0, atol=0)


def test_parameters_of_another_dtype_get_gradients_in_theirs() -> None:
    inputs = SPEC.inputs(SHAPE, torch.bfloat16, DEVICE)
    inputs |= {name: inputs[name].float() for name in ("weight", "bias")}
    actual, expected = (loss_and_gradients(f, inputs, SPEC.differentiable) for f in (hidden_mse, reference))
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.002)


@each_distance
def test_parameters_of_any_stride(distance: str) -> None:
    inputs = SPEC.inputs(SHAPE, device=DEVICE) | {"distance": distance}
    views = inputs | {
        "weight": inputs["weight"].mT.contiguous().mT,
        "bias": torch.stack([inputs["bias"], inputs["bias"] + 1], dim=1)[:, 0],
    }
    actual, expected = (loss_and_gradients(hidden_mse, x, SPEC.differentiable) for x in (views, inputs))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("distance", ["squared", "normalized", "cosine"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_states_that_are_not_projected_are_rounded_once(distance: str, dtype: torch.dtype) -> None:
    """Those of the same values in float32, rounded (all but few ties)."""
    h_s, h_t = randn(2, 40, 24).to(dtype)
    found = []
    for x, y in ((h_s, h_t), (h_s.float(), h_t.float())):
        x = x.detach().requires_grad_()
        (3e4 * hidden_mse(x, y, distance=distance)).backward()
        found.append(x.grad)
    assert (found[0] == found[1].to(dtype)).float().mean() > 0.98


def test_a_large_difference_of_float16_states_stays_finite() -> None:
    h_s = full((3, 8), 4e4).half().requires_grad_()
    (1e-3 * hidden_mse(h_s, -h_s.detach())).backward()
    torch.testing.assert_close(h_s.grad, torch.full_like(h_s, 1e-3 * 2 * 8e4 / 24))


@pytest.mark.parametrize("weight", [None, "given"])
def test_the_teacher_is_a_constant(weight: str | None) -> None:
    inputs = SPEC.inputs(SHAPE, device=DEVICE)
    h_t = [x.requires_grad_() for x in inputs["h_t"]]
    assert not (hidden_mse(**inputs) if weight else hidden_mse([x.detach() for x in h_t], h_t)).requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h_t": (torch.zeros(20, 16),) * 3}, r"\(21, 8\) and \(20, 16\)"),
        ({"h_s": torch.zeros(8), "h_t": torch.zeros(16)}, r"states are \(8,\)"),
        ({"weight": None, "bias": None}, r"student size 8, teacher size 16: pass weight \(16, 8\)"),
        ({"weight": torch.zeros(8, 16)}, r"weight is \(8, 16\)"),
        ({"bias": torch.zeros(8)}, r"bias is \(8,\)"),
        ({"h_t": (torch.zeros(21, 8),) * 3, "weight": None}, "pass weight"),
        ({"h_t": (torch.zeros(21, 16),) * 2}, "3 student and 2 teacher layers"),
        ({"weight": (torch.zeros(16, 8),) * 2}, "2 weights for 3 layers"),
        (
            {"h_s": (torch.zeros(21, 8), torch.zeros(21, 8), torch.zeros(21, 8).half())},
            "float32 and .*float16: all layers must be alike",
        ),
        ({"h_t": (torch.zeros(21, 16),) * 2 + (torch.zeros(21, 16).half(),)}, "teacher layers .* must be alike"),
        ({"h_t": (torch.zeros(21, 16),) * 2 + (torch.zeros(21, 17),)}, r"teacher layers .*\(21, 17\)"),
        ({"h_s": (), "h_t": ()}, "0 student and 0 teacher layers"),
        ({"bias": (torch.zeros(16),) * 3}, "1 weights for 3 layers"),
        ({"h_t": (torch.zeros(21, 8),) * 3, "weight": None, "bias": torch.zeros(8)}, "pass weight"),
        ({"normalize": "padded"}, "pass cu_seqlens and max_seqlen"),
        (
            {"normalize": "padded", "cu_seqlens": torch.tensor([0, 21], dtype=torch.int32), "max_seqlen": 20},
            "max_seqlen=20",
        ),
        ({"h_t": (torch.zeros(21, 16, device="meta"),) * 3}, "targets is on meta.*move it there"),
        ({"h_t": (torch.zeros(21, 16, dtype=torch.int64),) * 3}, "states: torch.int64 is given, pass float16"),
        ({"h_s": (torch.zeros(21, 8, dtype=torch.float8_e5m2),) * 3}, "states: torch.float8_e5m2 is given"),
        ({"h_s": None}, "1 student and 3 teacher layers"),
        ({"h_t": [1, 2, 3]}, "states: int is given, pass tensors"),
        ({"weight": torch.zeros(16, 8, dtype=torch.int64)}, "weight and bias: torch.int64 is given"),
        (
            {"weight": [torch.zeros(16, 8), torch.zeros(16, 8), torch.zeros(16, 8).half()], "bias": None},
            "weights are .*: give all one dtype",
        ),
        ({"h_s": torch.zeros(21, 0), "h_t": torch.zeros(21, 16), "weight": torch.zeros(16, 0)}, "must have components"),
        (
            {"normalize": "padded", "cu_seqlens": torch.tensor([0, 21], dtype=torch.int32), "max_seqlen": 21.5},
            "max_seqlen=21.5: must be a whole number",
        ),
        ({"normalize": "padded", "cu_seqlens": torch.tensor([0, 21]), "max_seqlen": 21}, "torch.int64"),
        ({"normalize": "sum"}, "normalize='sum'"),
        ({"distance": "l1"}, "distance='l1': choose one of squared, normalized, cosine"),
    ],
)
def test_errors_name_the_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hidden_mse(**{**SPEC.inputs(SHAPE), **change})
