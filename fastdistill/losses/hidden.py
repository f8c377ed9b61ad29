"""The terms over hidden states: projected student states, or their directions, against the teacher's."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from fastdistill.batch import Batch
from fastdistill.models.capture import Captured, Taps
from fastdistill_kernels import hidden_mse


class Hidden:
    """Sum over mapped layers of the mean squared error of projected hidden states.

    ``sum_m mean (H_s^m W + b - H_t^{g(m)})^2`` (TinyBERT, arXiv 1909.10351, equation 8). Layer 0 is the output of the
    embeddings, so that the embedding term (equation 9) is this one over the pair (0, 0). With `pad_to` L the sum over
    real tokens is divided by ``B L`` in the place of their number.

    `projections` holds one linear map per pair, which may be the same.
    """

    def __init__(
        self,
        name: str,
        layers: tuple[tuple[int, int], ...],
        projections: list[nn.Linear],
        *,
        pad_to: int | None,
    ) -> None:
        self.name = name
        self.layers = layers
        self.projections = projections
        self.pad_to = pad_to
        student, teacher = (frozenset(side) for side in zip(*layers, strict=True))
        self.student_taps, self.teacher_taps = Taps(hidden=student), Taps(hidden=teacher)

    def __call__(self, student: Captured, teacher: Captured, batch: Batch) -> dict[str, Tensor]:
        loss = hidden_mse(
            [student.hidden[m] for m, _ in self.layers],
            [teacher.hidden[n] for _, n in self.layers],
            *_weights(self.projections),
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=self.pad_to or batch.max_seqlen,
            normalize="padded" if self.pad_to else "tokens",
        )
        return {self.name: loss}

    def entries(self, batch: Batch) -> int:
        """Tokens, or sequences, each of as many."""
        return batch.num_sequences if self.pad_to else batch.num_tokens


class Patience:
    """``mean over mapped layers and sequences of |h_s / |h_s| - h_t / |h_t||^2``, h the states of [CLS].

    Patient-KD (arXiv 1908.09355, equation 7), whose sum over layers and rows is a mean here, so that its weight does
    not depend on how many there are. `distance` "squared" leaves states as long as they are, and `reduction` "mean"
    divides by the teacher's width too: the published program's mean over all elements, with either distance.
    `projections`, one for each pair or none where widths are equal, come first.
    """

    def __init__(
        self,
        layers: tuple[tuple[int, int], ...],
        projections: list[nn.Linear],
        *,
        distance: Literal["normalized", "squared"],
        reduction: Literal["batchmean", "mean"],
    ) -> None:
        self.layers, self.projections = layers, projections
        self.distance, self.reduction = distance, reduction
        student, teacher = (frozenset(side) for side in zip(*layers, strict=True))
        self.student_taps, self.teacher_taps = Taps(hidden=student), Taps(hidden=teacher)

    def __call__(self, student: Captured, teacher: Captured, batch: Batch) -> dict[str, Tensor]:
        first = batch.cu_seqlens[:-1].long()
        loss = hidden_mse(
            [student.hidden[m][first] for m, _ in self.layers],
            [teacher.hidden[n][first] for _, n in self.layers],
            *_weights(self.projections),
            distance=self.distance,
        )
        width = teacher.hidden[self.layers[0][1]].shape[-1]
        divided = width if self.distance == "squared" else 1  # by the op
        wanted = width if self.reduction == "mean" else 1
        return {"patience": loss * (divided / wanted) / len(self.layers)}

    def entries(self, batch: Batch) -> int:
        """Sequences."""
        return batch.num_sequences


class Cosine:
    """``mean over tokens of 1 - cos(h_s, h_t)`` of one layer's states (DistilBERT, arXiv 1910.01108, section 2).

    `projections`, one or none where widths are equal, comes first.
    """

    def __init__(self, layers: tuple[int, int], projections: list[nn.Linear]) -> None:
        self.layers, self.projections = layers, projections
        self.student_taps, self.teacher_taps = (Taps(hidden=frozenset({n})) for n in layers)

    def __call__(self, student: Captured, teacher: Captured, batch: Batch) -> dict[str, Tensor]:
        m, n = self.layers
        weights = _weights(self.projections)
        return {"cosine": hidden_mse([student.hidden[m]], [teacher.hidden[n]], *weights, distance="cosine")}

    def entries(self, batch: Batch) -> int:
        """Tokens."""
        return batch.num_tokens


def _weights(projections: list[nn.Linear]) -> tuple[list[Tensor] | None, list[Tensor] | None]:
    """Weights and biases, one of each where all layers share them."""
    if not projections:
        return None, None
    distinct = list(dict.fromkeys(projections))
    projections = distinct if len(distinct) == 1 else projections
    return [p.weight for p in projections], [p.bias for p in projections]
