"""Each loss as one writes it in eager PyTorch in the dtype of its operands: the bar that an op's error is held to.

They know the defaults of the specs' inputs only and compute nothing with the package.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdistill_kernels.attention.packed import Layers, as_layers


def attention_score_mse(
    q_s: Layers, k_s: Layers, q_t: Layers, k_t: Layers, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    return _mean_over_maps(lambda s, t: F.mse_loss(s, t, reduction="none"), q_s, k_s, q_t, k_t, cu_seqlens)


def attention_prob_mse(
    q_s: Layers, k_s: Layers, q_t: Layers, k_t: Layers, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    def loss(s: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(s.softmax(-1), t.softmax(-1), reduction="none")

    return _mean_over_maps(loss, q_s, k_s, q_t, k_t, cu_seqlens)


def attention_kl(a_s: Layers, b_s: Layers, a_t: Layers, b_t: Layers, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    def loss(s: Tensor, t: Tensor) -> Tensor:
        return F.kl_div(s.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="none").sum(-1)

    return _mean_over_maps(loss, a_s, b_s, a_t, b_t, cu_seqlens)


def hidden_mse(h_s: Layers, h_t: Layers, weight: Tensor, bias: Tensor) -> Tensor:
    layers = zip(as_layers(h_s), as_layers(h_t), strict=True)
    return torch.stack([F.mse_loss(F.linear(x, weight, bias), y) for x, y in layers]).sum()


def soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    soft = F.cross_entropy(student_logits / temperature, (teacher_logits / temperature).softmax(-1))
    return soft, F.cross_entropy(student_logits, labels)


def hidden_normalized(h_s: Layers, h_t: Layers, weight: Tensor, bias: Tensor) -> Tensor:
    layers = zip(as_layers(h_s), as_layers(h_t), strict=True)
    pairs = [(F.normalize(_project(x, weight, bias), dim=-1), F.normalize(y.float(), dim=-1)) for x, y in layers]
    return torch.stack([(p - t).square().sum(-1).mean() for p, t in pairs]).sum()


def hidden_cosine(h_s: Layers, h_t: Layers, weight: Tensor, bias: Tensor) -> Tensor:
    layers = zip(as_layers(h_s), as_layers(h_t), strict=True)
    return torch.stack(
        [(1 - F.cosine_similarity(_project(x, weight, bias), y.float())).mean() for x, y in layers]
    ).sum()


def _project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """In the dtype of `x`; its rows are compared in float32: in bfloat16 the bar would be too low to see 2 %."""
    return F.linear(x, weight, bias).float()


def _mean_over_maps(
    loss: Callable[[Tensor, Tensor], Tensor], a_s: Layers, b_s: Layers, a_t: Layers, b_t: Layers, cu_seqlens: Tensor
) -> Tensor:
    if not isinstance(a_s, Tensor):
        layers = zip(a_s, b_s, a_t, b_t, strict=True)
        return torch.stack([_mean_over_maps(loss, *layer, cu_seqlens) for layer in layers]).sum()
    entries = []
    for start, stop in pairwise(cu_seqlens.tolist()):
        q_s, k_s, q_t, k_t = (x[start:stop].transpose(0, 1) for x in (a_s, b_s, a_t, b_t))  # type: ignore[union-attr]
        maps = q_s @ k_s.mT / q_s.shape[-1] ** 0.5, q_t @ k_t.mT / q_t.shape[-1] ** 0.5
        entries.append(loss(*maps).flatten())
    return torch.cat(entries).mean()
