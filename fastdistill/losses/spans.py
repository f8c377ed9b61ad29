"""Losses of start and end positions, each a class among the tokens of its sequence."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from fastdistill.batch import Batch
from fastdistill.models.attention import Bounds


def span_cross_entropy(
    z_s: Tensor,
    batch: Batch,
    *,
    teacher: Tensor | None = None,
    temperature: float = 1.0,
    form: Literal["ce", "kl"] = "ce",
) -> Tensor:
    """Cross-entropy of start and end over the tokens of each sequence, the mean of both and of all sequences.

    With p the softmax over the tokens i of a sequence, ``-1/2 sum_e log p_s[label_e, e]`` over e in {start, end};
    beside a teacher ``-1/2 sum_e sum_i p_t[i, e] log p_s[i, e]``, both logits divided by `temperature`; as a KL
    divergence ``1/2 sum_e sum_i p_t[i, e] (log p_t[i, e] - log p_s[i, e])``.

    Shapes:
        z_s, teacher: ``(T, 2)`` logits of start and end.
        result: ``()`` float32.
    """
    log_s = _log_softmax(z_s, batch, temperature)
    if teacher is None:
        assert batch.labels is not None, "the hard loss needs labels"
        return -log_s.gather(1, batch.labels[:, None]).mean()
    log_t = _log_softmax(teacher, batch, temperature)
    p_t, further = log_t.exp(), log_s if form == "ce" else log_s - log_t
    return -(p_t * further.masked_fill(p_t == 0, 0.0)).sum(1).mean()


def _log_softmax(z: Tensor, batch: Batch, temperature: float) -> Tensor:
    """``(T, 2) -> (B, S, 2)``, -inf where a sequence has no token."""
    index, real = Bounds(batch.cu_seqlens, batch.max_seqlen).padded_index
    return (z.float() / temperature)[index].masked_fill(~real[..., None], -math.inf).log_softmax(1)
