"""Attention over packed sequences: three ways to compute it, one meaning.

Shapes: T packed tokens, B sequences, S the longest, H heads, d head size. q, k, v and the result are ``(T, H, d)``.
No way ever multiplies a token of one sequence with a token of another.
"""

from __future__ import annotations

from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention

from fastdistill.models.dropout import drawn, kept
from fastdistill_kernels.attention.blocks import Block, dense, into_blocks, scatter

EXPLICIT = 512  # tokens


class Bounds:
    """Where the sequences of a packed batch lie; what is derived from it is computed once and shared by all layers.

    Shapes:
        cu_seqlens: ``(B + 1,)`` int32, cumulative lengths.
        max_seqlen: S, a Python int, at least the longest length.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int) -> None:
        self.cu_seqlens = cu_seqlens
        self.max_seqlen = max_seqlen

    @cached_property
    def runs(self) -> list[Block]:
        """Neighbours of equal length together, each run a dense block; reads the device, for the CPU only."""
        return into_blocks(self.cu_seqlens.diff().tolist(), waste=0, multiple=1)

    @cached_property
    def blocks(self) -> list[Block]:
        """Neighbours of like length together; for the CPU only."""
        return into_blocks(self.cu_seqlens.diff().tolist())

    @cached_property
    def padded_index(self) -> tuple[Tensor, Tensor]:
        """Packed row of every padded place ``(B, S)``, and whether that place holds a token; no host sync."""
        places = torch.arange(self.max_seqlen, device=self.cu_seqlens.device)
        starts, ends = self.cu_seqlens[:-1, None], self.cu_seqlens[1:, None]
        return torch.minimum(starts + places, (ends - 1).clamp(min=0)), starts + places < ends

    def packed_index(self, num_tokens: int) -> Tensor:
        """Place ``b * S + i`` of every packed token ``(T,)``; no host sync."""
        tokens = torch.arange(num_tokens, dtype=torch.int32, device=self.cu_seqlens.device)
        sequence = torch.searchsorted(self.cu_seqlens, tokens, right=True) - 1
        return sequence * self.max_seqlen + tokens - self.cu_seqlens[sequence]


def within_window(length: int, window: int, device: torch.device) -> Tensor:
    """``(length, length)`` bool: key j is visible to query i when ``|i - j| < window``."""
    places = torch.arange(length, device=device)
    return (places[:, None] - places[None, :]).abs() < window


class Explicit(torch.autograd.Function):
    """Attention as it is defined, its maps written out, block by block; without gradients scores are float32.

    All is copied once, into the dense blocks ``(count * H, length, d)`` that matrix products want, and once back.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bounds: Bounds,
        scaling: float,
        dropout: float,
        window: int | None,
    ) -> Tensor:
        trained = any(ctx.needs_input_grad)
        output = torch.empty(v.shape, dtype=v.dtype)
        saved: list[Tensor] = []
        scale = 1.0
        for block in bounds.blocks:
            Q, K = (
                dense(x, block, v.dtype if trained else torch.promote_types(v.dtype, torch.float32)) for x in (q, k)
            )
            V = dense(v, block, v.dtype)
            S = torch.baddbmm(Q.new_empty(()), Q, K.mT, beta=0, alpha=scaling)
            # an idle query may have no key in its window, and must not become nan
            never = -torch.inf if window is None else torch.finfo(S.dtype).min
            if window is not None and window < block.length:
                S.masked_fill_(~within_window(block.length, window, q.device), never)
            if block.real is not None:
                S.view(block.count, -1, *S.shape[1:]).masked_fill_(~block.real[:, None, None, :], never)
            P = S.softmax(-1).to(v.dtype)
            D, draw = P, []
            if dropout:
                keep, scale = drawn(P, dropout)
                D, draw = kept(P, keep, scale), [keep]
            scatter(output, D @ V, block)
            if trained:
                saved += [Q, K, V, P, D, *draw]
        ctx.save_for_backward(*saved)
        ctx.bounds, ctx.scaling, ctx.dropout, ctx.scale = bounds, scaling, dropout, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dO: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk, dv = (torch.empty(dO.shape, dtype=dO.dtype) for _ in range(3))
        saved = iter(ctx.saved_tensors)
        for block in ctx.bounds.blocks:
            Q, K, V, P, D = islice(saved, 5)
            d_out = dense(dO, block, dO.dtype)
            scatter(dv, D.mT @ d_out, block)
            dP = d_out @ V.mT
            if ctx.dropout:
                dP = kept(dP, next(saved), ctx.scale)
            dS = torch.ops.aten._softmax_backward_data(dP, P, -1, P.dtype)
            scatter(dq, torch.baddbmm(Q.new_empty(()), dS, K, beta=0, alpha=ctx.scaling), block)
            scatter(dk, torch.baddbmm(Q.new_empty(()), dS.mT, Q, beta=0, alpha=ctx.scaling), block)
        return dq, dk, dv, None, None, None, None


