"""`hidden_mse`: the public function."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.packed import check_cu_seqlens, check_normalize


def hidden_mse(
    h_s: Tensor,
    h_t: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    normalize: str = "tokens",
) -> Tensor:
    """Mean squared difference of projected student states and teacher states.

    ``mean of (h_s W^T + b - h_t)^2``. The projection runs in the dtype of `h_s`, or in autocast's; its result is
    compared and summed in float32.

    Args:
        h_s: student states, ``(T, D_s)``, or ``(L, T, D_s)`` for L layers that share one projection.
        h_t: teacher states, ``(T, D_t)`` or ``(L, T, D_t)``; a constant, it never receives gradients.
        weight, bias: the projection as in `torch.nn.Linear`, ``(D_t, D_s)`` and ``(D_t,)``; None for equal sizes.
        cu_seqlens, max_seqlen: the packed layout, ``(B + 1,)`` int32 and the longest length; for "padded" only.
        normalize: "tokens" divides by ``L * T * D_t``; "padded" by ``L * B * max_seqlen * D_t``, the mean that
            TinyBERT's code would take over padded states if their pad rows were equal.

    Returns:
        ``()`` float32 (float64 for float64 states), 0 for an empty batch.

    Raises:
        ValueError: states or a projection whose shapes do not fit, or "padded" without the layout.

    Source: TinyBERT (arXiv 1909.10351), equations 8 and 9.
    """
    _check(h_s, h_t, weight, bias)
    check_normalize(normalize)
    num_entries = max(1, h_t.numel())
    if normalize == "padded":
        if cu_seqlens is None or max_seqlen is None:
            raise ValueError("normalize='padded' counts padded rows: pass cu_seqlens and max_seqlen")
        check_cu_seqlens(cu_seqlens)
        num_rows = (cu_seqlens.numel() - 1) * max_seqlen
        num_entries = max(1, h_t.shape[:-2].numel() * num_rows * h_t.shape[-1])
    if weight is not None:
        h_s = F.linear(h_s, weight.to(h_s.dtype), None if bias is None else bias.to(h_s.dtype))
    dtype = torch.promote_types(h_s.dtype, torch.float32)
    return (h_s.to(dtype) - h_t.detach().to(dtype)).square().sum() / num_entries


def _check(h_s: Tensor, h_t: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    if h_s.dim() not in (2, 3) or h_s.shape[:-1] != h_t.shape[:-1]:
        raise ValueError(
            f"states are {tuple(h_s.shape)} and {tuple(h_t.shape)}: pass (tokens, size) or (layers, tokens, size), "
            "the same layers and tokens on both sides"
        )
    size_s, size_t = h_s.shape[-1], h_t.shape[-1]
    if weight is None and (size_s != size_t or bias is not None):
        raise ValueError(f"student size {size_s}, teacher size {size_t}: pass weight ({size_t}, {size_s}), then bias")
    if weight is not None and weight.shape != (size_t, size_s):
        raise ValueError(f"weight is {tuple(weight.shape)}: torch.nn.Linear's layout here is ({size_t}, {size_s})")
    if bias is not None and bias.shape != (size_t,):
        raise ValueError(f"bias is {tuple(bias.shape)}: must be ({size_t},)")
