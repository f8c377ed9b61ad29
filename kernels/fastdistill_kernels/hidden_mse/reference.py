"""The definition of `hidden_mse`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.packed import Layers, as_layers


def hidden_mse(
    h_s: Layers,
    h_t: Layers,
    weight: Layers | None = None,
    bias: Layers | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    normalize: str = "tokens",
) -> Tensor:
    """Mean squared difference of projected student states and teacher states.

    ``L = sum over l of 1 / N * sum over i, c of ((h_s W_l^T + b_l)[l,i,c] - h_t[l,i,c])^2``, ``N = T * D_t``, or
    ``B * max_seqlen * D_t`` if `normalize` is "padded"; no projection if `weight` is None.

    Shapes: h_s ``(T, D_s)`` and h_t ``(T, D_t)``, or one of each per layer l; weight ``(D_t, D_s)`` and bias
    ``(D_t,)``, or one per layer; result ``()``, float32 (float64 for float64).

    Source: TinyBERT (arXiv 1909.10351), equations 8 (hidden states) and 9 (embeddings); "padded" is its published code.
    """
    states, targets = as_layers(h_s), as_layers(h_t)
    weights, biases = (as_layers(x) if x is not None else [None] for x in (weight, bias))
    dtype = torch.promote_types(states[0].dtype, torch.float32)
    total = states[0].new_zeros((), dtype=dtype)
    with torch.autocast(states[0].device.type, enabled=False):
        for layer, (x, y) in enumerate(zip(states, targets, strict=True)):
            projected = x.to(dtype)
            if (w := weights[layer if len(weights) > 1 else 0]) is not None:
                projected = projected @ w.to(dtype).mT
            if (b := biases[layer if len(biases) > 1 else 0]) is not None:
                projected = projected + b.to(dtype)
            total = total + (projected - y.detach().to(dtype)).square().sum()
    num_tokens = states[0].shape[0]
    if normalize == "padded":
        assert cu_seqlens is not None
        assert max_seqlen is not None
        num_tokens = (cu_seqlens.numel() - 1) * max_seqlen
    return total / max(1, num_tokens * targets[0].shape[1])
