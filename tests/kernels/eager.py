"""Each loss as one writes it in eager PyTorch in the dtype of its operands: the bar that an op's error is held to.

They compute nothing with the package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdistill_kernels.attention.packed import Layers, as_layers


def attention_score_mse(q_s: Layers, k_s: Layers, q_t: Layers, k_t: Layers, **options: Any) -> Tensor:
    return _mean_over_maps(lambda s, t: F.mse_loss(s, t, reduction="none"), (q_s, k_s, q_t, k_t), **options)


def attention_prob_mse(q_s: Layers, k_s: Layers, q_t: Layers, k_t: Layers, **options: Any) -> Tensor:
    def loss(s: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(s.softmax(-1), t.softmax(-1), reduction="none")

    return _mean_over_maps(loss, (q_s, k_s, q_t, k_t), **options)


def attention_kl(a_s: Layers, b_s: Layers, a_t: Layers, b_t: Layers, **options: Any) -> Tensor:
    def loss(s: Tensor, t: Tensor) -> Tensor:
        return F.kl_div(s.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="none").sum(-1)

    return _mean_over_maps(loss, (a_s, b_s, a_t, b_t), power=1, **options)


def hidden_mse(h_s: Layers, h_t: Layers, weight: Tensor, bias: Tensor) -> Tensor:
    layers = zip(as_layers(h_s), as_layers(h_t), strict=True)
    return torch.stack([F.mse_loss(F.linear(x, weight, bias), y) for x, y in layers]).sum()


def soft_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float,
    teacher_temperature: float | None = None,
    form: str = "ce",
    scale_by_temperature_squared: bool = False,
    rows: Tensor | None = None,
    row_weights: Tensor | None = None,
    num_classes: int | None = None,
) -> tuple[Tensor, Tensor]:
    z_s, z_t = (z[:, :num_classes] for z in (student_logits, teacher_logits))
    chosen = torch.arange(len(z_s), device=z_s.device) if rows is None else rows
    if labels is not None:
        chosen = chosen[labels[chosen] != -100]
        labels = labels[chosen]
    weights = torch.ones(len(chosen), device=z_s.device) if row_weights is None else row_weights[chosen]
    z_s, z_t = z_s[chosen], z_t[chosen]

    def mean(losses: Tensor) -> Tensor:
        return (weights * losses).sum() / weights.sum()

    temperature_t = teacher_temperature or temperature
    if form == "ce":
        soft = F.cross_entropy(z_s / temperature, (z_t / temperature_t).softmax(-1), reduction="none")
    else:
        logs = (z_s / temperature).log_softmax(-1), (z_t / temperature_t).log_softmax(-1)
        soft = F.kl_div(*logs, log_target=True, reduction="none").sum(-1)
    factor = temperature * temperature_t if scale_by_temperature_squared else 1.0
    hard = torch.zeros(()) if labels is None else mean(F.cross_entropy(z_s, labels, reduction="none"))
    return factor * mean(soft), hard.to(z_s.device)


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
    loss: Callable[[Tensor, Tensor], Tensor],
    operands: Sequence[Layers],
    *,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale_s: float | None = None,
    scale_t: float | None = None,
    temperature: float = 1.0,
    normalize: str = "tokens",
    power: int = 2,
) -> Tensor:
    """The mean over a layer's entries of all layers; a sequence of n tokens has ``n^power`` for each head."""
    lengths = cu_seqlens.diff()
    padded = len(lengths) * max_seqlen**power
    share = float(lengths.pow(power).sum()) / padded if normalize == "padded" else 1.0
    means = []
    for layer in zip(*map(as_layers, operands), strict=True):
        scales = [scale or x.shape[-1] ** -0.5 for scale, x in ((scale_s, layer[0]), (scale_t, layer[2]))]
        entries = []
        for start, stop in pairwise(cu_seqlens.tolist()):
            q_s, k_s, q_t, k_t = (x[start:stop].transpose(0, 1) for x in layer)
            maps = (
                q @ k.mT * (scale / temperature) for q, k, scale in zip((q_s, q_t), (k_s, k_t), scales, strict=True)
            )
            entries.append(loss(*maps).flatten(1))
        means.append(share * torch.cat(entries, dim=1).mean())
    return torch.stack(means).sum()
