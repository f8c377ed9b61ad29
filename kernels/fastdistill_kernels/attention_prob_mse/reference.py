"""The definition of `attention_prob_mse`."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..attention.packed import Layers, attention_scores, default_scale, num_pairs, sequence_lengths


def attention_prob_mse(
    q_s: Layers,
    k_s: Layers,
    q_t: Layers,
    k_t: Layers,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale_s: float | None = None,
    scale_t: float | None = None,
    normalize: str = "tokens",
) -> Tensor:
    """Mean squared difference of attention probabilities, the maps written out one sequence at a time.

    ``L = 1 / N * sum over b, h, i, j of (P_s - P_t)^2``, ``P = softmax over j of (scale q[b,h,i] . k[b,h,j])``,
    ``N = heads * sum_b n_b^2``, or ``heads * B * max_seqlen^2`` if `normalize` is "padded".

    Shapes: q_s, k_s ``(T, heads, d_s)``; q_t, k_t ``(T, heads, d_t)``; result ``()``, float32 (float64 for float64).

    Of several layers the losses are added up.

    Source: TinyBERT (arXiv 1909.10351), section 3.1, where it is the alternative to raw scores.
    """
    if not isinstance(q_s, Tensor):
        layers = zip(q_s, k_s, q_t, k_t, strict=True)
        options = {"scale_s": scale_s, "scale_t": scale_t, "normalize": normalize}
        return torch.stack([attention_prob_mse(*x, cu_seqlens, max_seqlen, **options) for x in layers]).sum()
    assert isinstance(k_s, Tensor)
    assert isinstance(q_t, Tensor)
    assert isinstance(k_t, Tensor)
    lengths = sequence_lengths(cu_seqlens, q_s.shape[0], max_seqlen)
    scale_s, scale_t = default_scale(scale_s, q_s), default_scale(scale_t, q_t)
    total = q_s.new_zeros((), dtype=torch.promote_types(q_s.dtype, torch.float32))
    for start, stop in pairwise(cu_seqlens.tolist()):
        probs_s = attention_scores(q_s[start:stop], k_s[start:stop], scale_s).softmax(-1)
        probs_t = attention_scores(q_t[start:stop], k_t[start:stop], scale_t).softmax(-1).detach()
        total = total + (probs_s - probs_t).square().sum()
    return total / (q_s.shape[1] * num_pairs(lengths, max_seqlen, normalize))
