"""The relation term: query, key and value relations of one layer, for any two head counts."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fastdistill.batch import Batch
from fastdistill.models.capture import Captured, Taps
from fastdistill_kernels import attention_kl


class Relation:
    """``sum over X in {Q, K, V} of mean rows KL(softmax(X_t X_t^T / sqrt(d)) || softmax(X_s X_s^T / sqrt(d)))``.

    Heads are re-split into `heads` relation heads on both sides, so that the models' own head counts may differ
    (MiniLMv2, arXiv 2012.15828, equations 5 to 7).
    """

    def __init__(self, layers: tuple[int, int], *, heads: int, normalize: Literal["tokens", "padded"]) -> None:
        self.layers, self.heads = layers, heads
        self.normalize: Literal["tokens", "padded"] = normalize
        self.student_taps, self.teacher_taps = (Taps(q=at, k=at, v=at) for at in map(lambda n: frozenset({n}), layers))

    def __call__(self, student: Captured, teacher: Captured, batch: Batch) -> dict[str, Tensor]:
        m, n = self.layers
        mine, theirs = (
            [x[m] for x in (student.q, student.k, student.v)],
            [x[n] for x in (teacher.q, teacher.k, teacher.v)],
        )
        loss = attention_kl(
            mine, mine, theirs, theirs, batch.cu_seqlens, batch.max_seqlen,
            num_relation_heads=self.heads, normalize=self.normalize,
        )  # fmt: skip
        return {"relation": loss}

    def entries(self, batch: Batch) -> int:
        """Tokens, or places of as many as the longest sequence has."""
        return batch.num_tokens if self.normalize == "tokens" else batch.num_sequences
