"""The soft and hard label terms: the teacher's predictions and the gold labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdistill.batch import Batch
from fastdistill.models.capture import Captured, Taps
from fastdistill.recipe import Losses
from fastdistill_kernels import soft_cross_entropy


class Labels:
    """Soft labels, hard labels, or both in one pass over the logits.

    Classification: ``soft = tau^2 mean(-softmax(z_t / tau) . log_softmax(z_s / tau))`` (Hinton et al., arXiv
    1503.02531) and ``hard = mean(-log_softmax(z_s)[y])``. Regression (one output): ``mean (z_s - z_t)^2`` and
    ``mean (z_s - y)^2``. `losses` says which of the two, and form, scale and mean of the soft one.
    """

    def __init__(self, losses: Losses, *, regression: bool) -> None:
        self.losses, self.regression = losses, regression
        self.student_taps, self.teacher_taps = Taps(logits=True), Taps(logits=bool(losses.soft))

    def __call__(self, student: Captured, teacher: Captured | None, batch: Batch) -> dict[str, Tensor]:
        losses, z_s = self.losses, _logits(student)
        z_t = _logits(teacher) if losses.soft and teacher is not None else None
        labels = batch.labels if losses.hard else None
        if self.regression:
            pairs = {"soft": z_t[:, 0] if z_t is not None else None, "hard": labels}
            return {name: F.mse_loss(z_s[:, 0].float(), y.float()) for name, y in pairs.items() if y is not None}
        if z_t is None:
            assert labels is not None
            return {"hard": F.cross_entropy(z_s.float(), labels)}
        share = 1 / z_s.shape[-1] if losses.soft_reduction == "mean" else 1.0
        soft, hard = soft_cross_entropy(
            z_s,
            z_t,
            labels,
            temperature=losses.temperature,
            form=losses.soft_form,
            scale_by_temperature_squared=losses.temperature_squared,
            expected_gradients=(losses.soft * share, losses.hard),
        )
        return {"soft": soft * share, "hard": hard} if losses.hard else {"soft": soft * share}

    def entries(self, batch: Batch) -> int:
        """Sequences."""
        return batch.num_sequences


def _logits(captured: Captured) -> Tensor:
    assert isinstance(captured.logits, torch.Tensor), "the label terms tap logits"
    return captured.logits
