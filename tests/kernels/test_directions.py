"""Distances of directions, of states as they are and projected: by hand, and at the ends of float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import eager
import pytest
import torch
import torch.nn.functional as F
from on_device import DEVICE, eye, ones, randn, tensor, zeros
from parity import (
    HALF_AND_SINGLE,
    assert_parity,
    assert_within_twice_eager,
    each,
    in_double,
    loss_and_gradients,
    relative_rms,
)

from fastdistill_kernels import hidden_mse
from fastdistill_kernels.device import runs_in_triton
from fastdistill_kernels.hidden_mse.reference import hidden_mse as reference
from fastdistill_kernels.hidden_mse.spec import COSINE, NORMALIZED
from fastdistill_kernels.spec import Shape, Spec

SHAPE = Shape((2, 5, 5, 9), heads=2, head_dim_s=4, head_dim_t=8, layers=3)
both = pytest.mark.parametrize("function", [hidden_mse, reference], ids=["op", "reference"])
each_direction = pytest.mark.parametrize("spec", [NORMALIZED, COSINE], ids=lambda spec: spec.name)


@both
def test_directions_by_hand(function: Callable[..., Any]) -> None:
    """Equal, orthogonal and opposite directions of any length: squared distances 0, 2 and 4, cosines 1, 0 and -1."""
    h_s = tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    h_t = tensor([[5.0, 0.0], [0.0, 7.0], [-9.0, 0.0]])
    turn = tensor([[0.0, -2.0], [2.0, 0.0]])  # by a right angle, and twice as long
    for states, targets, weight in ((h_s, h_t, None), (h_s, h_t @ turn.mT, turn)):
        squared, cosine = (function(states, targets, weight, distance=d) for d in ("normalized", "cosine"))
        torch.testing.assert_close(squared, tensor((0.0 + 2.0 + 4.0) / 3))
        torch.testing.assert_close(cosine, tensor((0.0 + 1.0 + 2.0) / 3))


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("length", [1e-3, 1e-2, 1e3])
@each_direction
def test_directions_of_short_and_long_rows(spec: Spec, length: float, dtype: torch.dtype) -> None:
    """Gradients for what is projected grow as its rows shrink."""
    inputs = spec.inputs(SHAPE, dtype, DEVICE)
    assert_parity(spec, inputs | {"h_s": each(inputs["h_s"], lambda x: length * x), "bias": length * inputs["bias"]})


@pytest.mark.parametrize("apart", [1.0, 1e-1, 1e-2])
@each_direction
def test_directions_that_are_nearly_equal(spec: Spec, apart: float) -> None:
    """Without a projection; with one float32's gradient may err three times as much as eager's, the loss does not."""
    x = randn(40, 312)
    inputs = {"h_s": x, "h_t": 2 * x + apart * randn(40, 312)}
    eye_and_zeros = {"weight": eye(312), "bias": zeros(312)}
    truth = loss_and_gradients(spec.reference, in_double(inputs), ("h_s",))
    in_eager = loss_and_gradients(partial(getattr(eager, spec.name), **eye_and_zeros), inputs, ("h_s",))
    assert_within_twice_eager(loss_and_gradients(spec.op, inputs, ("h_s",)), in_eager, truth)
    projected = loss_and_gradients(spec.op, inputs | eye_and_zeros, ("h_s",))
    assert_within_twice_eager({"loss": projected["loss"]}, in_eager, {"loss": truth["loss"]})
    assert relative_rms(projected["h_s"], truth["h_s"]) <= 5 * relative_rms(in_eager["h_s"], truth["h_s"])


@pytest.mark.parametrize("projected", [False, True])
@each_direction
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_directions_of_the_shortest_and_longest_rows(spec: Spec, projected: bool) -> None:
    """Squares must be numbers of float32: what is too short is a row of zeros on a GPU, what is too long NaN."""
    x, t = F.normalize(randn(7, 48)), randn(7, 48)
    more = {"weight": eye(48), "bias": None} if projected else {}
    for length in (1e-17, 1e18):
        inputs = {"h_s": length * x, "h_t": t} | more
        actual = loss_and_gradients(spec.op, inputs, ("h_s",))
        expected = loss_and_gradients(spec.reference, in_double(inputs), ("h_s",))
        assert all(relative_rms(actual[name], value) < 1e-5 for name, value in expected.items())
    for inputs in ({"h_s": 1e20 * x, "h_t": t}, {"h_s": x, "h_t": 1e20 * t}):
        assert all(value.isnan().any() for value in loss_and_gradients(spec.op, inputs | more, ("h_s",)).values())
    if runs_in_triton(x):
        torch.testing.assert_close(spec.op(1e-20 * x, t, **more), tensor(1.0))


@both
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_a_row_of_zeros_is_no_direction(function: Callable[..., Any], dtype: torch.dtype) -> None:
    """Of student or teacher; its gradient is that of a row of length 1."""
    nothing, something = zeros(1, 4, dtype=dtype), ones(1, 4, dtype=dtype)
    for distance, factor in (("normalized", 2.0), ("cosine", 1.0)):
        for h_s, h_t, gradient in ((nothing, something, -0.5 * factor), (something, nothing, 0.0)):
            h_s.requires_grad_().grad = None
            loss = function(h_s, h_t, distance=distance)
            loss.backward()
            torch.testing.assert_close(loss, tensor(1.0))
            torch.testing.assert_close(h_s.grad, torch.full_like(something, gradient))
            h_s.requires_grad_(False)


@both
def test_a_row_of_zeros_is_projected_to_no_direction(function: Callable[..., Any]) -> None:
    """However many columns there are."""
    h_s, h_t = tensor([[0.0, 0.0], [1.0, 2.0]]), ones(2, 200)
    weight = randn(200, 2)
    cosine = function(h_s, h_t, weight, distance="cosine")
    expected = (1.0 + 1.0 - F.cosine_similarity(h_s[1] @ weight.T, h_t[1], dim=0)) / 2
    torch.testing.assert_close(cosine, expected)
    torch.testing.assert_close(function(h_s, zeros(2, 200), weight, distance="cosine"), tensor(1.0))


@pytest.mark.parametrize("distance", ["normalized", "cosine"])
@pytest.mark.parametrize("size", [0.03, 1.0, 300.0])
def test_directions_of_small_and_large_states_in_float16(distance: str, size: float) -> None:
    """Their gradients shrink as the states grow, but not below what float16 can hold."""
    h_s, h_t = randn(2, 8, 192)
    inputs = {"h_s": (size * h_s).half(), "h_t": h_t.half(), "weight": eye(192).half(), "distance": distance}
    actual = loss_and_gradients(hidden_mse, inputs, ("h_s", "weight"))
    truth = loss_and_gradients(reference, in_double(inputs), ("h_s", "weight"))
    assert {name: relative_rms(actual[name], truth[name]) < 2e-3 for name in truth} == dict.fromkeys(truth, True)
