"""The losses as one writes them in eager PyTorch for equally long sequences: what `bench.ops` compares the ops with.

They take the keyword arguments of the specs' inputs and form attention maps, as the published programs do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Layers = Tensor | tuple[Tensor, ...]


def _scores(a: Tensor, b: Tensor, length: int) -> Tensor:
    """``(B, H, S, S)`` of packed ``(B S, H, d)``."""
    q, k = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (a, b))
    return q @ k.mT / q.shape[-1] ** 0.5


def attention_score_mse(
    q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    return F.mse_loss(_scores(q_s, k_s, max_seqlen), _scores(q_t, k_t, max_seqlen))


def attention_prob_mse(
    q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    return F.mse_loss(_scores(q_s, k_s, max_seqlen).softmax(-1), _scores(q_t, k_t, max_seqlen).softmax(-1))


def attention_kl(a_s: Tensor, b_s: Tensor, a_t: Tensor, b_t: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    log_p_s, log_p_t = (_scores(a, b, max_seqlen).log_softmax(-1) for a, b in ((a_s, b_s), (a_t, b_t)))
    return F.kl_div(log_p_s, log_p_t, log_target=True, reduction="none").sum(-1).mean()


def _over_layers(
    distance: Callable[[Tensor, Tensor], Tensor], h_s: Layers, h_t: Layers, weight: Tensor, bias: Tensor
) -> Tensor:
    """The sum of the layers' distances of projected student states and teacher states."""
    layers = zip(*((x,) if isinstance(x, Tensor) else x for x in (h_s, h_t)), strict=True)
    return torch.stack([distance(F.linear(x, weight, bias), y) for x, y in layers]).sum()


def hidden_mse(h_s: Layers, h_t: Layers, weight: Tensor, bias: Tensor) -> Tensor:
    return _over_layers(F.mse_loss, h_s, h_t, weight, bias)


def hidden_normalized(h_s: Layers, h_t: Layers, weight: Tensor, bias: Tensor) -> Tensor:
    def distance(p: Tensor, t: Tensor) -> Tensor:
        return (F.normalize(p, dim=-1) - F.normalize(t, dim=-1)).square().sum(-1).mean()

    return _over_layers(distance, h_s, h_t, weight, bias)


def hidden_cosine(h_s: Layers, h_t: Layers, weight: Tensor, bias: Tensor) -> Tensor:
    def distance(p: Tensor, t: Tensor) -> Tensor:
        return (1 - F.cosine_similarity(p, t, dim=-1)).mean()

    return _over_layers(distance, h_s, h_t, weight, bias)


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    soft = F.cross_entropy(student_logits / temperature, (teacher_logits / temperature).softmax(-1))
    return soft + F.cross_entropy(student_logits, labels)


EAGER: dict[str, Callable[..., Tensor]] = {
    f.__name__: f
    for f in (
        attention_score_mse,
        attention_prob_mse,
        attention_kl,
        hidden_mse,
        hidden_normalized,
        hidden_cosine,
        soft_cross_entropy,
    )
}


def liger(name: str) -> Callable[..., Any] | None:
    """Liger's loss that comes closest, where `liger-kernel` is installed: its KL divergence for soft labels.

    From a cross-entropy it differs by the entropy of the teacher's labels, which has no gradient.
    """
    if name != "soft_cross_entropy":
        return None
    try:
        from liger_kernel.ops.kl_div import LigerKLDivLossFunction  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None

    def loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        log_p_s = (student_logits / temperature).log_softmax(-1)
        p_t = (teacher_logits / temperature).softmax(-1)
        kl: Tensor = LigerKLDivLossFunction.apply(log_p_s, p_t, "batchmean", False, 1e-10)
        return kl + F.cross_entropy(student_logits, labels)

    return loss
