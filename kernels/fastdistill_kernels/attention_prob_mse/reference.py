"""The definition of `attention_prob_mse`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.packed import Layers, all_scores, as_layers, default_scale, num_pairs, sequence_lengths


def attention_prob_mse(
    q_s: Layers,
    k_s: Layers,
    q_t: Layers,
    k_t: Layers,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    temperature: float = 1.0,
    scale_s: float | None = None,
    scale_t: float | None = None,
    normalize: str = "tokens",
) -> Tensor:
    """Mean squared difference of attention probabilities, the maps written out one sequence at a time.

    ``L = 1 / N * sum over b, h, i, j of (P_s - P_t)^2``,
    ``P = softmax over j of (scale / temperature * q[b,h,i] . k[b,h,j])``,
    ``N = heads * sum_b n_b^2``, or ``heads * B * max_seqlen^2`` if `normalize` is "padded".

    Shapes: q_s, k_s ``(T, heads, d_s)``; q_t, k_t ``(T, heads, d_t)``; result ``()``, float32 (float64 for float64).

    Of several layers the losses are added up.

    Source: TinyBERT (arXiv 1909.10351), section 3.1, where it is the alternative to raw scores.
    """
    layers = [as_layers(x) for x in (q_s, k_s, q_t, k_t)]
    first_s, first_t = layers[0][0], layers[2][0]
    lengths = sequence_lengths(cu_seqlens, first_s.shape[0], max_seqlen)
    scale_s, scale_t = default_scale(scale_s, first_s) / temperature, default_scale(scale_t, first_t) / temperature
    total = first_s.new_zeros((), dtype=torch.promote_types(first_s.dtype, torch.float32))
    for scores_s, scores_t in all_scores(layers, cu_seqlens, scale_s, scale_t):
        total = total + (scores_s.softmax(-1) - scores_t.softmax(-1)).square().sum()
    return total / (first_s.shape[1] * num_pairs(lengths, max_seqlen, normalize))
