"""The definition of `hidden_mse`."""

from __future__ import annotations

import torch
from torch import Tensor


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

    ``L = 1 / N * sum over l, i, c of ((h_s W^T + b)[l,i,c] - h_t[l,i,c])^2``, ``N = L * T * D_t``, or
    ``L * B * max_seqlen * D_t`` if `normalize` is "padded"; no projection if `weight` is None.

    Shapes: h_s ``(T, D_s)`` or ``(L, T, D_s)``; h_t ``(T, D_t)`` or ``(L, T, D_t)``; weight ``(D_t, D_s)``; bias
    ``(D_t,)``; result ``()``, float32 (float64 for float64).

    Source: TinyBERT (arXiv 1909.10351), equations 8 (hidden states) and 9 (embeddings); "padded" is its published code.
    """
    dtype = torch.promote_types(h_s.dtype, torch.float32)
    with torch.autocast(h_s.device.type, enabled=False):
        projected = h_s.to(dtype)
        if weight is not None:
            projected = projected @ weight.to(dtype).mT
        if bias is not None:
            projected = projected + bias.to(dtype)
        total = (projected - h_t.detach().to(dtype)).square().sum()
    num_layers = h_s.shape[0] if h_s.dim() == 3 else 1
    num_tokens = h_s.shape[-2]
    if normalize == "padded":
        assert cu_seqlens is not None
        assert max_seqlen is not None
        num_tokens = (cu_seqlens.numel() - 1) * max_seqlen
    return total / max(1, num_layers * num_tokens * h_t.shape[-1])
