"""Errors are those against the definition in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import accuracy
from bench.accuracy import errors, truth
from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import ATTENTION_KL, HIDDEN_MSE, SPECS

SHAPE = Shape((5, 5), heads=2, head_dim_s=8, head_dim_t=16, layers=2, classes=5)
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


@each_spec
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
def test_ops_are_near_the_truth(spec: Spec, dtype: torch.dtype, bound: float) -> None:
    inputs = spec.inputs(SHAPE, dtype)
    found = errors(spec.op, inputs, spec.differentiable, truth(spec, SHAPE, inputs))
    assert found.keys() == {"loss", *spec.differentiable}
    assert max(found.values()) < bound
    assert all(x.grad is None for x in accuracy.leaves(inputs, spec.differentiable))


@each_spec
def test_a_wrong_gradient_is_seen(spec: Spec) -> None:
    def wrong(**inputs: Any) -> Tensor:
        loss = accuracy.loss_of(spec.op, inputs)
        return loss + 0.1 * (loss - loss.detach())  # the same loss, a gradient too large by a tenth

    inputs = spec.inputs(SHAPE)
    found = errors(wrong, inputs, spec.differentiable, truth(spec, SHAPE, inputs))
    assert found.pop("loss") < 1e-5
    assert list(found.values()) == pytest.approx([0.1] * len(spec.differentiable), rel=1e-2)


def test_one_wrong_layer_is_seen() -> None:
    def wrong(h_s: tuple[Tensor, ...], **rest: Any) -> Tensor:
        first, second = h_s
        loss: Tensor = HIDDEN_MSE.op((first, second.detach()), **rest)
        return loss + 0 * second.sum()

    inputs = HIDDEN_MSE.inputs(SHAPE)
    found = errors(wrong, inputs, HIDDEN_MSE.differentiable, truth(HIDDEN_MSE, SHAPE, inputs))
    assert found["h_s"] == pytest.approx(0.5**0.5, rel=0.3)
    assert found["loss"] < 1e-5


def test_nan_is_an_error() -> None:
    expected = truth(HIDDEN_MSE, SHAPE, HIDDEN_MSE.inputs(SHAPE))
    found = errors(
        lambda **inputs: HIDDEN_MSE.op(**inputs) * float("nan"),
        HIDDEN_MSE.inputs(SHAPE),
        HIDDEN_MSE.differentiable,
        expected,
    )
    assert all(error != error for error in found.values())


def test_truth_is_double_and_of_the_rounded_inputs() -> None:
    inputs = ATTENTION_KL.inputs(SHAPE, torch.bfloat16)
    expected = truth(ATTENTION_KL, SHAPE, inputs)
    assert {x.dtype for x in expected.values()} == {torch.float64}
    doubled = ATTENTION_KL.inputs(SHAPE, torch.bfloat16)
    doubled = {
        name: tuple(x.double() for x in value) if isinstance(value, tuple) else value for name, value in doubled.items()
    }
    torch.testing.assert_close(expected["loss"], ATTENTION_KL.reference(**doubled), rtol=1e-12, atol=0)


def test_where_maps_do_not_fit_the_op_in_double_is_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any, **__: Any) -> Tensor:
        raise MemoryError

    inputs = ATTENTION_KL.inputs(SHAPE)
    expected = truth(ATTENTION_KL, SHAPE, inputs)
    monkeypatch.setattr(accuracy, "MAPS_OF_REFERENCE", SHAPE.heads * SHAPE.pairs)
    with pytest.raises(MemoryError):
        truth(replace(ATTENTION_KL, reference=no_room), SHAPE, inputs)
    monkeypatch.setattr(accuracy, "MAPS_OF_REFERENCE", SHAPE.heads * SHAPE.pairs - 1)
    actual = truth(replace(ATTENTION_KL, reference=no_room), SHAPE, inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)
    truth(replace(HIDDEN_MSE, op=no_room), SHAPE, HIDDEN_MSE.inputs(SHAPE))  # forms no maps: always its definition
