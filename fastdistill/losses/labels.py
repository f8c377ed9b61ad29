"""The soft and hard label terms: the teacher's predictions and the gold labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdistill.batch import Batch
from fastdistill.models.capture import Captured, Taps
from fastdistill_kernels import soft_cross_entropy


class Labels:
    """Soft labels, hard labels, or both in one pass over the logits.

    Classification: ``soft = tau^2 mean(-softmax(z_t / tau) . log_softmax(z_s / tau))`` (Hinton et al., arXiv
    1503.02531) and ``hard = mean(-log_softmax(z_s)[y])``. Regression (one output): ``mean (z_s - z_t)^2`` and
    ``mean (z_s - y)^2``.

    `soft` and `hard` are the weights that the two have in the objective; a term of weight 0 is left out.
    """

    def __init__(self, *, soft: float, hard: float, temperature: float, regression: bool) -> None:
        self.soft, self.hard, self.temperature, self.regression = soft, hard, temperature, regression
        self.student_taps, self.teacher_taps = Taps(logits=True), Taps(logits=bool(soft))

    def __call__(self, student: Captured, teacher: Captured | None, batch: Batch) -> dict[str, Tensor]:
        z_s = _logits(student)
        z_t = _logits(teacher) if self.soft and teacher is not None else None
        labels = batch.labels if self.hard else None
        if self.regression:
            pairs = {"soft": z_t[:, 0] if z_t is not None else None, "hard": labels}
            return {name: F.mse_loss(z_s[:, 0].float(), y.float()) for name, y in pairs.items() if y is not None}
        if z_t is None:
            assert labels is not None
            return {"hard": F.cross_entropy(z_s.float(), labels)}
        soft, hard = soft_cross_entropy(
            z_s,
            z_t,
            labels,
            temperature=self.temperature,
            scale_by_temperature_squared=True,
            expected_gradients=(self.soft, self.hard),
        )
        return {"soft": soft, "hard": hard} if self.hard else {"soft": soft}

    def entries(self, batch: Batch) -> int:
        """Sequences."""
        return batch.num_sequences


def _logits(captured: Captured) -> Tensor:
    assert isinstance(captured.logits, torch.Tensor), "the label terms tap logits"
    return captured.logits
