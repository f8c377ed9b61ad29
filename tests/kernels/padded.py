"""Padded maps, as published code builds them: an independent way to the numbers of `normalize="padded"`."""

from __future__ import annotations

from on_device import arange, tensor
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def padded_heads(x: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Packed ``(T, heads, d)`` -> ``(B, heads, max_seqlen, d)``, pad rows of zeros."""
    return pad_sequence(list(x.split(lengths)), batch_first=True).transpose(1, 2)


def padded_scores(a: Tensor, b: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """``(B, heads, max_seqlen, max_seqlen)`` raw scores, -10000 added to the columns of padding as BERT does."""
    a, b = (padded_heads(x, lengths) for x in (a, b))
    return a @ b.mT / a.shape[-1] ** 0.5 - 10000.0 * ~real_tokens(lengths)[:, None, None, :]


def real_tokens(lengths: tuple[int, ...]) -> Tensor:
    """``(B, max_seqlen)``, False where there is padding."""
    return arange(max(lengths)) < tensor(lengths)[:, None]
