"""The definition of `soft_cross_entropy`."""

from __future__ import annotations

import torch
from torch import Tensor

from .numbers import MASKED


def soft_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    form: str = "ce",
    scale_by_temperature_squared: bool = False,
    ignore_index: int = -100,
    rows: Tensor | None = None,
    row_weights: Tensor | None = None,
    num_classes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy with the teacher's softened distribution, and with the gold labels of the same rows.

    ``soft = 1 / N * sum over r, c of -w_r p_t log p_s``, ``p_s = softmax(z_s / temperature)``,
    ``p_t = softmax(z_t / teacher_temperature)``, with "kl" ``w_r p_t (log p_t - log p_s)``, times temperature *
    teacher_temperature if asked; ``hard = 1 / N * sum over r of -w_r log softmax(z_s)[label]``; ``N = sum over r of
    w_r``. Rows r are those of `rows` (default all) whose label is not `ignore_index`, w_r their weights (default 1), c
    the first `num_classes` classes (default all). Logits below -1e30, -inf too, are taken for -1e30 and receive
    no gradient: what both sides mask adds nothing.

    Shapes: logits ``(..., C)``; labels and row_weights ``(...)``; rows ``(R,)``; results ``()``, float32 (float64 for
    float64), 0 if N is 0.

    Source: Hinton et al. (arXiv 1503.02531), section 2; TinyBERT (arXiv 1909.10351), equation 10.
    """
    temperature_t = temperature if teacher_temperature is None else teacher_temperature
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    z_s, z_t = (z.flatten(0, -2)[:, :num_classes].to(dtype) for z in (student_logits, teacher_logits.detach()))
    z_s, z_t = (z.masked_fill(z <= MASKED, MASKED) for z in (z_s, z_t))
    chosen = torch.arange(len(z_s), device=z_s.device) if rows is None else rows
    if labels is not None:
        chosen = chosen[labels.flatten()[chosen] != ignore_index]
    weights = torch.ones_like(z_s[:, 0]) if row_weights is None else row_weights.flatten().to(dtype)
    z_s, z_t, weights = z_s[chosen], z_t[chosen], weights[chosen]
    total = weights.sum()
    if total == 0:
        return (0.0 * z_s).sum(), (0.0 * z_s).sum()
    log_p_s, log_p_t = (z_s / temperature).log_softmax(-1), (z_t / temperature_t).log_softmax(-1)
    surprise = -log_p_s if form == "ce" else log_p_t - log_p_s
    soft = (weights * (log_p_t.exp() * surprise).sum(-1)).sum() / total
    if scale_by_temperature_squared:
        soft = soft * temperature * temperature_t
    if labels is None:
        return soft, soft.new_zeros(())
    gold = -z_s.log_softmax(-1).gather(-1, labels.flatten()[chosen].unsqueeze(-1)).squeeze(-1)
    return soft, (weights * gold).sum() / total
