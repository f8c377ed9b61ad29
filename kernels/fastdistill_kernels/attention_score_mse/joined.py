"""`attention_score_mse` in plain PyTorch, the score differences of a map as one product, formed or not.

With ``P = [scale_s q_s, -scale_t q_t]`` and ``R = [k_s, k_t]`` the differences are ``E = P R^T``, their gradients
``2 scale_s E k_s`` and ``2 scale_s E^T q_s``.

Shapes: q_s, k_s ``(maps, n, d_s)``; q_t, k_t ``(maps, n, d_t)``, idle places 0, which add nothing. Both functions
return the sum of squared differences ``()`` and its gradients for q_s and k_s, meaningless without `with_grads`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.tiled import Maps, in_single, tiles

WIDEST = 256  # columns of student and teacher side by side, that a GPU has room for


def columns_together(d_s: int, d_t: int) -> int:
    """Columns side by side on a GPU: the teacher's begin at a multiple of 8, so as to be read 16 bytes at a time."""
    return first_of_teacher(d_s) + d_t


def first_of_teacher(d_s: int) -> int:
    """The teacher's first column on a GPU."""
    return -(-d_s // 8) * 8


def gram_pays(n: float, d_s: int, d_t: int) -> bool:
    """Whether a map of n rows has more arithmetic in its scores than in the Gram matrices, both at the same rate."""
    return n >= 2 * (d_s + d_t)


def gram(maps: Maps, scale_s: float, scale_t: float, with_grads: bool) -> tuple[Tensor, Tensor, Tensor]:
    """E is never formed, for ``|P R^T|^2 = sum of (P^T P) * (R^T R)``: exact, and linear in the length.

    The gradients are ``2 scale_s P (R^T k_s)`` and ``2 scale_s R (P^T q_s)``. Where student and teacher all but agree,
    large numbers cancel: all is float64, but for bfloat16 operands, whose own rounding is larger, float32.
    """
    q_s, k_s, q_t, k_t, _ = maps
    in_bf16 = {q_s.dtype, q_t.dtype} == {torch.bfloat16}
    q_s, k_s, q_t, k_t = in_single(q_s, k_s, q_t, k_t) if in_bf16 else (x.double() for x in (q_s, k_s, q_t, k_t))
    d_s = q_s.shape[-1]
    P, R = torch.cat([scale_s * q_s, -scale_t * q_t], -1), torch.cat([k_s, k_t], -1)
    PP, RR = P.mT @ P, R.mT @ R  # (maps, d_s + d_t, d_s + d_t)
    loss = (PP * RR).sum()
    if not with_grads:
        return loss, q_s, k_s
    return loss, (2 * scale_s) * (P @ RR[..., :d_s]), 2 * (R @ PP[..., :d_s])


def differences(maps: Maps, scale_s: float, scale_t: float, with_grads: bool) -> tuple[Tensor, Tensor, Tensor]:
    """E in bfloat16, summed in float32 and then rounded: small differences of large scores keep their digits.

    ``E / scale_t`` is the product of ``[h, l, -q_t]`` and ``[k_s, k_s, k_t]``, where ``h + l`` is
    ``scale_s / scale_t * q_s`` to 16 bits: nothing else is rounded before the sum. Operands are bfloat16. The gradients
    are float32 but hold products that left as bfloat16: the caller's factor is not folded in before that.
    """
    q_s, k_s, q_t, k_t, _ = maps
    scaled = (scale_s / scale_t) * q_s.float()
    high = scaled.bfloat16()
    P, R = torch.cat([high, (scaled - high).bfloat16(), -q_t], -1), torch.cat([k_s, k_s, k_t], -1)
    loss = torch.zeros((), device=q_s.device)
    dq, dk = (torch.zeros_like(x, dtype=torch.float32 if with_grads else x.dtype) for x in (q_s, k_s))
    alpha = 2 * scale_s * scale_t
    for some, rows in tiles(*q_s.shape[:2]):
        E = P[some, rows] @ R[some].mT
        loss += torch.linalg.vector_norm(E, dim=-1, dtype=torch.float32).square().sum()
        if with_grads:
            dq[some, rows] = E @ k_s[some]
            dk[some] += E.mT @ q_s[some, rows]
    return scale_t**2 * loss, dq.mul_(alpha), dk.mul_(alpha)
