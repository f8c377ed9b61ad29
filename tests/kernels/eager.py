"""Each loss as one writes it in eager PyTorch in the dtype of its operands: the bar that an op's error is held to.

They know the defaults of the specs' inputs only and are independent of the package.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_score_mse(
    q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    return _mean_over_maps(lambda s, t: F.mse_loss(s, t, reduction="none"), q_s, k_s, q_t, k_t, cu_seqlens)


def attention_prob_mse(
    q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    def loss(s: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(s.softmax(-1), t.softmax(-1), reduction="none")

    return _mean_over_maps(loss, q_s, k_s, q_t, k_t, cu_seqlens)


def attention_kl(a_s: Tensor, b_s: Tensor, a_t: Tensor, b_t: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    def loss(s: Tensor, t: Tensor) -> Tensor:
        return F.kl_div(s.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="none").sum(-1)

    return _mean_over_maps(loss, a_s, b_s, a_t, b_t, cu_seqlens)


def hidden_mse(h_s: Tensor, h_t: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.mse_loss(F.linear(h_s, weight, bias), h_t)


def soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    soft = F.cross_entropy(student_logits / temperature, (teacher_logits / temperature).softmax(-1))
    return soft, F.cross_entropy(student_logits, labels)


def normalized_mse(h_s: Tensor, h_t: Tensor) -> Tensor:
    return (F.normalize(h_s, dim=-1) - F.normalize(h_t, dim=-1)).square().sum(-1).mean()


def _mean_over_maps(
    loss: Callable[[Tensor, Tensor], Tensor], a_s: Tensor, b_s: Tensor, a_t: Tensor, b_t: Tensor, cu_seqlens: Tensor
) -> Tensor:
    entries = []
    for start, stop in pairwise(cu_seqlens.tolist()):
        q_s, k_s, q_t, k_t = (x[start:stop].transpose(0, 1) for x in (a_s, b_s, a_t, b_t))
        maps = q_s @ k_s.mT / q_s.shape[-1] ** 0.5, q_t @ k_t.mT / q_t.shape[-1] ** 0.5
        entries.append(loss(*maps).flatten())
    return torch.cat(entries).mean()
