"""`soft_cross_entropy` in plain PyTorch: rows that do not count are masked: their number stays on the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_means(
    z_s: Tensor,
    z_t: Tensor,
    labels: Tensor | None,
    rows: Tensor | None,
    row_weights: Tensor | None,
    classes: int,
    ignore_index: int,
    temperature_s: float,
    temperature_t: float,
    factor: float,
    kl: bool,
) -> tuple[Tensor, Tensor]:
    """``(soft, hard)`` of logits ``(N, width)``; see the op."""
    if rows is not None:
        z_s, z_t = z_s[rows], z_t[rows]
        labels, row_weights = (None if x is None else x[rows] for x in (labels, row_weights))
    dtype = torch.promote_types(z_s.dtype, torch.float32)
    z_s, z_t = z_s[:, :classes].to(dtype), z_t.detach()[:, :classes].to(dtype)
    weights = torch.ones_like(z_s[:, 0]) if row_weights is None else row_weights.to(dtype)
    if labels is not None:
        weights = torch.where(labels == ignore_index, 0.0, weights)
    if labels is not None or row_weights is not None:  # what is ignored may hold anything, NaN too
        z_s, z_t = (torch.where((weights != 0)[:, None], z, 0.0) for z in (z_s, z_t))
    if kl:
        log_p_s, log_p_t = (z_s / temperature_s).log_softmax(-1), (z_t / temperature_t).log_softmax(-1)
        soft = (log_p_t.exp() * (log_p_t - log_p_s)).sum(-1)
    else:
        soft = F.cross_entropy(z_s / temperature_s, (z_t / temperature_t).softmax(-1), reduction="none")
    total = weights.sum()
    one_over = torch.where(total != 0, 1 / torch.where(total != 0, total, 1.0), 0.0)

    def mean(values: Tensor) -> Tensor:
        return (values * weights).sum() * one_over

    if labels is None:
        return mean(soft) * factor, soft.new_zeros(())
    real = torch.where(labels == ignore_index, 0, labels)
    return mean(soft) * factor, mean(F.cross_entropy(z_s, real, reduction="none"))
