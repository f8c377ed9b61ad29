"""What can be said of the kernels only where they run: outputs written whole, ways that agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from parity import HALF_AND_SINGLE, in_double, loss_and_gradients, relative_rms
from torch import Tensor

from fastdistill_kernels import attention_score_mse
from fastdistill_kernels.device import INTERPRETED
from fastdistill_kernels.hidden_mse.op import DISTANCES
from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import ATTENTION_SCORE_MSE, SPECS

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are not interpreted")

RAGGED = Shape((1, 2, 5, 17, 33), heads=2, head_dim_s=26, head_dim_t=64, layers=2, classes=7)


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("shape", [RAGGED, Shape((0, 3, 0, 65)), Shape((64,) * 2)], ids=["ragged", "gaps", "full"])
def test_every_output_is_written_whole(spec: Spec, shape: Shape) -> None:
    inputs = spec.inputs(shape)
    expected = loss_and_gradients(spec.op, inputs, spec.differentiable)
    with poisoned():
        assert torch.empty(3).isnan().all()
        actual = loss_and_gradients(spec.op, inputs, spec.differentiable)
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name
        assert value.isfinite().all(), name


def gram(**values: Any) -> Tensor:
    return attention_score_mse(**values, algorithm="gram")


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("stretch", [64, 1024])
def test_gram_agrees_with_the_definition(dtype: torch.dtype, stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the longest map has several stretches, and where each is one."""
    from fastdistill_kernels.attention_score_mse import kernel

    monkeypatch.setattr(kernel, "STRETCH", stretch)
    inputs = ATTENTION_SCORE_MSE.inputs(Shape((3, 0, 64, 150), heads=2, head_dim_s=26, head_dim_t=32, layers=2), dtype)
    actual = loss_and_gradients(gram, inputs, ("q_s", "k_s"))
    truth = loss_and_gradients(ATTENTION_SCORE_MSE.reference, in_double(inputs), ("q_s", "k_s"))
    bound = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    assert {name: relative_rms(actual[name], truth[name]) < bound for name in truth} == dict.fromkeys(truth, True)


def test_gram_keeps_its_digits_where_student_and_teacher_all_but_agree() -> None:
    """At a mean squared error of 1e-3 large numbers cancel; what is left is good to a few parts in a thousand."""
    q, k = torch.randn(2, 128, 2, 32, generator=torch.Generator().manual_seed(0))
    noise = 0.02 * torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    cu_seqlens = torch.tensor([0, 128], dtype=torch.int32)
    inputs = {"q_s": q + noise, "k_s": k, "q_t": q, "k_t": k, "cu_seqlens": cu_seqlens, "max_seqlen": 128}
    truth = loss_and_gradients(ATTENTION_SCORE_MSE.reference, in_double(inputs), ("q_s", "k_s"))
    assert truth["loss"] < 1e-3
    actual = loss_and_gradients(gram, inputs, ("q_s", "k_s"))
    assert {name: relative_rms(actual[name], truth[name]) < 2e-3 for name in truth} == dict.fromkeys(truth, True)


def test_registration_of_the_other_ops() -> None:
    """Those of attention are checked in test_tiled.py."""
    ops = torch.ops.fastdistill
    states = [torch.randn(5, 8).requires_grad_() for _ in range(2)]
    weight, bias = torch.randn(16, 8).requires_grad_(), torch.randn(16).requires_grad_()
    targets = [torch.randn(5, 16) for _ in range(2)]
    for distance in DISTANCES:
        hidden = (states, targets, [weight], [bias], 80, distance, torch.float32, True)
        torch.library.opcheck(ops.hidden_mse.default, hidden)
    z_s, z_t = torch.randn(4, 7).requires_grad_(), torch.randn(4, 7)
    optional = (torch.tensor([1, -100, 3, 0]), torch.tensor([0, 1, 3]), torch.rand(4))
    for some in (optional, (None, None, None)):
        inputs = (*some, 7, -100, [2.0, 3.0, 6.0, 1.0, 0.5])
        torch.library.opcheck(ops.soft_cross_entropy.default, (z_s, z_t, *inputs, True, False))
        # the gradient that leaves here would be written to in the backward pass; the public function keeps it to itself
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(ops.soft_cross_entropy.default, (z_s, z_t, *inputs, True, True), test_utils=tests)
        logits = z_s.detach(), z_t
        _, _, gradient, *saved = ops.soft_cross_entropy(*logits, *inputs, True, True)
        incoming = (torch.ones(()), None, *logits, *some, *saved, *inputs[3:])
        torch.library.opcheck(ops.soft_cross_entropy_backward.default, incoming)
        torch.library.opcheck(ops.soft_cross_entropy_correct.default, (gradient, *incoming))
