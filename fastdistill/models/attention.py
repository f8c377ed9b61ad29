"""Attention over packed sequences: three ways to compute it, one meaning.

Shapes: T packed tokens, B sequences, S the longest, H heads, d head size. q, k, v and the result are ``(T, H, d)``.
No way ever multiplies a token of one sequence with a token of another.
"""

from __future__ import annotations

from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import dropout as torch_dropout
from torch.nn.functional import pad, scaled_dot_product_attention

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
    def runs(self) -> list[tuple[int, int]]:
        """(length, how many) of each run of neighbours of equal length; reads the device, so for the CPU only."""
        lengths = self.cu_seqlens.diff().tolist()
        return [(length, len(list(same))) for length, same in groupby(lengths) if length > 0]

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


def attend_explicitly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, dropout: float) -> Tensor:
    """Attention as it is defined, maps written out: ``(B, H, S, d)``. Without gradients scores are float32."""
    if not torch.is_grad_enabled():
        q, k = q.float(), k.float()
    scores = (q * scaling) @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch_dropout(scores.softmax(-1).to(v.dtype), dropout) @ v


def attend_runs(
    q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, scaling: float, dropout: float, window: int | None
) -> Tensor:
    """Each run of equally long sequences is viewed as one dense block: nothing gathered, nothing padded.

    Half-precision maps of up to `EXPLICIT` tokens are written out, and where they are trained rounded as eager
    attention's are: PyTorch's fused kernel takes half as long again forward, and backward four to ten times as long, or
    twice as long in fp32, in which it computes longer ones.
    """
    dtype = v.dtype
    explicit = dtype != torch.float32 and bounds.max_seqlen <= EXPLICIT
    if torch.is_grad_enabled() and v.requires_grad and not explicit and not dropout:
        q, k, v = q.float(), k.float(), v.float()
    outputs, start = [], 0
    for length, count in bounds.runs:
        block = slice(start, start + length * count)
        start = block.stop
        Q, K, V = (x[block].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))
        mask = within_window(length, window, q.device) if window is not None and window < length else None
        with torch.autocast("cpu", enabled=False):  # which would cast back
            if explicit:
                O = attend_explicitly(Q, K, V, mask, scaling, dropout)  # noqa: E741
            else:
                O = scaled_dot_product_attention(Q, K, V, attn_mask=mask, dropout_p=dropout, scale=scaling)  # noqa: E741
        outputs.append(O.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).to(dtype)


def padded_mask(bounds: Bounds, window: int | None) -> Tensor:
    """Which padded keys each padded query may see: ``(B, 1, S or 1, S)`` bool."""
    _, real = bounds.padded_index
    mask = real[:, None, None, :]
    if window is None:
        return mask
    # a padded query may have no real key in its window: it sees all, lest its softmax and gradients be nan
    return (mask & within_window(bounds.max_seqlen, window, real.device)) | ~real[:, None, :, None]


def attend_padded(
    q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, scaling: float, dropout: float, window: int | None
) -> Tensor:
    """Pads on the device and masks; for accelerators where the variable-length kernel does not fit."""
    index, _ = bounds.padded_index
    Q, K, V = (x[index].transpose(1, 2) for x in (q, k, v))
    mask = padded_mask(bounds, window)
    O = scaled_dot_product_attention(Q, K, V, attn_mask=mask, dropout_p=dropout, scale=scaling)  # noqa: E741
    return O.transpose(1, 2).flatten(0, 1)[bounds.packed_index(len(q))]


def attend_varlen(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, scaling: float, window: int | None) -> Tensor:
    """PyTorch's variable-length FlashAttention: fp16 or bf16, no dropout; wants head sizes in multiples of 8."""
    d = q.shape[-1]
    if d % 8:  # TinyBERT4's 26
        q, k, v = (pad(x, (0, -d % 8)) for x in (q, k, v))
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
    if dropout == 0.0 and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 256:
        return attend_varlen(q, k, v, bounds, scaling, window)
    return attend_padded(q, k, v, bounds, scaling, dropout, window)
