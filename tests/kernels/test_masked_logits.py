"""Classes whose logits are masked, by one side or by both."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from on_device import arange, randn, tensor
from parity import in_double, loss_and_gradients

from fastdistill_kernels import soft_cross_entropy
from fastdistill_kernels.soft_cross_entropy.reference import soft_cross_entropy as reference


@pytest.mark.parametrize("function", [soft_cross_entropy, reference], ids=["op", "reference"])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 1e-4])  # the lowest number becomes -inf when it is divided
@pytest.mark.parametrize("form", ["ce", "kl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mask", ["lowest", "-inf"])
def test_classes_that_both_sides_mask_add_nothing(
    function: Callable[..., Any], mask: str, dtype: torch.dtype, form: str, temperature: float
) -> None:
    z_s, z_t = randn(2, 6, 5).to(dtype)
    value = torch.finfo(dtype).min if mask == "lowest" else -math.inf
    wide_s, wide_t = (torch.cat([z, torch.full_like(z[:, :1], value)], 1) for z in (z_s, z_t))
    z_s.requires_grad_(True)
    wide_s.requires_grad_(True)
    expected, losses = (
        function(s, t, arange(6) % 5, form=form, temperature=temperature) for s, t in ((z_s, z_t), (wide_s, wide_t))
    )
    torch.testing.assert_close(losses, expected)
    (d_expected,), (d_wide,) = (torch.autograd.grad(sum(ab), z) for ab, z in ((expected, z_s), (losses, wide_s)))
    torch.testing.assert_close(d_wide[:, :5], d_expected)
    assert (d_wide[:, 5] == 0).all()


@pytest.mark.parametrize("classes", [5, 16, 2100])  # of which 16 alone fills its blocks
@pytest.mark.parametrize("masked", ["student", "teacher", "both"])
@pytest.mark.parametrize("form", ["ce", "kl"])
def test_a_row_masked_as_a_whole_says_the_same_of_all_its_classes(form: str, masked: str, classes: int) -> None:
    z_s, z_t = randn(2, 3, classes)
    for side, z in (("student", z_s), ("teacher", z_t)):
        if masked in (side, "both"):
            z[1] = -math.inf
    inputs = {"student_logits": z_s, "teacher_logits": z_t, "labels": tensor([2, 1, 0]), "form": form}
    actual = loss_and_gradients(soft_cross_entropy, inputs, ("student_logits",))
    expected = loss_and_gradients(reference, in_double(inputs), ("student_logits",))
    torch.testing.assert_close(actual, expected, check_dtype=False, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["ce", "kl"])
def test_classes_that_the_student_masks_cost_much_and_get_no_gradient(form: str) -> None:
    z_s, z_t = randn(2, 4, 5)
    z_s[0, 2], z_s[1, 0], z_s[2, 3] = -math.inf, torch.finfo(torch.float32).min, -2e30
    inputs = {"student_logits": z_s, "teacher_logits": z_t, "labels": tensor([2, 1, 0, 4]), "form": form}
    actual = loss_and_gradients(soft_cross_entropy, inputs, ("student_logits",))
    expected = loss_and_gradients(reference, in_double(inputs), ("student_logits",))
    torch.testing.assert_close(actual, expected, check_dtype=False, rtol=1e-5, atol=1e-6)
    assert [float(actual["student_logits"][place]) for place in ((0, 2), (1, 0), (2, 3))] == [0.0] * 3
