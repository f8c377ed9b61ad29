"""The definition of `attention_kl`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.packed import Layers, all_scores, as_layers, default_scale, num_rows, sequence_lengths
from .relation_heads import split_heads


def attention_kl(
    a_s: Layers,
    b_s: Layers,
    a_t: Layers,
    b_t: Layers,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    num_relation_heads: int | None = None,
    temperature: float = 1.0,
    scale_s: float | None = None,
    scale_t: float | None = None,
    normalize: str = "tokens",
) -> Tensor:
    """Mean KL divergence of the student's relation rows from the teacher's, the maps written out per sequence.

    ``L = 1 / N * sum over b, h, i of sum over j of P_t (log P_t - log P_s)``,
    ``P = softmax over j of (scale / temperature * a[b,h,i] . b[b,h,j])``,
    ``N = heads * T``, or ``heads * B * max_seqlen`` if `normalize` is "padded".

    Shapes: a_s, b_s ``(T, heads_s, d_s)``; a_t, b_t ``(T, heads_t, d_t)``; both sides are re-split into
    ``(T, num_relation_heads, heads * d / num_relation_heads)`` first; result ``()``, float32 (float64 for float64).

    Of several layers the losses are added up.

    Source: MiniLM (arXiv 2002.10957), sections 3.1 and 3.2: (q, k) and (v, v); MiniLMv2 (arXiv 2012.15828),
    section 3.1: (q, q), (k, k) and (v, v) over relation heads.
    """
    layers = [[split_heads(x, num_relation_heads) for x in as_layers(y)] for y in (a_s, b_s, a_t, b_t)]
    first_s, first_t = layers[0][0], layers[2][0]
    lengths = sequence_lengths(cu_seqlens, first_s.shape[0], max_seqlen)
    scale_s, scale_t = default_scale(scale_s, first_s) / temperature, default_scale(scale_t, first_t) / temperature
    total = first_s.new_zeros((), dtype=torch.promote_types(first_s.dtype, torch.float32))
    for scores_s, scores_t in all_scores(layers, cu_seqlens, scale_s, scale_t):
        log_probs_s, log_probs_t = scores_s.log_softmax(-1), scores_t.log_softmax(-1)
        total = total + (log_probs_t.exp() * (log_probs_t - log_probs_s)).sum()
    return total / (first_s.shape[1] * num_rows(lengths, max_seqlen, normalize))
