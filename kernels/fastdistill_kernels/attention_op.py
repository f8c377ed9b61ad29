"""The custom op behind every attention loss: a scalar that hands out its gradients together with its value.

Since the loss is a scalar, its gradients are known up to one factor as soon as it is: they are made in the forward
pass, while a tile of scores is at hand, and the backward pass only multiplies them by the incoming gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import CustomOpDef

from .packed import check_attention, default_scale, sequence_lengths
from .tiled import Tile, empty_gradients, tiled_mean


def define_attention_op(name: str, tile: Tile, num_entries: Callable[[list[int], int, str], int]) -> CustomOpDef:
    """Register ``fastdistill::<name>``: the mean of `tile` over all maps, per head `num_entries` of the layout."""

    @torch.library.custom_op(f"fastdistill::{name}", mutates_args=())
    def loss_and_gradients(
        a_s: Tensor,
        b_s: Tensor,
        a_t: Tensor,
        b_t: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        scale_s: float,
        scale_t: float,
        normalize: str,
        with_grads: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        lengths = sequence_lengths(cu_seqlens, a_s.shape[0], max_seqlen)
        total = a_s.shape[1] * num_entries(lengths, max_seqlen, normalize)
        return tiled_mean(tile, a_s, b_s, a_t, b_t, lengths, scale_s, scale_t, total, with_grads)

    loss_and_gradients.register_fake(_fake)
    loss_and_gradients.register_autograd(_backward, setup_context=_setup_context)
    return loss_and_gradients


def attention_loss(
    op: CustomOpDef,
    a_s: Tensor,
    b_s: Tensor,
    a_t: Tensor,
    b_t: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale_s: float | None,
    scale_t: float | None,
    normalize: str,
    temperature: float = 1.0,
) -> Tensor:
    """Check the operands, fill in ``1 / sqrt(head_dim)`` for a scale of None, and call `op` for its loss."""
    check_attention(a_s, b_s, a_t, b_t, cu_seqlens, max_seqlen, normalize)
    scale_s, scale_t = default_scale(scale_s, a_s) / temperature, default_scale(scale_t, a_t) / temperature
    with_grads = torch.is_grad_enabled() and (a_s.requires_grad or b_s.requires_grad)
    loss: Tensor
    loss, _, _ = op(a_s, b_s, a_t, b_t, cu_seqlens, max_seqlen, scale_s, scale_t, normalize, with_grads)
    return loss


def _fake(
    a_s: Tensor,
    b_s: Tensor,
    a_t: Tensor,
    b_t: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale_s: float,
    scale_t: float,
    normalize: str,
    with_grads: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    da_s, db_s = empty_gradients(a_s, b_s, with_grads)
    return da_s.new_empty(()), da_s, db_s


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, da_s, db_s = output
    ctx.mark_non_differentiable(da_s, db_s)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(da_s, db_s)
    ctx.num_inputs = len(inputs)


@once_differentiable  # the saved gradients are constants to autograd: a second derivative would be silently wrong
def _backward(ctx: Any, d_loss: Tensor, _da_s: None, _db_s: None) -> tuple[Tensor | None, ...]:
    gradients = [
        d_loss * gradient if needed else None  # autograd casts it to the operand's dtype
        for gradient, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[:2], strict=True)
    ]
    return (*gradients, *[None] * (ctx.num_inputs - 2))
