"""`soft_cross_entropy`: the public function."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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

    ``soft = mean over rows of -softmax(z_t / temperature) . log_softmax(z_s / temperature)`` and
    ``hard = mean over rows of -log_softmax(z_s)[label]``; the caller weighs the two.

    Args:
        student_logits: ``(..., C)``.
        teacher_logits: ``(..., C)``; a constant, it never receives gradients.
        labels: ``(...)`` int64 gold classes; a row labelled `ignore_index` takes part in neither mean.
        temperature: softens both distributions of the soft term.
        form: "ce", or "kl" for KL(p_t || p_s), which has the same gradient and is 0 for equal logits.
        scale_by_temperature_squared: multiply the soft term by temperature^2, so that its gradient keeps its size.
        ignore_index: the label of rows to leave out.

    Returns:
        ``(soft, hard)``, each ``()`` float32 (float64 for float64 logits). Hard is 0 without labels; both are 0 where
        no row takes part.

    Raises:
        ValueError: logits or labels of different shapes, an unknown form, or a temperature that is not positive.

    Source: Hinton et al. (arXiv 1503.02531), section 2; TinyBERT (arXiv 1909.10351), equation 10.
    """
    _check(student_logits, teacher_logits, labels, temperature, form)
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    z_s, z_t = student_logits.to(dtype), teacher_logits.detach().to(dtype)
    log_p_s, log_p_t = (z_s / temperature).log_softmax(-1), (z_t / temperature).log_softmax(-1)
    surprise = log_p_s.neg() if form == "ce" else log_p_t - log_p_s
    soft_rows = (log_p_t.exp() * surprise).sum(-1)
    factor = temperature**2 if scale_by_temperature_squared else 1.0
    if labels is None:
        return soft_rows.sum() * (factor / max(1, soft_rows.numel())), soft_rows.new_zeros(())
    # a mask, not an index: the number of rows that take part stays on the device
    kept = labels != ignore_index
    num_rows = kept.sum().clamp(min=1)
    soft = torch.where(kept, soft_rows, 0.0).sum() * factor / num_rows
    hard = F.cross_entropy(z_s.flatten(0, -2), labels.flatten(), ignore_index=ignore_index, reduction="sum") / num_rows
    return soft, hard


def _check(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None, temperature: float, form: str
) -> None:
    if student_logits.dim() < 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"logits are {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}: pass (..., classes) for the "
            "same rows, and give student and teacher the same classes"
        )
    if labels is not None and labels.shape != student_logits.shape[:-1]:
        raise ValueError(f"labels are {tuple(labels.shape)}: must be {tuple(student_logits.shape[:-1])}, one per row")
    if form not in ("ce", "kl"):
        raise ValueError(f"form={form!r}: choose 'ce' or 'kl'")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be positive")
