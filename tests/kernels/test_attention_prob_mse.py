from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from on_device import DEVICE, ones, tensor, zeros
from padded import padded_scores, real_tokens

from fastdistill_kernels import attention_prob_mse
from fastdistill_kernels.attention_prob_mse.reference import attention_prob_mse as reference
from fastdistill_kernels.attention_prob_mse.spec import SPEC
from fastdistill_kernels.spec import Shape

LENGTHS = (2, 5, 5, 9)
both = pytest.mark.parametrize("function", [attention_prob_mse, reference], ids=["op", "reference"])


@both
def test_by_hand(function: Callable[..., Any]) -> None:
    """Student rows (1/4, 3/4), teacher rows (1/2, 1/2): every entry is off by 1/4."""
    q_s = ones(2, 1, 1)
    k_s = tensor([0.0, 3.0]).log1p().sub(tensor([0.0, 1 / 3]).log1p()).view(2, 1, 1)
    q_t = zeros(2, 1, 4)
    loss = function(q_s, k_s, q_t, q_t, tensor([0, 2], dtype=torch.int32), 2)
    torch.testing.assert_close(loss, tensor(1 / 16))


@both
def test_padded_is_the_mean_over_padded_maps(function: Callable[..., Any]) -> None:
    inputs = SPEC.inputs(Shape(LENGTHS, heads=3, head_dim_s=8, head_dim_t=16), device=DEVICE)
    rows = real_tokens(LENGTHS)[:, None, :, None]
    probs_s = padded_scores(inputs["q_s"], inputs["k_s"], LENGTHS).softmax(-1) * rows
    probs_t = padded_scores(inputs["q_t"], inputs["k_t"], LENGTHS).softmax(-1) * rows
    torch.testing.assert_close(function(**inputs, normalize="padded"), F.mse_loss(probs_s, probs_t))
    longer = function(**inputs | {"max_seqlen": 80}, normalize="padded")
    torch.testing.assert_close(longer, F.mse_loss(probs_s, probs_t) * (max(LENGTHS) / 80) ** 2)
    real = 3 * sum(n * n for n in LENGTHS)
    torch.testing.assert_close(function(**inputs), F.mse_loss(probs_s, probs_t, reduction="sum") / real)


@both
def test_scale_sharpens_a_side(function: Callable[..., Any]) -> None:
    inputs = SPEC.inputs(Shape(LENGTHS, heads=3, head_dim_s=8, head_dim_t=8), device=DEVICE)
    twice = {**inputs, "q_s": 2 * inputs["q_s"]}
    torch.testing.assert_close(function(**inputs, scale_s=2 * 8**-0.5), function(**twice))


@both
def test_temperature_divides_the_scores_of_both_sides(function: Callable[..., Any]) -> None:
    inputs = SPEC.inputs(Shape(LENGTHS, heads=3, head_dim_s=8, head_dim_t=16))
    expected = function(**inputs, scale_s=8**-0.5 / 3, scale_t=1 / 12)
    torch.testing.assert_close(function(**inputs, temperature=3.0), expected)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature=0.0: must be from"):
        attention_prob_mse(**SPEC.inputs(Shape(LENGTHS)), temperature=0.0)
