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
    distance: str = "squared",
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    normalize: str = "tokens",
) -> Tensor:
    """Mean distance of projected student states and teacher states.

    ``L = sum over l of 1 / N * sum over i of D(p[l,i], h_t[l,i])`` with ``p = h_s W_l^T + b_l`` (``p = h_s`` if
    `weight` is None) and for `distance`

    * "squared": ``D = |p - t|^2`` and ``N = T * D_t``, a mean over components;
    * "normalized": ``D = |p / |p| - t / |t||^2`` and ``N = T``, where a row of zeros stays zero;
    * "cosine": ``D = 1 - (p / |p|) . (t / |t|)`` and ``N = T``, likewise.

    If `normalize` is "padded", ``B * max_seqlen`` takes the place of T.

    Shapes: h_s ``(T, D_s)`` and h_t ``(T, D_t)``, or one of each per layer l; weight ``(D_t, D_s)`` and bias
    ``(D_t,)``, or one per layer; result ``()``, float32 (float64 for float64).

    Source: TinyBERT (arXiv 1909.10351), equations 8 (hidden states) and 9 (embeddings), "padded" having the divisor
    of its published code; Patient-KD (arXiv 1908.09355), section 3.2; DistilBERT (arXiv 1910.01108), section 2.
    """
    states, targets = as_layers(h_s), as_layers(h_t)
    weights, biases = (as_layers(x) if x is not None else [None] for x in (weight, bias))
    dtype = torch.promote_types(states[0].dtype, torch.float32)
    total = states[0].new_zeros((), dtype=dtype)
    with torch.autocast(states[0].device.type, enabled=False):
        for layer, (x, y) in enumerate(zip(states, targets, strict=True)):
            p, t = x.to(dtype), y.detach().to(dtype)
            if (w := weights[layer if len(weights) > 1 else 0]) is not None:
                p = p @ w.to(dtype).mT
            if (b := biases[layer if len(biases) > 1 else 0]) is not None:
                p = p + b.to(dtype)
            if distance == "squared":
                total = total + (p - t).square().sum()
            elif distance == "normalized":
                total = total + (_direction(p) - _direction(t)).square().sum()
            else:
                total = total + (1 - (_direction(p) * _direction(t)).sum(-1)).sum()
    num_rows = states[0].shape[0]
    if normalize == "padded":
        assert cu_seqlens is not None
        assert max_seqlen is not None
        num_rows = (cu_seqlens.numel() - 1) * max_seqlen
    return total / max(1, num_rows * (targets[0].shape[1] if distance == "squared" else 1))


def _direction(x: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays zero, with a gradient as if its length were 1."""
    length = x.norm(dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0)