def attend_runs(
    q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, scaling: float, dropout: float, window: int | None
) -> Tensor:
    """Sequences are computed in dense blocks: in float32 those of equal length, which are viewed and not gathered.

    Half-precision maps of up to `EXPLICIT` tokens are written out, and where they are trained rounded as eager
    attention's are: PyTorch's fused kernel takes half as long again forward, and backward four to ten times as long, or
    twice as long in fp32, in which it computes longer ones.
    """
    dtype = v.dtype
    with torch.autocast("cpu", enabled=False):  # which would cast back
        if dtype != torch.float32 and bounds.max_seqlen <= EXPLICIT:
            output: Tensor = Explicit.apply(q, k, v, bounds, scaling, dropout, window)
            return output
        if torch.is_grad_enabled() and v.requires_grad and not dropout and dtype.itemsize < 4:
            q, k, v = q.float(), k.float(), v.float()
        outputs = []
        for run in bounds.runs:
            Q, K, V = (x[run.tokens].unflatten(0, (run.count, -1)).transpose(1, 2) for x in (q, k, v))
            mask = None if window is None or window >= run.length else within_window(run.length, window, q.device)
            O = scaled_dot_product_attention(Q, K, V, attn_mask=mask, dropout_p=dropout, scale=scaling)  # noqa: E741
            outputs.append(O.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs).to(dtype)


def padded_mask(bounds: Bounds, window: int | None) -> Tensor:
    """Which padded keys each padded query may see: ``(B, 1, S or 1, S)`` bool."""
    _, real = bounds.padded_index
    # of an empty sequence all is seen, lest its softmax and gradients be nan
    mask = (real | ~real.any(-1, keepdim=True))[:, None, None, :]
    if window is None:
        return mask
    # a padded query may have no real key in its window: it sees all, lest its softmax and gradients be nan
    return (mask & within_window(bounds.max_seqlen, window, real.device)) | ~real[:, None, :, None]


def attend_padded(
    q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, scaling: float, dropout: float, window: int | None
) -> Tensor:
    """Pads on the device and masks; for accelerators where the variable-length kernel does not fit."""
    index, _ = bounds.padded_index
    Q, K, V = (in_eights(x)[index].transpose(1, 2) for x in (q, k, v))
    mask = padded_mask(bounds, window)
    O = scaled_dot_product_attention(Q, K, V, attn_mask=mask, dropout_p=dropout, scale=scaling)  # noqa: E741
    return O.transpose(1, 2).flatten(0, 1)[bounds.packed_index(len(q)), :, : q.shape[-1]]


def in_eights(x: Tensor) -> Tensor:
    """Heads padded with zeros to a multiple of 8, without which fused attention does not take them: TinyBERT4's 26."""
    return pad(x, (0, -x.shape[-1] % 8)) if x.shape[-1] % 8 else x


def attend_varlen(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, scaling: float, window: int | None) -> Tensor:
    """PyTorch's variable-length FlashAttention: fp16 or bf16, no dropout, a GPU of compute capability 8 or more."""
    d, (q, k, v) = q.shape[-1], map(in_eights, (q, k, v))
    cu_seqlens, longest = bounds.cu_seqlens, bounds.max_seqlen
    reach = -1 if window is None else window - 1
    O: Tensor = varlen_attn(  # noqa: E741
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, scale=scaling, window_size=(reach, reach)
    )  # type: ignore[assignment]
    return O[..., :d]


def attend(
    q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, scaling: float, dropout: float, window: int | None
) -> Tensor:
    """Attention of every packed token to the tokens of its own sequence, the fastest way the device allows."""
    if q.device.type == "cpu":
        return attend_runs(q, k, v, bounds, scaling, dropout, window)
    fits = dropout == 0.0 and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 256
    if fits and torch.cuda.get_device_capability(q.device) >= (8, 0):
        return attend_varlen(q, k, v, bounds, scaling, window)
    return attend_padded(q, k, v, bounds, scaling, dropout, window)
