from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_cases import cpu_path
from on_device import DEVICE, full, tensor
from padded import padded_scores, real_tokens
from parity import HALF_AND_SINGLE, assert_parity, in_double, loss_and_gradients, relative_rms

from fastdistill_kernels import attention_score_mse
from fastdistill_kernels.attention_score_mse.reference import attention_score_mse as reference
from fastdistill_kernels.attention_score_mse.spec import SPEC
from fastdistill_kernels.spec import Shape

LENGTHS = (2, 5, 5, 9)
gram = partial(attention_score_mse, algorithm="gram")
both = pytest.mark.parametrize("function", [attention_score_mse, gram, reference], ids=["op", "gram", "reference"])


@both
def test_by_hand(function: Callable[..., Any]) -> None:
    """Two tokens, one head of size 1 and 4: scores 1, 2, 2, 4 against 1, 1, 1, 1."""
    q_s = tensor([1.0, 2.0]).view(2, 1, 1)
    q_t = full((2, 1, 4), 0.5**0.5)
    cu_seqlens = tensor([0, 2], dtype=torch.int32)
    loss = function(q_s, q_s, q_t, q_t, cu_seqlens, 2)
    torch.testing.assert_close(loss, tensor((0.0 + 1 + 1 + 9) / 4))
    loss = function(q_s, q_s, q_t, q_t, cu_seqlens, 2, scale_s=2.0, scale_t=0.0)
    torch.testing.assert_close(loss, tensor((4.0 + 16 + 16 + 64) / 4))


@both
def test_padded_is_a_mean_over_padded_maps(function: Callable[..., Any]) -> None:
    """TinyBERT's code sets masked scores to 0 on both sides; here the rows of pad queries are 0 too."""
    inputs = SPEC.inputs(Shape(LENGTHS, heads=3, head_dim_s=8, head_dim_t=16), device=DEVICE)
    scores_s = padded_scores(inputs["q_s"], inputs["k_s"], LENGTHS)
    scores_t = padded_scores(inputs["q_t"], inputs["k_t"], LENGTHS)
    scores_s, scores_t = (torch.where(scores <= -1e2, 0.0, scores) for scores in (scores_s, scores_t))
    torch.testing.assert_close(function(**inputs, normalize="padded"), F.mse_loss(scores_s, scores_t))
    longer = function(**inputs | {"max_seqlen": 80}, normalize="padded")
    torch.testing.assert_close(longer, F.mse_loss(scores_s, scores_t) * (max(LENGTHS) / 80) ** 2)


@both
def test_tinybert_as_published_with_its_pad_queries(function: Callable[..., Any]) -> None:
    """Its maps have rows for pad queries, whose scores of real keys count: padded operands with keys of 0 give them."""
    shape = Shape((max(LENGTHS),) * len(LENGTHS), heads=3, head_dim_s=8, head_dim_t=16)
    inputs = SPEC.inputs(shape, device=DEVICE)
    B, S = len(shape.lengths), max(LENGTHS)
    is_key = real_tokens(LENGTHS)

    def published(side: str) -> torch.Tensor:
        q, k = (inputs[f"{name}_{side}"].unflatten(0, (B, S)).transpose(1, 2) for name in "qk")
        scores = q @ k.mT / q.shape[-1] ** 0.5 - 10000.0 * ~is_key[:, None, None, :]
        return torch.where(scores <= -1e2, 0.0, scores)

    gradient = [inputs[name].requires_grad_() for name in ("q_s", "k_s")]
    expected = F.mse_loss(published("s"), published("t"))
    masked = inputs | {name: inputs[name] * is_key.flatten()[:, None, None] for name in ("k_s", "k_t")}
    for normalize in ("tokens", "padded"):
        loss = function(**masked, normalize=normalize)
        torch.testing.assert_close(loss, expected)
        for own, theirs in zip(
            *(torch.autograd.grad(x, gradient, retain_graph=True) for x in (loss, expected)), strict=True
        ):
            torch.testing.assert_close(own, theirs)
    assert not torch.allclose(expected, function(**masked | {"k_s": inputs["k_s"]}))  # keys of padding would count


@both
def test_tokens_is_the_mean_over_real_entries(function: Callable[..., Any]) -> None:
    inputs = SPEC.inputs(Shape(LENGTHS, heads=3, head_dim_s=8, head_dim_t=16), device=DEVICE)
    scores_s = padded_scores(inputs["q_s"], inputs["k_s"], LENGTHS)
    scores_t = padded_scores(inputs["q_t"], inputs["k_t"], LENGTHS)
    entries = [(s[:, :n, :n] - t[:, :n, :n]).square() for s, t, n in zip(scores_s, scores_t, LENGTHS, strict=True)]
    torch.testing.assert_close(function(**inputs), torch.cat([entry.flatten() for entry in entries]).mean())


def test_float16_gradients_keep_what_the_loss_scale_saves() -> None:
    """A gradient below float16's range survives in the op and comes out whole once it is scaled."""
    inputs = SPEC.inputs(Shape((60,) * 8, heads=2, head_dim_s=8, head_dim_t=8), torch.float16, DEVICE)
    inputs |= {name: inputs[name] * 0.05 for name in ("q_s", "k_s", "q_t", "k_t")}
    q_s = inputs["q_s"].requires_grad_()
    (attention_score_mse(**inputs) * 2.0**16).backward()
    assert (q_s.grad != 0).float().mean() > 0.99
    truth = loss_and_gradients(reference, in_double(inputs), ("q_s",))["q_s"] * 2.0**16
    assert relative_rms(q_s.grad, truth) < 1e-3


@cpu_path
@pytest.mark.parametrize("noise", [0.1, 0.01, 1e-3])
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_a_student_close_to_its_teacher_keeps_its_digits(dtype: torch.dtype, noise: float) -> None:
    """Of long maps, where Gram matrices are taken."""
    inputs = SPEC.inputs(Shape((300,), heads=2, head_dim_s=32, head_dim_t=32), dtype, DEVICE)
    for name in ("q", "k"):
        inputs[f"{name}_s"] = (inputs[f"{name}_t"].float() * (1 + noise) + noise * inputs[f"{name}_s"].float()).to(
            dtype
        )
    assert_parity(SPEC, inputs)


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="algorithm='fast': choose 'auto', 'tiled' or 'gram'"):
        attention_score_mse(**SPEC.inputs(Shape(LENGTHS)), algorithm="fast")


@pytest.mark.parametrize("scale_t", [0.0, 1e-30, 1e-18, 1e-3])
def test_a_teacher_that_hardly_counts(scale_t: float) -> None:
    """Half-precision operands of more than 64 tokens are joined where the teacher's scale can divide the student's."""
    inputs = SPEC.inputs(Shape((70, 90), heads=2, head_dim_s=32, head_dim_t=64), torch.bfloat16, DEVICE)
    inputs |= {"scale_t": scale_t}
    actual = loss_and_gradients(attention_score_mse, inputs, SPEC.differentiable)
    truth = loss_and_gradients(reference, in_double(inputs), SPEC.differentiable)
    assert all(relative_rms(actual[name], truth[name]) < 8e-3 for name in truth)
