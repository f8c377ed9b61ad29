"""The attention term: attention maps of mapped layers, without forming the maps of a batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fastdistill.batch import Batch
from fastdistill.models.capture import Captured, Taps
from fastdistill_kernels import attention_prob_mse, attention_score_mse


class Attention:
    """Sum over mapped layers of the mean squared error of attention maps.

    ``sum_m mean_{b,h,i,j} (A_s^m - A_t^{g(m)})^2`` with A the scores ``q.k * scaling`` before softmax (TinyBERT,
    arXiv 1909.10351, equation 7), the probabilities after it, or centered scores, ``A_ij - mean_j A_ij``: softmax does
    not see what is added to a whole row, so that raw scores also compare what no model uses. With `pad_to` L the sum
    over real pairs is divided by ``B heads L^2``, as if every sequence had L tokens and the pad ones had equal scores.
    """

    def __init__(
        self,
        layers: tuple[tuple[int, int], ...],
        *,
        kind: Literal["scores", "centered_scores", "probs"],
        pad_to: int | None,
    ) -> None:
        self.layers = layers
        self.op = attention_prob_mse if kind == "probs" else attention_score_mse
        self.centered = kind == "centered_scores"
        self.pad_to = pad_to
        student, teacher = (frozenset(side) for side in zip(*layers, strict=True))
        self.student_taps, self.teacher_taps = Taps(q=student, k=student), Taps(q=teacher, k=teacher)

    def __call__(self, student: Captured, teacher: Captured, batch: Batch) -> dict[str, Tensor]:
        k_s, k_t = [student.k[m] for m, _ in self.layers], [teacher.k[n] for _, n in self.layers]
        if self.centered:
            k_s, k_t = ([centered(k, batch.cu_seqlens) for k in side] for side in (k_s, k_t))
        loss = self.op(
            [student.q[m] for m, _ in self.layers],
            k_s,
            [teacher.q[n] for _, n in self.layers],
            k_t,
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


def centered(k: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Keys ``(T, H, d)`` less the mean of their sequence, which takes from every row of scores its own mean.

    ``q_i . (k_j - mean_j k_j) = A_ij - mean_j A_ij``: no score is formed. Means are taken in float32 at least, and as
    constants: errors of centered scores are centered, ``sum_j dA_ij = 0``, so that the gradients of the keys of a
    sequence, ``sum_i dA_ij q_i``, add up to 0 and the mean's would be that.
    """
    lengths = cu_seqlens.diff().long()
    exact = k.to(torch.promote_types(k.dtype, torch.float32))
    with torch.no_grad():
        means = torch.segment_reduce(exact, "mean", lengths=lengths, unsafe=True)  # checked, a GPU would be waited for
        means = means.repeat_interleave(lengths, dim=0, output_size=len(k))
    return (exact - means).to(k.dtype)
