"""The soft and hard label terms: the teacher's predictions and the gold labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdistill.batch import Batch
from fastdistill.losses.spans import span_cross_entropy
from fastdistill.models.capture import Captured, Taps
from fastdistill.recipe import HeadKind, Losses
from fastdistill_kernels import soft_cross_entropy


class Labels:
    """Soft labels, hard labels, or both in one pass over the logits.

    * classification: ``soft = tau^2 mean(-softmax(z_t / tau) . log_softmax(z_s / tau))`` (Hinton et al., arXiv
      1503.02531) and ``hard = mean(-log_softmax(z_s)[y])``.
    * tagging, masked: the same over the labelled tokens (over all, where none is labelled).
    * regression (one output): ``mean (z_s - z_t)^2`` and ``mean (z_s - y)^2``.
    * multilabel: ``tau^2 mean BCE(z_s / tau, sigmoid(z_t / tau))`` and ``mean BCE(z_s, y)``, over texts and classes,
      with ``BCE(z, p) = -p log sigmoid(z) - (1 - p) log sigmoid(-z)``.
    * span: the classification's, over the tokens of a sequence in the place of classes; start and end averaged.

    `losses` says which of soft and hard, and form, scale and mean of the soft one. Of its KL form the entropy of the
    teacher's predictions is taken away.
    """

    def __init__(self, losses: Losses, *, kind: HeadKind) -> None:
        self.losses, self.kind = losses, kind
        self.scale = losses.temperature**2 if losses.temperature_squared else 1.0
        self.over_tokens = kind in ("tagging", "masked")
        self.student_taps, self.teacher_taps = Taps(logits=True), Taps(logits=bool(losses.soft))

    def __call__(self, student: Captured, teacher: Captured | None, batch: Batch) -> dict[str, Tensor]:
        losses, z_s = self.losses, _logits(student)
        z_t = _logits(teacher) if losses.soft and teacher is not None else None
        labels = (batch.token_labels if self.over_tokens else batch.labels) if losses.hard else None
        if self.kind == "regression":
            pairs = {"soft": z_t[:, 0] if z_t is not None else None, "hard": labels}
            return {name: F.mse_loss(z_s[:, 0].float(), y.float()) for name, y in pairs.items() if y is not None}
        if self.kind == "multilabel":
            return self._binary(z_s.float(), z_t, labels)
        if self.kind == "span":
            return self._spans(z_s, z_t, batch)
        if z_t is None:
            assert labels is not None
            return {"hard": F.cross_entropy(z_s.float(), labels, reduction="sum") / max(1, len(labels))}
        share = 1 / z_s.shape[-1] if losses.soft_reduction == "mean" else 1.0
        arriving = float(torch.tensor(losses.soft, dtype=torch.float32) * share)  # rounded as it will be
        soft, hard = soft_cross_entropy(
            z_s,
            z_t,
            labels,
            temperature=losses.temperature,
            form=losses.soft_form,
            scale_by_temperature_squared=losses.temperature_squared,
            expected_gradients=(arriving, losses.hard),
        )
        return {"soft": soft * share, "hard": hard} if losses.hard else {"soft": soft * share}

    def _binary(self, z_s: Tensor, z_t: Tensor | None, labels: Tensor | None) -> dict[str, Tensor]:
        values, tau = {}, self.losses.temperature
        if z_t is not None:
            targets = (z_t.float() / tau).sigmoid()
            soft = F.binary_cross_entropy_with_logits(z_s / tau, targets)
            if self.losses.soft_form == "kl":
                soft = soft - F.binary_cross_entropy_with_logits(z_t.float() / tau, targets)
            values["soft"] = self.scale * soft
        if labels is not None:
            values["hard"] = F.binary_cross_entropy_with_logits(z_s, labels)
        return values

    def _spans(self, z_s: Tensor, z_t: Tensor | None, batch: Batch) -> dict[str, Tensor]:
        values = {}
        if z_t is not None:
            tau, form = self.losses.temperature, self.losses.soft_form
            values["soft"] = self.scale * span_cross_entropy(z_s, batch, teacher=z_t, temperature=tau, form=form)
        if self.losses.hard:
            values["hard"] = span_cross_entropy(z_s, batch)
        return values

    def entries(self, batch: Batch) -> int:
        """Sequences; of heads over tokens the labelled tokens, or all."""
        if not self.over_tokens:
            return batch.num_sequences
        return max(1, batch.num_tokens if batch.labelled is None else len(batch.labelled))


def _logits(captured: Captured) -> Tensor:
    assert isinstance(captured.logits, torch.Tensor), "the label terms tap logits"
    return captured.logits
