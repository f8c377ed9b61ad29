"""`attention_score_mse` without scores: a sum of squared products is a product of sums of squares.

With ``P = [scale_s q_s, -scale_t q_t]`` and ``R = [k_s, k_t]`` the score differences of a map are ``P R^T``, so that
``|P R^T|^2 = sum of (P^T P) * (R^T R)`` and the gradients are ``2 scale_s P (R^T k_s)`` and ``2 scale_s R (P^T q_s)``:
exact, and linear in the length. Where student and teacher all but agree, large numbers cancel: all is float32 at least.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gram_pays(n: int, d_s: int, d_t: int) -> bool:
    """Whether a map of n rows has more arithmetic in its scores than in the Gram matrices.

    Measured on a CPU; on a GPU, where the longest map decides for all, a count of operations says the same.
    """
    return n >= 2 * (d_s + d_t)


def gram(
    q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, scale_s: float, scale_t: float, with_grads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of squared score differences, and its gradients for q_s and k_s.

    Shapes: q_s, k_s ``(maps, n, d_s)``; q_t, k_t ``(maps, n, d_t)``; ``()``; gradients as q_s (meaningless without).
    """
    d_s = q_s.shape[-1]
    P, R = torch.cat([scale_s * q_s, -scale_t * q_t], -1), torch.cat([k_s, k_t], -1)
    PP, RR = P.mT @ P, R.mT @ R  # (maps, d_s + d_t, d_s + d_t)
    loss = (PP * RR).sum()
    if not with_grads:
        return loss, q_s, k_s
    return loss, (2 * scale_s) * (P @ RR[..., :d_s]), 2 * (R @ PP[..., :d_s])
