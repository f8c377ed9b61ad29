"""Capture without hooks: one attention function, registered with transformers, runs attention and keeps q, k, v.

Keyword arguments of a model call reach the attention function, so the recorder of one call travels with that call:
there is no global state, and two models may run at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from fastdistill.models.attention import Bounds, attend, within_window

ATTENTION = "fastdistill"


@dataclass(frozen=True)
class Taps:
    """What to keep of a forward pass; ``a | b`` is the union.

    Args:
        hidden: hidden states by transformers' own index: 0 is the embedding output, N the last layer.
        q, k, v: layers, from 1, whose queries, keys, values are kept.
        logits: whether the head runs.
    """

    hidden: frozenset[int] = frozenset()
    q: frozenset[int] = frozenset()
    k: frozenset[int] = frozenset()
    v: frozenset[int] = frozenset()
    logits: bool = False

    def __or__(self, other: Taps) -> Taps:
        return Taps(
            self.hidden | other.hidden,
            self.q | other.q,
            self.k | other.k,
            self.v | other.v,
            self.logits or other.logits,
        )

    @property
    def attention(self) -> frozenset[int]:
        """Layers of which q, k or v is kept."""
        return self.q | self.k | self.v


@dataclass
class Captured:
    """What a forward pass left behind, by layer as in `Taps`.

    Shapes:
        hidden: ``(T, D)``.
        q, k, v: ``(T, H, d)``, as they enter the scores (after rotary embeddings, before scaling).
        logits: ``(B, C)``; ``(R, C)`` of a head over labelled tokens, ``(T, 2)`` of one for spans.
        scaling: the model's own multiplier of q.k; nan for a model whose attention cannot be captured.
    """

    hidden: dict[int, Tensor] = field(default_factory=dict)
    q: dict[int, Tensor] = field(default_factory=dict)
    k: dict[int, Tensor] = field(default_factory=dict)
    v: dict[int, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    scaling: float = math.nan


class Recorder:
    """Carries one packed forward pass through the model's attention layers.

    Layers are counted by order of call, since families that share weights run one module several times.
    """

    def __init__(self, bounds: Bounds, taps: Taps) -> None:
        self.bounds = bounds
        self.taps = taps
        self.captured = Captured()
        self.layers_seen = 0

    def record(self, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> None:
        """Keeps references to what the taps ask for of the next layer; q, k, v ``(T, H, d)``."""
        self.layers_seen += 1
        self.captured.scaling = scaling
        for wanted, kept, x in (
            (self.taps.q, self.captured.q, q),
            (self.taps.k, self.captured.k, k),
            (self.taps.v, self.captured.v, v),
        ):
            if self.layers_seen in wanted:
                kept[self.layers_seen] = x


@torch.compiler.disable
def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    recorder: Recorder | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """The attention function transformers calls: packed attention with a recorder, ordinary SDPA without.

    Shapes:
        query, key, value: ``(B, H, S, d)``; ``(1, H, T, d)`` with a recorder.
        result: ``(B, S, H, d)``; ``(1, T, H, d)`` with a recorder.

    Raises:
        ValueError: the layer is a decoder's, which may not look ahead.
    """
    if getattr(module, "is_causal", False):
        raise ValueError(f"{type(module).__name__} is causal: only encoders can be distilled")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if recorder is not None:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        recorder.record(q, k, v, scaling)
        return attend(q, k, v, recorder.bounds, scaling, dropout, sliding_window)[None], None
    if attention_mask is None and sliding_window is not None:
        attention_mask = within_window(query.shape[2], sliding_window, query.device)
    output = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


ADDITIVE_MASK: Callable[..., Tensor | None] = AttentionMaskInterface()["eager"]


def attention_mask(*, attention_mask: Tensor | None = None, **rest: object) -> Tensor | None:
    """No mask where nothing is padded: a packed batch of T tokens must not form a (T, T) one. Else an additive mask,
    which SDPA understands as well as the families that compute attention by themselves."""
    return None if attention_mask is None else ADDITIVE_MASK(attention_mask=attention_mask, **rest)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, attention_mask)
