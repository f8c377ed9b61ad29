"""The attention term: attention maps of mapped layers, without forming the maps of a batch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fastdistill.batch import Batch
from fastdistill.models.capture import Captured, Taps
from fastdistill_kernels import attention_prob_mse, attention_score_mse


class Attention:
    """Sum over mapped layers of the mean squared error of attention maps.

    ``sum_m mean_{b,h,i,j} (A_s^m - A_t^{g(m)})^2`` with A the scores ``q.k * scaling`` before softmax (TinyBERT,
    arXiv 1909.10351, equation 7) or the probabilities after it. With `pad_to` L the sum over real pairs is divided by
    ``B heads L^2``, as if every sequence had L tokens and the pad ones had equal scores.
    """

    def __init__(
        self,
        layers: tuple[tuple[int, int], ...],
        *,
        kind: Literal["scores", "probs"],
        pad_to: int | None,
    ) -> None:
        self.layers = layers
        self.op = attention_score_mse if kind == "scores" else attention_prob_mse
        self.pad_to = pad_to
        student, teacher = (frozenset(side) for side in zip(*layers, strict=True))
        self.student_taps, self.teacher_taps = Taps(q=student, k=student), Taps(q=teacher, k=teacher)

    def __call__(self, student: Captured, teacher: Captured, batch: Batch) -> dict[str, Tensor]:
        loss = self.op(
            [student.q[m] for m, _ in self.layers],
            [student.k[m] for m, _ in self.layers],
            [teacher.q[n] for _, n in self.layers],
            [teacher.k[n] for _, n in self.layers],
            batch.cu_seqlens,
            self.pad_to or batch.max_seqlen,
            scale_s=student.scaling,
            scale_t=teacher.scaling,
            normalize="padded" if self.pad_to else "tokens",
        )
        return {"attention": loss}

    def entries(self, batch: Batch) -> Tensor | int:
        """Pairs of tokens of one sequence, or sequences, each of as many."""
        return batch.num_sequences if self.pad_to else batch.num_pairs
