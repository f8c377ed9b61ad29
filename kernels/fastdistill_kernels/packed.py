"""The packed layout of the attention losses: its checks, its scores, its counts.

T tokens of B sequences lie end to end; sequence b is ``[cu_seqlens[b], cu_seqlens[b + 1])`` and n_b long. Operands are
``(T, heads, head_dim)`` views of any stride; ``_s`` is the student, ``_t`` the teacher.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def check_normalize(normalize: str) -> None:
    if normalize not in ("tokens", "padded"):
        raise ValueError(
            f"normalize={normalize!r}: choose 'tokens' (real entries only) or 'padded' (as TinyBERT's code)"
        )


def check_cu_seqlens(cu_seqlens: Tensor) -> None:
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.numel() == 0:
        raise ValueError(
            f"cu_seqlens is {tuple(cu_seqlens.shape)} {cu_seqlens.dtype}: pass cumulative lengths, (B + 1,) int32"
        )


def check_attention(
    a_s: Tensor, b_s: Tensor, a_t: Tensor, b_t: Tensor, cu_seqlens: Tensor, max_seqlen: int, normalize: str
) -> None:
    """Refuse operands that the attention losses cannot compare; looks at shapes only, never at a tensor's values."""
    check_normalize(normalize)
    check_cu_seqlens(cu_seqlens)
    for side, a, b in (("student", a_s, b_s), ("teacher", a_t, b_t)):
        if a.dim() != 3 or a.shape != b.shape:
            raise ValueError(
                f"{side} operands are {tuple(a.shape)} and {tuple(b.shape)}: both must be (tokens, heads, head_dim)"
            )
        if not (a.is_floating_point() and a.dtype == b.dtype):
            raise ValueError(f"{side} operands are {a.dtype} and {b.dtype}: both must be of one floating dtype")
    if a_s.shape[0] != a_t.shape[0]:
        raise ValueError(f"student has {a_s.shape[0]} tokens, teacher {a_t.shape[0]}: give both the same batch")
    if a_s.shape[1] != a_t.shape[1]:
        raise ValueError(
            f"student has {a_s.shape[1]} heads, teacher {a_t.shape[1]}: maps are compared head by head; "
            "use attention_kl with num_relation_heads, which re-splits both sides into a common number of heads"
        )
    if max_seqlen < 0:
        raise ValueError(f"max_seqlen={max_seqlen}: pass the length of the longest sequence")


def default_scale(scale: float | None, operand: Tensor) -> float:
    """`scale`, or the usual ``1 / sqrt(head_dim)``."""
    return operand.shape[-1] ** -0.5 if scale is None else scale


def sequence_lengths(cu_seqlens: Tensor, num_tokens: int, max_seqlen: int) -> list[int]:
    """The lengths n_b on the host, checked; waits for the device if `cu_seqlens` is not in host memory."""
    bounds = cu_seqlens.tolist()
    lengths = [stop - start for start, stop in pairwise(bounds)]
    if bounds[0] != 0 or bounds[-1] != num_tokens or min(lengths, default=0) < 0:
        raise ValueError(f"cu_seqlens={bounds}: must rise from 0 to the number of tokens, {num_tokens}")
    if max(lengths, default=0) > max_seqlen:
        raise ValueError(f"max_seqlen={max_seqlen}: the longest sequence has {max(lengths)} tokens")
    return lengths


def num_rows(lengths: list[int], max_seqlen: int, normalize: str) -> int:
    """Query rows per head: sum of n_b, or the padded ``B * max_seqlen``; at least 1, so that a mean over none is 0."""
    return max(1, sum(lengths) if normalize == "tokens" else len(lengths) * max_seqlen)


def num_pairs(lengths: list[int], max_seqlen: int, normalize: str) -> int:
    """Map entries per head: sum of n_b^2, or the padded ``B * max_seqlen^2``; at least 1."""
    return max(1, sum(n * n for n in lengths) if normalize == "tokens" else len(lengths) * max_seqlen**2)


def attention_scores(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """One sequence's ``scale * a . b``: ``(n, heads, head_dim)`` twice -> ``(heads, n, n)``, float32 at least."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return torch.einsum("ihd,jhd->hij", a.to(dtype), b.to(dtype)) * scale
