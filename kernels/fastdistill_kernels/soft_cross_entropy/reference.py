"""The definition of `soft_cross_entropy`."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    form: str = "ce",
    scale_by_temperature_squared: bool = False,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy with the teacher's softened distribution, and with the gold labels of the same rows.

    ``soft = 1 / N * sum over rows, c of -p_t log p_s``, ``p = softmax(z / temperature)``, with "kl"
    ``p_t (log p_t - log p_s)``, times temperature^2 if asked; ``hard = 1 / N * sum over rows of
    -log softmax(z_s)[label]``. A row takes part in both, and in N, unless its label is `ignore_index`.

    Shapes: logits ``(..., C)``; labels ``(...)`` int64; results ``()``, float32 (float64 for float64), 0 if N is 0.

    Source: Hinton et al. (arXiv 1503.02531), section 2; TinyBERT (arXiv 1909.10351), equation 10.
    """
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    z_s, z_t = student_logits.to(dtype), teacher_logits.detach().to(dtype)
    if labels is not None:
        z_s, z_t, labels = (x[labels != ignore_index] for x in (z_s, z_t, labels))
    num_rows = max(1, z_s.shape[:-1].numel())
    log_p_s, log_p_t = (z_s / temperature).log_softmax(-1), (z_t / temperature).log_softmax(-1)
    surprise = -log_p_s if form == "ce" else log_p_t - log_p_s
    soft = (log_p_t.exp() * surprise).sum() / num_rows
    if scale_by_temperature_squared:
        soft = soft * temperature**2
    if labels is None:
        return soft, soft.new_zeros(())
    return soft, -z_s.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).sum() / num_rows
