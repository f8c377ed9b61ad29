"""The hidden and embedding terms: projected student states against the teacher's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fastdistill.batch import Batch
from fastdistill.models.capture import Captured, Taps
from fastdistill_kernels import hidden_mse


class Hidden:
    """Sum over mapped layers of the mean squared error of projected hidden states.

    ``sum_m mean (H_s^m W + b - H_t^{g(m)})^2`` (TinyBERT, arXiv 1909.10351, equation 8). Layer 0 is the output of the
    embeddings, so that the embedding term (equation 9) is this one over the pair (0, 0).

    `projections` holds one linear map per pair; pairs that share one are computed in one stacked call.
    """

    def __init__(
        self,
        name: str,
        layers: tuple[tuple[int, int], ...],
        projections: list[nn.Linear],
        *,
        normalize: Literal["tokens", "padded"],
    ) -> None:
        self.name = name
        self.normalize: Literal["tokens", "padded"] = normalize
        # one group for each distinct projection: [(projection, its pairs)]
        groups = {
            id(p): (p, [pair for pair, q in zip(layers, projections, strict=True) if q is p]) for p in projections
        }
        self.groups = list(groups.values())
        student, teacher = (frozenset(side) for side in zip(*layers, strict=True))
        self.student_taps, self.teacher_taps = Taps(hidden=student), Taps(hidden=teacher)

    def __call__(self, student: Captured, teacher: Captured, batch: Batch) -> dict[str, Tensor]:
        losses = []
        for projection, pairs in self.groups:
            h_s = torch.stack([student.hidden[m] for m, _ in pairs])  # (L, T, D_s)
            h_t = torch.stack([teacher.hidden[n] for _, n in pairs])  # (L, T, D_t)
            mean = hidden_mse(
                h_s,
                h_t,
                projection.weight,
                projection.bias,
                cu_seqlens=batch.cu_seqlens,
                max_seqlen=batch.max_seqlen,
                normalize=self.normalize,
            )
            losses.append(len(pairs) * mean)
        return {self.name: sum(losses[1:], losses[0])}
