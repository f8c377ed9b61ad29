"""The hidden and embedding terms: projected student states against the teacher's."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from fastdistill.batch import Batch
from fastdistill.models.capture import Captured, Taps
from fastdistill_kernels import hidden_mse


class Hidden:
    """Sum over mapped layers of the mean squared error of projected hidden states.

    ``sum_m mean (H_s^m W + b - H_t^{g(m)})^2`` (TinyBERT, arXiv 1909.10351, equation 8). Layer 0 is the output of the
    embeddings, so that the embedding term (equation 9) is this one over the pair (0, 0).

    `projections` holds one linear map per pair, which may be the same.
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
        self.layers = layers
        self.projections = projections[:1] if all(p is projections[0] for p in projections) else projections
        self.normalize: Literal["tokens", "padded"] = normalize
        student, teacher = (frozenset(side) for side in zip(*layers, strict=True))
        self.student_taps, self.teacher_taps = Taps(hidden=student), Taps(hidden=teacher)

    def __call__(self, student: Captured, teacher: Captured, batch: Batch) -> dict[str, Tensor]:
        loss = hidden_mse(
            [student.hidden[m] for m, _ in self.layers],
            [teacher.hidden[n] for _, n in self.layers],
            [p.weight for p in self.projections],
            [p.bias for p in self.projections],
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
            normalize=self.normalize,
        )
        return {self.name: loss}

    def entries(self, batch: Batch) -> int:
        """Tokens, or places of as many as the longest sequence has."""
        return batch.num_tokens if self.normalize == "tokens" else batch.num_sequences
