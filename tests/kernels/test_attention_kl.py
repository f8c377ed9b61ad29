from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import eager
import pytest
import torch
import torch.nn.functional as F
from on_device import DEVICE, ones, randn, tensor, zeros
from padded import padded_scores, real_tokens
from parity import in_double, loss_and_gradients

from fastdistill_kernels import attention_kl
from fastdistill_kernels.attention_kl.reference import attention_kl as reference
from fastdistill_kernels.attention_kl.spec import SPEC
from fastdistill_kernels.spec import Shape

LENGTHS = (2, 5, 5, 9)
both = pytest.mark.parametrize("function", [attention_kl, reference], ids=["op", "reference"])


@both
def test_by_hand(function: Callable[..., Any]) -> None:
    """Teacher rows (1/4, 3/4), student rows (1/2, 1/2): KL(P_t || P_s), not its reverse."""
    a_s = zeros(2, 1, 4)
    a_t = ones(2, 1, 1)
    b_t = tensor([0.0, math.log(3)]).view(2, 1, 1)
    cu_seqlens = tensor([0, 2], dtype=torch.int32)
    expected = tensor(0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5))
    torch.testing.assert_close(function(a_s, a_s, a_t, b_t, cu_seqlens, 2), expected)
    torch.testing.assert_close(function(a_s, a_s, a_t, 2 * b_t, cu_seqlens, 2, temperature=2.0), expected)
    torch.testing.assert_close(function(a_s, a_s, a_t, b_t / 2, cu_seqlens, 2, scale_t=2.0), expected)


@both
def test_temperature_divides_the_scores_of_both_sides(function: Callable[..., Any]) -> None:
    inputs = SPEC.inputs(Shape(LENGTHS, heads=3, head_dim_s=4, head_dim_t=16), device=DEVICE)
    expected = function(**inputs, scale_s=0.5 / 3, scale_t=0.25 / 3)
    torch.testing.assert_close(function(**inputs, temperature=3.0), expected)


@both
def test_padded_is_the_mean_over_padded_rows(function: Callable[..., Any]) -> None:
    inputs = SPEC.inputs(Shape(LENGTHS, heads=3, head_dim_s=8, head_dim_t=16), device=DEVICE)
    log_probs_s = padded_scores(inputs["a_s"], inputs["b_s"], LENGTHS).log_softmax(-1)
    log_probs_t = padded_scores(inputs["a_t"], inputs["b_t"], LENGTHS).log_softmax(-1)
    rows = F.kl_div(log_probs_s, log_probs_t, log_target=True, reduction="none").sum(-1)
    rows = rows * real_tokens(LENGTHS)[:, None, :]
    torch.testing.assert_close(function(**inputs, normalize="padded"), rows.mean())
    longer = function(**inputs | {"max_seqlen": 80}, normalize="padded")
    torch.testing.assert_close(longer, rows.mean() * max(LENGTHS) / 80)
    torch.testing.assert_close(function(**inputs), rows.sum() / (3 * sum(LENGTHS)))


@both
def test_relation_heads_are_a_view_of_the_hidden_size(function: Callable[..., Any]) -> None:
    """Heads of 3 x 8 = 24 and 5 x 12 = 60 wide models, both cut into 6 relation heads."""
    layout = Shape(LENGTHS).layout(torch.device(DEVICE))
    student, teacher = randn(2, sum(LENGTHS), 3, 8), randn(2, sum(LENGTHS), 5, 12)
    cut = [x.reshape(-1, 6, x[0].numel() // 6) for x in (*student, *teacher)]
    actual = function(*student, *teacher, **layout, num_relation_heads=6)
    torch.testing.assert_close(actual, function(*cut, **layout))
    torch.testing.assert_close(actual, function(*cut, **layout, scale_s=4**-0.5, scale_t=10**-0.5))


def test_relation_heads_of_views_have_gradients() -> None:
    """Slices of a fused projection whose heads are not adjacent in memory are copied once, and differentiated."""
    inputs = SPEC.inputs(Shape(LENGTHS, heads=4, head_dim_s=6, head_dim_t=12), device=DEVICE)
    inputs |= {name: torch.cat([inputs[name]] * 2, -1)[..., : inputs[name].shape[-1]] for name in ("a_s", "b_s")}

    def gradients(function: Callable[..., Any], double: bool) -> dict[str, torch.Tensor]:
        values = in_double(inputs) if double else inputs
        return loss_and_gradients(
            lambda **kwargs: function(**kwargs, num_relation_heads=2), values, SPEC.differentiable
        )

    expected = gradients(reference, double=True)
    torch.testing.assert_close(gradients(attention_kl, double=True), expected)
    torch.testing.assert_close(gradients(attention_kl, double=False), expected, check_dtype=False, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [5.0, 20.0, 100.0])
def test_flat_maps_keep_their_digits(temperature: float) -> None:
    """Over several draws, for one draw's error is a matter of luck: hardly more errors than eager's."""

    def error(function: Callable[..., torch.Tensor]) -> float:
        relative = []
        for inputs in draws:
            truth = reference(**in_double(inputs), temperature=temperature)
            relative.append((function(**inputs, temperature=temperature).double() - truth) / truth)
        return float(torch.stack(relative).square().mean().sqrt())

    shape = Shape((33,), heads=1, head_dim_s=8, head_dim_t=16)
    draws = [SPEC.inputs(shape, device=DEVICE, seed=n) for n in range(20)]
    assert error(attention_kl) <= 1.1 * error(eager.attention_kl)


@both
def test_equal_relations_are_zero(function: Callable[..., Any]) -> None:
    v = randn(sum(LENGTHS), 2, 8)
    assert function(v, v, v, v, **Shape(LENGTHS).layout(torch.device(DEVICE))) == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_relation_heads": 5}, "num_relation_heads=5 does not divide the hidden size 24"),
        ({"num_relation_heads": 0}, "num_relation_heads=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": -1.0}, "temperature=-1.0: must be from 1e-06 to 1e"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"num_relation_heads": 2.0}, "num_relation_heads=2.0: must be a whole number"),
    ],
)
def test_errors_name_the_value(option: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_kl(**SPEC.inputs(Shape(LENGTHS, heads=3, head_dim_s=8, head_dim_t=16)), **option)
