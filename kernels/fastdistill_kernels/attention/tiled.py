"""Attention losses in plain PyTorch and O(T) memory: exact, on any device, one bounded tile of scores at a time.

The maps of a block of sequences (`into_blocks`), one per sequence and head, are one batched matrix product. A block is
cut into groups of maps, and a map too large for a tile into groups of rows. Idle places hold zeros: an idle query has
the same scores on both sides, and adds nothing to a loss that is 0 for equal rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import Block, dense, scatter

IDLE = -1e38  # the score of an idle key, which no softmax sees; finite, as the logarithm of its probability must be
TILE_ELEMENTS = 1 << 18
"""Most scores alive at once per side (one row at least): 1 MiB of float32, so that a tile stays in a core's cache."""

Tile = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]
"""``(scores_s, scores_t, with_grads) -> (sum of the tile's losses, d sum / d scores_s)``.

Scores are ``(maps, rows, n)``, whole rows, and may be overwritten; without gradients the second value is not read.
"""


class Maps(NamedTuple):
    """The operands of the maps of a block, ``(maps, n, d)`` in their own dtypes; of `real` None all places hold tokens.

    Shapes:
        real: ``(maps, 1, n)`` bool, which places hold tokens; the others hold zeros.
    """

    a_s: Tensor
    b_s: Tensor
    a_t: Tensor
    b_t: Tensor
    real: Tensor | None = None


MapsLoss = Callable[[Maps, float, float, bool], tuple[Tensor, Tensor, Tensor]]
"""``(maps, scale_s, scale_t, with_grads) -> (sum of losses, d sum / d a_s, d sum / d b_s)``.

Without gradients the other two values are not read.
"""


def by_tiles(tile: Tile) -> MapsLoss:
    """The sum of `tile` over maps, a bounded tile of scores at a time, those of idle keys `IDLE` on both sides."""

    def maps_loss(block: Maps, scale_s: float, scale_t: float, with_grads: bool) -> tuple[Tensor, Tensor, Tensor]:
        *operands, real = block
        a_s, b_s, a_t, b_t = in_single(*operands)
        loss, da_s, db_s = a_s.new_zeros(()), torch.zeros_like(a_s), torch.zeros_like(b_s)
        idle = -math.inf if real is not None and _may_be_infinite(a_s, b_s, a_t, b_t) else IDLE
        for maps, rows in tiles(len(a_s), a_s.shape[1]):
            scores_s = _scores(a_s[maps, rows], b_s[maps], scale_s)
            scores_t = _scores(a_t[maps, rows], b_t[maps], scale_t)
            if real is not None:
                for scores in (scores_s, scores_t):
                    scores.masked_fill_(~real[maps], idle)
            tile_loss, d_scores = tile(scores_s, scores_t, with_grads)
            loss += tile_loss
            if with_grads:
                da_s[maps, rows].baddbmm_(d_scores, b_s[maps], alpha=scale_s)
                db_s[maps].baddbmm_(d_scores.mT, a_s[maps, rows], alpha=scale_s)
        return loss, da_s, db_s

    return maps_loss


def mean_over_maps(
    maps_loss: MapsLoss,
    a_s: Tensor,
    b_s: Tensor,
    a_t: Tensor,
    b_t: Tensor,
    blocks: list[Block],
    scale_s: float,
    scale_t: float,
    num_entries: int,
    gradients: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """The sum of `maps_loss` over all maps ``scale * a . b``, divided by `num_entries`; fills in its gradients.

    Shapes:
        a_s, b_s ``(T, heads, d_s)``; a_t, b_t ``(T, heads, d_t)``; `blocks` of all tokens; `gradients` as a_s and
        b_s, float32 at least, like the result ``()``.
    """
    dtype = torch.promote_types(a_s.dtype, torch.float32)
    loss = a_s.new_zeros((), dtype=dtype)
    heads = a_s.shape[1]
    with torch.autocast(a_s.device.type, enabled=False):
        for block in blocks:
            q_s, k_s, q_t, k_t = (dense(x, block, x.dtype) for x in (a_s, b_s, a_t, b_t))
            real = None if block.real is None else block.real.repeat_interleave(heads, 0)[:, None]
            maps = Maps(q_s, k_s, q_t, k_t, real)
            block_loss, *by_map = maps_loss(maps, scale_s, scale_t, gradients is not None)
            loss += block_loss
            for packed, found in zip(gradients or (), by_map, strict=False):
                scatter(packed, found, block)
    for packed in gradients or ():
        packed.div_(num_entries)
    return loss / num_entries


def empty_gradients(x: Tensor, num_layers: int, with_grads: bool) -> Tensor:
    """Room ``(L, T, heads, d)`` for the gradients of x of L layers, of no elements where none are wanted.

    They are float32 at least: in float16 a gradient would vanish before the loss scale reaches it.
    """
    shape = (num_layers, *x.shape) if with_grads else (0,)
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


def in_single(*operands: Tensor) -> list[Tensor]:
    """All in one dtype: float32, or float64 if one of them is."""
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in operands) else torch.float32
    return [x.to(dtype) for x in operands]


def tiles(num_maps: int, n: int) -> Iterator[tuple[slice, slice]]:
    """Cut ``(num_maps, n, n)`` scores into tiles of at most `TILE_ELEMENTS`: several maps, or some rows of one."""
    maps_per_tile = max(1, TILE_ELEMENTS // n**2)
    rows_per_tile = max(1, TILE_ELEMENTS // n)
    for m in range(0, num_maps, maps_per_tile):
        for i in range(0, n, rows_per_tile):
            yield slice(m, m + maps_per_tile), slice(i, i + rows_per_tile)


def _may_be_infinite(*operands: Tensor) -> bool:
    """Whether scores may be -inf, beside which a finite score of an idle key would have all of a softmax."""
    return not all(bool(x.sum().isfinite()) for x in operands)


def _scores(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``scale * a . b`` in one product: ``(maps, rows, d)`` and ``(maps, n, d)`` -> ``(maps, rows, n)``."""
    return torch.baddbmm(a.new_empty(()), a, b.mT, beta=0, alpha=scale)
