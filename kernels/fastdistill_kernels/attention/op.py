"""The custom ops behind every attention loss, and where they run.

On GPUs the backward pass recomputes tiles of scores in Triton. On CPUs it is arithmetic that counts: the gradients of a
scalar are known up to one factor as soon as it is, so they are made in the forward pass, while a tile is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import CustomOpDef

from ..device import runs_in_triton
from .packed import Layers, as_layers, check_attention, default_scale, num_pairs, num_rows, sequence_lengths
from .tiled import Tile, empty_gradients, tiled_mean

SCORE_MSE, PROB_MSE, KL = range(3)


def define_attention_op(name: str, tile: Tile, kind: int) -> CustomOpDef:
    """Register ``fastdistill::<name>``: a loss over maps, a mean per layer, the layers' means added up.

    Args:
        name: of the op.
        tile: the loss of a tile of scores, for the CPU.
        kind: which of the losses of `kernel` it is.
    """
    count = num_rows if kind == KL else num_pairs

    @torch.library.custom_op(f"fastdistill::{name}", mutates_args=())
    def forward(
        a_s: Sequence[Tensor],
        b_s: Sequence[Tensor],
        a_t: Sequence[Tensor],
        b_t: Sequence[Tensor],
        cu_seqlens: Tensor,
        max_seqlen: int,
        scale_s: float,
        scale_t: float,
        normalize: str,
        with_grads: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        layers = [list(x) for x in (a_s, b_s, a_t, b_t)]
        if runs_in_triton(a_s[0]):
            from . import kernel

            return kernel.forward(kind, *layers, cu_seqlens, max_seqlen, scale_s, scale_t, normalize)
        lengths = sequence_lengths(cu_seqlens, a_s[0].shape[0], max_seqlen)
        entries = a_s[0].shape[1] * count(lengths, max_seqlen, normalize)
        results = [
            tiled_mean(tile, *operands, lengths, scale_s, scale_t, entries, with_grads)
            for operands in zip(*layers, strict=True)
        ]
        loss, da, db = (torch.stack(x) for x in zip(*results, strict=True))
        return loss.sum(), da, db

    @forward.register_fake
    def _(
        a_s: Sequence[Tensor],
        b_s: Sequence[Tensor],
        a_t: Sequence[Tensor],
        b_t: Sequence[Tensor],
        cu_seqlens: Tensor,
        max_seqlen: int,
        scale_s: float,
        scale_t: float,
        normalize: str,
        with_grads: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, L = a_s[0], len(a_s)
        if runs_in_triton(x):
            stats = x.new_empty((0 if kind == SCORE_MSE else 3, L, x.shape[1], x.shape[0]), dtype=torch.float32)
            return stats.new_empty(()), stats, stats.new_empty(())
        da, db = (g.new_empty((L, *g.shape)) for g in empty_gradients(x, b_s[0], with_grads))
        return da.new_empty(()), da, db

    @torch.library.custom_op(f"fastdistill::{name}_backward", mutates_args=())
    def backward(
        d_loss: Tensor,
        a_s: Sequence[Tensor],
        b_s: Sequence[Tensor],
        a_t: Sequence[Tensor],
        b_t: Sequence[Tensor],
        cu_seqlens: Tensor,
        max_seqlen: int,
        scale_s: float,
        scale_t: float,
        saved_0: Tensor,
        saved_1: Tensor,
    ) -> tuple[Tensor, Tensor]:
        if runs_in_triton(a_s[0]):
            from . import kernel

            layers = [list(x) for x in (a_s, b_s, a_t, b_t)]
            saved = (saved_0, saved_1)
            return kernel.backward(kind, d_loss, *layers, cu_seqlens, max_seqlen, scale_s, scale_t, *saved)
        return (d_loss * saved_0).to(a_s[0].dtype), (d_loss * saved_1).to(a_s[0].dtype)

    @backward.register_fake
    def _(
        d_loss: Tensor,
        a_s: Sequence[Tensor],
        b_s: Sequence[Tensor],
        a_t: Sequence[Tensor],
        b_t: Sequence[Tensor],
        cu_seqlens: Tensor,
        max_seqlen: int,
        scale_s: float,
        scale_t: float,
        saved_0: Tensor,
        saved_1: Tensor,
    ) -> tuple[Tensor, Tensor]:
        da, db = (a_s[0].new_empty((len(a_s), *a_s[0].shape)) for _ in range(2))
        return da, db

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        a_s, b_s, a_t, b_t, cu_seqlens, *ctx.numbers, _, _ = inputs
        _, *saved = output
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        ctx.num_layers = len(a_s)
        ctx.save_for_backward(*a_s, *b_s, *a_t, *b_t, cu_seqlens, *saved)

    @once_differentiable  # what is saved is constant to autograd: a second derivative would be silently wrong
    def differentiate(ctx: Any, d_loss: Tensor, *_: None) -> tuple[Any, ...]:
        *operands, cu_seqlens, saved_0, saved_1 = ctx.saved_tensors
        L = ctx.num_layers
        layers = [operands[n * L : (n + 1) * L] for n in range(4)]
        da, db = backward(d_loss, *layers, cu_seqlens, *ctx.numbers, saved_0, saved_1)
        nothing = [None] * L
        return list(da.unbind()), list(db.unbind()), nothing, nothing, *[None] * 6

    forward.register_autograd(differentiate, setup_context=setup_context)
    return forward


def attention_loss(
    op: CustomOpDef,
    a_s: Layers,
    b_s: Layers,
    a_t: Layers,
    b_t: Layers,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale_s: float | None,
    scale_t: float | None,
    normalize: str,
    temperature: float = 1.0,
) -> Tensor:
    """Check the operands, fill in ``1 / sqrt(head_dim)`` for a scale of None, and call `op` for its loss."""
    layers = [as_layers(x) for x in (a_s, b_s, a_t, b_t)]
    check_attention(*layers, cu_seqlens, max_seqlen, normalize)
    scale_s, scale_t = (
        default_scale(scale, side[0]) / temperature for scale, side in ((scale_s, layers[0]), (scale_t, layers[2]))
    )
    with_grads = torch.is_grad_enabled() and any(x.requires_grad for x in (*layers[0], *layers[1]))
    loss: Tensor
    loss, _, _ = op(*layers, cu_seqlens, max_seqlen, scale_s, scale_t, normalize, with_grads)
    return loss
