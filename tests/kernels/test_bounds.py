"""Where sequences begin and end: empty ones, tokens of none, and bounds that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_cases import RAGGED, each_algorithm, each_spec, operands
from on_device import DEVICE, KERNELS_RUN, ones, tensor
from parity import GRAM, loss_and_gradients
from torch import Tensor

from fastdistill_kernels.attention import op
from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import ATTENTION_SPECS

KINDS = {"attention_score_mse": op.SCORE_MSE, "attention_prob_mse": op.PROB_MSE, "attention_kl": op.KL}


@each_spec
def test_empty_sequences_among_others_change_nothing(spec: Spec) -> None:
    inputs = spec.inputs(RAGGED, device=DEVICE)
    with_gaps = {**inputs, **Shape((0, 2, 7, 0, 7, 7, 12, 0)).layout(torch.device(DEVICE))}
    actual, expected = (loss_and_gradients(spec.op, i, spec.differentiable) for i in (with_gaps, inputs))
    torch.testing.assert_close(actual["loss"], expected["loss"])
    torch.testing.assert_close(actual, loss_and_gradients(spec.reference, with_gaps, spec.differentiable))


@each_spec
def test_cumulative_lengths_of_any_stride(spec: Spec) -> None:
    inputs = spec.inputs(RAGGED, device=DEVICE)
    bounds = inputs["cu_seqlens"]
    views = inputs | {"cu_seqlens": torch.stack([bounds, bounds + 1], dim=1)[:, 0]}
    actual, expected = (loss_and_gradients(spec.op, x, spec.differentiable) for x in (views, inputs))
    torch.testing.assert_close(actual, expected)


@pytest.mark.skipif(not KERNELS_RUN, reason="refused where the host reads the lengths")
@pytest.mark.parametrize("spec", [*ATTENTION_SPECS, GRAM], ids=[*(spec.name for spec in ATTENTION_SPECS), "gram"])
def test_tokens_of_no_sequence_get_no_gradient(spec: Spec) -> None:
    """A batch filled up to a fixed size: the rest of it changes nothing and stays 0, whatever memory held before."""
    inputs = spec.inputs(RAGGED, device=DEVICE)
    filled = inputs | {name: torch.cat([x, 1 + x[:9]]) for name, x in list(inputs.items())[:4]}
    torch.use_deterministic_algorithms(True)  # memory that nobody has written holds NaN
    try:
        actual = loss_and_gradients(spec.op, filled, spec.differentiable)
    finally:
        torch.use_deterministic_algorithms(False)
    expected = loss_and_gradients(spec.op, inputs, spec.differentiable)
    for name in spec.differentiable:
        assert not actual[name][RAGGED.tokens :].any()
        actual[name] = actual[name][: RAGGED.tokens]
    torch.testing.assert_close(actual, expected)


@pytest.mark.skipif(not KERNELS_RUN, reason="refused where the host reads the lengths")
@each_algorithm
def test_tokens_without_any_sequence(spec: Spec) -> None:
    inputs = spec.inputs(RAGGED, device=DEVICE)
    for bounds in ([0], [0, 0, 0]):
        nothing = inputs | {"cu_seqlens": tensor(bounds, dtype=torch.int32), "max_seqlen": 0}
        for name, value in loss_and_gradients(spec.op, nothing, spec.differentiable).items():
            assert not value.any(), name  # false for NaN as well as for any value but 0


WRONG_BOUNDS = pytest.mark.parametrize(
    "bounds", [[0, 6, 4, 10], [2, 5, 10], [0, 3, 14], [0, 12, 14], [-4, 3, 10], [0, -4, 10], [0, 10, 10**9]], ids=str
)


@pytest.mark.skipif(not KERNELS_RUN, reason="refused where the host reads the lengths")
@each_algorithm
@WRONG_BOUNDS
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of what is made of memory that nobody has written
def test_wrong_cumulative_lengths_make_all_nan(spec: Spec, bounds: list[int]) -> None:
    inputs = spec.inputs(Shape((10,), heads=2, head_dim_s=8, head_dim_t=16), device=DEVICE)
    inputs |= {"cu_seqlens": tensor(bounds, dtype=torch.int32), "max_seqlen": 16}
    found = loss_and_gradients(spec.op, inputs, spec.differentiable)
    assert all(value.isnan().any() for value in found.values())


@pytest.mark.skipif(not KERNELS_RUN, reason="refused where the host reads the lengths")
@each_algorithm
@WRONG_BOUNDS
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_wrong_cumulative_lengths_touch_no_other_memory(
    spec: Spec, bounds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operands have NaN around them; all that is made lies between numbers that must not change."""
    made: list[Tensor] = []

    new_empty = Tensor.new_empty

    def guarded(like: Tensor, shape: Any, **options: Any) -> Tensor:
        if shape == 0:  # the interpreter's own
            return new_empty(like, shape, **options)
        memory = new_empty(
            like, torch.Size((shape,) if isinstance(shape, int) else shape).numel() + 2048, **options
        ).fill_(7.0)
        made.append(memory)
        return memory[1024:-1024].zero_().view(shape)

    shape = Shape((10,), heads=2, head_dim_s=8, head_dim_t=16)
    layers = [
        [F.pad(x, (0, 0, 0, 0, 30, 30), value=torch.nan)[30:-30]] for x in operands(spec.inputs(shape, device=DEVICE))
    ]
    layout = (tensor(bounds, dtype=torch.int32), 16, 0.3, 0.2)
    kernels = op._kernels(KINDS[spec.name], "gram" if spec is GRAM else "tiled")
    for name in ("new_empty", "new_zeros"):
        monkeypatch.setattr(Tensor, name, guarded)
    loss, saved, _ = kernels.forward(*layers, *layout, "tokens")
    gradients = kernels.backward(ones(()), *layers, *layout, saved, ones(()))
    assert loss.isnan()
    for x in (saved, *gradients):
        assert x.isfinite().all()
    assert len(made) > 4
    for memory in made:
        assert (torch.cat([memory[:1024], memory[-1024:]]) == 7).all()
