"""The packed layout of the attention losses: its checks, its scores, its counts.

T tokens of B sequences lie end to end; sequence b is ``[cu_seqlens[b], cu_seqlens[b + 1])`` and n_b long. Operands are
``(T, heads, head_dim)`` views of any stride; ``_s`` is the student, ``_t`` the teacher.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..checks import check_devices, check_floating, check_whole

Layers = Tensor | Sequence[Tensor]
"""One layer's operand, or those of several layers, of one shape and dtype."""


def as_layers(x: Layers) -> list[Tensor]:
    """A list of one operand for each layer; what is neither a tensor nor a sequence is refused later, by name."""
    return list(x) if isinstance(x, Iterable) and not isinstance(x, Tensor) else [x]


def check_normalize(normalize: str) -> None:
    if normalize not in ("tokens", "padded"):
        raise ValueError(
            f"normalize={normalize!r}: choose 'tokens' (real entries only) or 'padded' (as TinyBERT's code)"
        )


def check_cu_seqlens(cu_seqlens: Tensor) -> None:
    if not isinstance(cu_seqlens, Tensor):
        raise ValueError(f"cu_seqlens={cu_seqlens!r}: pass cumulative lengths as a tensor, (B + 1,) int32")
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.numel() == 0:
        raise ValueError(
            f"cu_seqlens is {tuple(cu_seqlens.shape)} {cu_seqlens.dtype}: pass cumulative lengths, (B + 1,) int32"
        )


def check_attention(
    a_s: list[Tensor],
    b_s: list[Tensor],
    a_t: list[Tensor],
    b_t: list[Tensor],
    cu_seqlens: Tensor,
    max_seqlen: int,
    normalize: str,
) -> None:
    """Refuse operands that the attention losses cannot compare; looks at shapes only, never at a tensor's values."""
    check_normalize(normalize)
    check_cu_seqlens(cu_seqlens)
    if len({len(a_s), len(b_s), len(a_t), len(b_t)}) > 1 or not a_s:
        raise ValueError(
            f"{len(a_s)}, {len(b_s)}, {len(a_t)} and {len(b_t)} layers are given: pass as many of each operand, at "
            "least one"
        )
    check_whole(max_seqlen=max_seqlen)
    for side, a, b in (("student", a_s, b_s), ("teacher", a_t, b_t)):
        check_floating(f"{side} operands", *a, *b)
        for x, y in zip(a, b, strict=True):
            if x.dim() != 3 or x.shape != y.shape:
                raise ValueError(
                    f"{side} operands are {tuple(x.shape)} and {tuple(y.shape)}: both must be (tokens, heads, head_dim)"
                )
            if x.dtype != y.dtype:
                raise ValueError(f"{side} operands are {x.dtype} and {y.dtype}: both must be of one dtype")
            if (x.shape, x.dtype) != (a[0].shape, a[0].dtype):
                raise ValueError(
                    f"{side} layers are {tuple(a[0].shape)} {a[0].dtype} and {tuple(x.shape)} {x.dtype}: all must be "
                    "alike"
                )
            check_devices(a_s[0], **{f"a {side}'s operand": x})
            check_devices(a_s[0], **{f"a {side}'s operand": y})
        if 0 in a[0].shape[1:]:
            raise ValueError(f"{side} operands are {tuple(a[0].shape)}: give at least one head of at least one element")
    check_devices(a_s[0], cu_seqlens=cu_seqlens)
    tokens, heads, _ = a_s[0].shape
    tokens_t, heads_t, _ = a_t[0].shape
    if tokens != tokens_t:
        raise ValueError(f"student has {tokens} tokens, teacher {tokens_t}: give both the same batch")
    if heads != heads_t:
        raise ValueError(
            f"student has {heads} heads, teacher {heads_t}: maps are compared head by head; "
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


def all_scores(
    layers: list[list[Tensor]], cu_seqlens: Tensor, scale_s: float, scale_t: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Student's and teacher's scores ``(heads, n, n)`` of every layer and sequence; the teacher's are constants.

    `layers` are a_s, b_s, a_t, b_t, each with one operand per layer.
    """
    for x_s, y_s, x_t, y_t in zip(*layers, strict=True):
        for start, stop in pairwise(cu_seqlens.tolist()):
            scores_s = attention_scores(x_s[start:stop], y_s[start:stop], scale_s)
            yield scores_s, attention_scores(x_t[start:stop], y_t[start:stop], scale_t).detach()
