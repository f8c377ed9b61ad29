"""The custom ops behind every attention loss, and where they run.

On GPUs the backward pass recomputes tiles of scores in Triton. On CPUs it is arithmetic that counts: the gradients of a
scalar are known up to one factor as soon as it is, so they are made in the forward pass, while a tile is at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from ..checks import check_finite, check_temperature
from ..device import runs_in_triton
from .blocks import into_blocks
from .packed import Layers, as_layers, check_attention, default_scale, num_pairs, num_rows, sequence_lengths
from .tiled import MapsLoss, empty_gradients, mean_over_maps

SCORE_MSE, PROB_MSE, KL = range(3)


def define_attention_op(name: str, kind: int, algorithms: Mapping[str, MapsLoss]) -> CustomOpDef:
    """Register ``fastdistill::<name>``: a loss over maps, a mean per layer, the layers' means added up.

    Args:
        name: of the op.
        kind: which of the losses of `kernel` it is.
        algorithms: by name, the ways to it on a CPU.
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
        algorithm: str,
        with_grads: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if runs_in_triton(a_s[0]):
            kernels, layers = _kernels(kind, algorithm), [list(x) for x in (a_s, b_s, a_t, b_t)]
            with torch.cuda.device_of(a_s[0]):
                return kernels.forward(*layers, cu_seqlens, max_seqlen, scale_s, scale_t, normalize)
        lengths = sequence_lengths(cu_seqlens, a_s[0].shape[0], max_seqlen)
        blocks = into_blocks(lengths, a_s[0].device)
        entries = a_s[0].shape[1] * count(lengths, max_seqlen, normalize)
        da, db = (empty_gradients(x[0], len(x), with_grads) for x in (a_s, b_s))
        losses = [
            mean_over_maps(
                algorithms[algorithm],
                *layer,
                blocks,
                scale_s,
                scale_t,
                entries,
                (da[n], db[n]) if with_grads else None,
            )
            for n, layer in enumerate(zip(a_s, b_s, a_t, b_t, strict=True))
        ]
        return torch.stack(losses).sum(), da, db

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
        algorithm: str,
        with_grads: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, L = a_s[0], len(a_s)
        if runs_in_triton(x):
            shape = _kernels(kind, algorithm).saved_shape(L, x.shape, a_t[0].shape, cu_seqlens.shape[0] - 1)
            saved = x.new_empty(shape, dtype=torch.float32)
            return saved.new_empty(()), saved, saved.new_empty(())
        da, db = (empty_gradients(y, L, with_grads) for y in (x, b_s[0]))
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
        algorithm: str,
        saved_0: Tensor,
        saved_1: Tensor,
    ) -> tuple[Tensor, Tensor]:
        if runs_in_triton(a_s[0]):
            layers = [list(x) for x in (a_s, b_s, a_t, b_t)]
            kernels = _kernels(kind, algorithm)
            with torch.cuda.device_of(a_s[0]):
                return kernels.backward(d_loss, *layers, cu_seqlens, max_seqlen, scale_s, scale_t, saved_0, saved_1)
        return (d_loss * saved_0).to(a_s[0].dtype), (d_loss * saved_1).to(a_s[0].dtype)

    @backward.register_fake
    def _(d_loss: Tensor, a_s: Sequence[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
        da, db = (a_s[0].new_empty((len(a_s), *a_s[0].shape)) for _ in range(2))
        return da, db

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        a_s, b_s, a_t, b_t, cu_seqlens, max_seqlen, scale_s, scale_t, _, algorithm, _ = inputs
        _, *saved = output
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        ctx.num_layers, ctx.options = len(a_s), (max_seqlen, scale_s, scale_t, algorithm)
        ctx.save_for_backward(*a_s, *b_s, *a_t, *b_t, cu_seqlens, *saved)

    # `backward` has no derivative of its own: a second one is refused rather than silently wrong
    def differentiate(ctx: Any, d_loss: Tensor, *_: None) -> tuple[Any, ...]:
        *operands, cu_seqlens, saved_0, saved_1 = ctx.saved_tensors
        L = ctx.num_layers
        layers = [operands[n * L : (n + 1) * L] for n in range(4)]
        da, db = backward(d_loss, *layers, cu_seqlens, *ctx.options, saved_0, saved_1)
        nothing = [None] * L
        return list(da.unbind()), list(db.unbind()), nothing, nothing, *[None] * 7

    forward.register_autograd(differentiate, setup_context=setup_context)
    return forward


def _kernels(kind: int, algorithm: str) -> Any:
    """The launchers of an algorithm: forward, backward, saved_shape."""
    if algorithm == "gram":
        from ..attention_score_mse import kernel as gram

        return gram
    from . import kernel as tiled

    return tiled.Tiled(kind)


def _constants(x: Layers) -> list[Tensor]:
    return [y.detach() for y in as_layers(x)]


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
    algorithm: str = "tiled",
) -> Tensor:
    """Check what is given, fill in ``1 / sqrt(head_dim)`` for a scale of None, and call `op` for its loss."""
    check_temperature(temperature)
    check_finite(scale_s=scale_s, scale_t=scale_t)
    layers = as_layers(a_s), as_layers(b_s), _constants(a_t), _constants(b_t)
    check_attention(*layers, cu_seqlens, max_seqlen, normalize)
    scale_s, scale_t = (
        default_scale(scale, side[0]) / temperature for scale, side in ((scale_s, layers[0]), (scale_t, layers[2]))
    )
    with_grads = torch.is_grad_enabled() and any(x.requires_grad for x in (*layers[0], *layers[1]))
    loss: Tensor
    loss, _, _ = op(*layers, cu_seqlens.contiguous(), max_seqlen, scale_s, scale_t, normalize, algorithm, with_grads)
    return loss
