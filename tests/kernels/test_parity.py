"""What holds for every op: agreement with its reference in every dtype, and a rule that can say no."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from on_device import DEVICE, tensor
from parity import (
    HALF_AND_SINGLE,
    LOSS_SCALE,
    assert_parity,
    assert_parity_of_many,
    assert_within_twice_eager,
    in_double,
    loss_and_gradients,
    relative_rms,
    three_ways,
)
from torch import Tensor

from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import ATTENTION_SPECS, SOFT_CROSS_ENTROPY, SPECS

RAGGED = Shape((1, 2, 2, 5, 17, 33), heads=2, head_dim_s=26, head_dim_t=64, layers=2, classes=7)
SMALL = Shape((3, 3, 1, 2), heads=2, head_dim_s=3, head_dim_t=5, layers=2, classes=3)

each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
each_dtype = pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)


def tensors(value: Any) -> tuple[Tensor, ...]:
    """The floating tensors of an input: one, one per layer, or none."""
    found = value if isinstance(value, tuple) else (value,)
    return tuple(x for x in found if isinstance(x, Tensor) and x.is_floating_point())


@each_spec
@each_dtype
def test_op_errs_at_most_twice_as_much_as_eager(spec: Spec, dtype: torch.dtype) -> None:
    assert_parity(spec, spec.inputs(RAGGED, dtype, DEVICE))


@each_spec
@each_dtype
@pytest.mark.parametrize("corrupt", [torch.zeros_like, torch.neg, lambda x: 1.02 * x], ids=["zero", "sign", "2%"])
def test_rule_refuses_a_wrong_gradient(spec: Spec, dtype: torch.dtype, corrupt: Callable[[Tensor], Tensor]) -> None:
    inputs = spec.inputs(RAGGED, dtype, DEVICE)
    actual, in_eager, truth = three_ways(spec, inputs)
    for name in spec.differentiable:
        with pytest.raises(AssertionError, match=name):
            assert_within_twice_eager({**actual, name: corrupt(actual[name])}, in_eager, truth)


@each_spec
def test_reference_gradient_is_its_derivative(spec: Spec) -> None:
    inputs = in_double(spec.inputs(SMALL))
    layers = {name: tensors(inputs[name]) for name in spec.differentiable}
    leaves = [x.requires_grad_() for group in layers.values() for x in group]

    def loss(*values: Tensor) -> Tensor:
        rest = iter(values)
        groups = {name: tuple(next(rest) for _ in group) for name, group in layers.items()}
        return spec.reference(**{**inputs, **{name: x if len(x) > 1 else x[0] for name, x in groups.items()}})

    assert torch.autograd.gradcheck(loss, leaves)


@each_spec
def test_float64_op_is_its_reference(spec: Spec) -> None:
    inputs = in_double(spec.inputs(RAGGED, device=DEVICE))
    actual, expected = (loss_and_gradients(f, inputs, spec.differentiable) for f in (spec.op, spec.reference))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)


@each_spec
@each_dtype
def test_two_runs_are_bitwise_equal(spec: Spec, dtype: torch.dtype) -> None:
    inputs = spec.inputs(RAGGED, dtype, DEVICE)
    first, second = (loss_and_gradients(spec.op, inputs, spec.differentiable) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@each_spec
def test_gradients_are_proportional_to_what_arrives(spec: Spec) -> None:
    """Whatever its sign; powers of two round nothing."""
    inputs = spec.inputs(SMALL, device=DEVICE)
    leaves = [x.requires_grad_() for name in spec.differentiable for x in tensors(inputs[name])]
    output = spec.op(**inputs)
    loss = sum(output) if isinstance(output, tuple) else output
    once, *others = (torch.autograd.grad(loss, leaves, tensor(x), retain_graph=True) for x in (1.0, -4.0, 0.0))
    for factor, gradients in zip((-4.0, 0.0), others, strict=True):
        torch.testing.assert_close(gradients, tuple(factor * x for x in once), rtol=0, atol=0)


@pytest.mark.parametrize("spec", [*ATTENTION_SPECS, SOFT_CROSS_ENTROPY], ids=lambda spec: spec.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.skipif(DEVICE == "cuda", reason="tensor cores take rounded factors")
def test_gradients_are_rounded_once(spec: Spec, dtype: torch.dtype) -> None:
    """With all that is folded into them: those of the same values in float32, rounded (all but few ties)."""

    def loss(**values: Any) -> Tensor:
        output = spec.op(**values)
        return 0.3 * (sum(output) if isinstance(output, tuple) else output)

    inputs = spec.inputs(RAGGED, dtype, DEVICE)
    single = {k: tuple(x.float() for x in v) if isinstance(v, tuple) else v for k, v in inputs.items()}
    single |= {k: v.float() for k, v in single.items() if isinstance(v, Tensor) and v.is_floating_point()}
    actual, expected = (loss_and_gradients(loss, values, spec.differentiable) for values in (inputs, single))
    for name in spec.differentiable:
        rounded = (expected[name] * LOSS_SCALE).to(dtype).double() / LOSS_SCALE
        assert (actual[name] == rounded).double().mean() > 0.98, name


@each_spec
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_values_stay_finite(spec: Spec, dtype: torch.dtype) -> None:
    inputs = spec.inputs(RAGGED, dtype, DEVICE)
    for value in inputs.values():
        for x in tensors(value):
            x.copy_(torch.full_like(x, 1e4).copysign(x))
    for value in loss_and_gradients(spec.op, inputs, spec.differentiable).values():
        assert value.isfinite().all()


@pytest.mark.parametrize("spec", ATTENTION_SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [(33, 70), (60,)], ids=str)
def test_scores_of_ten_thousand(spec: Spec, dtype: torch.dtype, lengths: tuple[int, ...]) -> None:
    """Where a softmax sees hardly more than one of them, and a number's last bit is a thousandth.

    Passes must agree on which. A gradient is then that of the few rows where two scores all but agree, and its error
    their chance: eager's own formula, computed in another order, errs 0.04 to 9 times as much as eager. float16 scores
    of eager's would leave their range.
    """

    def draw(seed: int) -> dict[str, Any]:
        inputs = spec.inputs(Shape(lengths, heads=2, head_dim_s=32, head_dim_t=64), dtype, DEVICE, seed)
        for value in inputs.values():
            for x in tensors(value):
                x.mul_(70.0)
        a_s, b_s = (tensors(inputs[name])[0][: lengths[0], 0].float() for name in spec.differentiable)
        assert (a_s @ b_s.T).abs().max() * 32**-0.5 > 1e4
        return inputs

    assert_parity_of_many(spec, map(draw, range(8)))


@each_spec
def test_one_token_and_no_token(spec: Spec) -> None:
    assert_parity(spec, spec.inputs(Shape((1,)), device=DEVICE))
    empty = loss_and_gradients(spec.op, spec.inputs(Shape(()), device=DEVICE), spec.differentiable)
    for name, value in empty.items():
        assert not value.any(), name  # false for NaN as well as for any value but 0


@each_spec
@pytest.mark.parametrize("way", ["op", "reference"])
def test_teacher_receives_no_gradient(spec: Spec, way: str) -> None:
    inputs = spec.inputs(SMALL, device=DEVICE)
    for value in inputs.values():
        for x in tensors(value):
            x.requires_grad_()
    output = getattr(spec, way)(**inputs)
    (sum(output) if isinstance(output, tuple) else output).backward()
    received = {name for name, value in inputs.items() if any(x.grad is not None for x in tensors(value))}
    assert received == set(spec.differentiable)


@each_spec
def test_reference_computes_in_single_at_least(spec: Spec) -> None:
    inputs = spec.inputs(SMALL, torch.bfloat16)
    actual, expected = spec.reference(**inputs), spec.reference(**in_double(inputs))
    torch.testing.assert_close(actual, expected, check_dtype=False, rtol=1e-5, atol=0)


ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
MIXED = [
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.bfloat16),
]


@each_spec
@pytest.mark.parametrize(("student", "teacher"), MIXED, ids=str)
def test_teacher_of_another_dtype(spec: Spec, student: torch.dtype, teacher: torch.dtype) -> None:
    """The student's decides how exact the result is."""
    inputs, others = spec.inputs(SMALL, student, DEVICE), spec.inputs(SMALL, teacher, DEVICE)
    inputs |= {name: x for name, x in others.items() if name.endswith("_t") or name == "teacher_logits"}
    actual = loss_and_gradients(spec.op, inputs, spec.differentiable)
    truth = loss_and_gradients(spec.reference, in_double(inputs), spec.differentiable)
    assert actual["loss"].dtype == torch.promote_types(student, torch.float32)
    bound = 1e-12 if student == torch.float64 else ROUNDING[student]
    assert {name: relative_rms(actual[name], truth[name]) < bound for name in truth} == dict.fromkeys(truth, True)


@each_spec
def test_compiles_as_one_graph_for_all_shapes(spec: Spec) -> None:
    """Once, with sizes that may vary: other lengths and numbers of sequences compile nothing again."""
    torch.compiler.reset()
    compiled = torch.compile(spec.op, fullgraph=True, backend="aot_eager", dynamic=True)
    for n, lengths in enumerate([(3, 3, 7), (2, 5, 9, 9), (40, 2)]):
        inputs = spec.inputs(Shape(lengths, heads=2, head_dim_s=8, head_dim_t=16, layers=2), device=DEVICE)
        with torch.compiler.set_stance("fail_on_recompile" if n else "default"):
            actual = loss_and_gradients(compiled, inputs, spec.differentiable)
        torch.testing.assert_close(actual, loss_and_gradients(spec.op, inputs, spec.differentiable))


@each_spec
def test_never_waits_for_a_value(spec: Spec) -> None:
    """Meta tensors hold no values: what runs on them, forward and backward, never makes the host wait for a device."""
    inputs = spec.inputs(RAGGED, torch.bfloat16, device="meta")
    assert all(value.is_meta for value in loss_and_gradients(spec.op, inputs, spec.differentiable).values())


@each_spec
def test_bytes_and_flops_grow_with_the_batch(spec: Spec) -> None:
    once, twice = Shape((4, 6)), Shape((4, 6, 4, 6))
    assert 0 < spec.flops(once) * 2 == spec.flops(twice)
    assert 0 < spec.bytes_moved(once, torch.bfloat16) * 2 == spec.bytes_moved(once, torch.float32)
    assert spec.bytes_moved(once, torch.float32) < spec.bytes_moved(twice, torch.float32)
