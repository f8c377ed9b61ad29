"""Neighbouring sequences of like length as one dense block, as matrix products on a CPU want them.

A block per sequence would be hundreds of small operators, one block for all would be mostly padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WASTE = 8192  # idle places of the maps of a block: about what one more block would cost


@dataclass(frozen=True)
class Block:
    """Neighbouring sequences of a packed batch, seen as one dense block.

    Args:
        tokens: where they lie.
        count, length: their number and the longest length.
        real: ``(count, length)`` bool, whether a place holds a token, where lengths differ; the others are idle.
        places: ``(tokens,)`` the place of every token, where lengths differ.
    """

    tokens: slice
    count: int
    length: int
    real: Tensor | None = None
    places: Tensor | None = None

    @classmethod
    def of(cls, start: int, lengths: list[int]) -> Block:
        """The sequences of `lengths` that lie one after the other from token `start` on."""
        count, longest, total = len(lengths), max(lengths), sum(lengths)
        tokens = slice(start, start + total)
        if count * longest == total:
            return cls(tokens, count, longest)
        real = torch.arange(longest) < torch.tensor(lengths)[:, None]
        return cls(tokens, count, longest, real, real.flatten().nonzero()[:, 0])


def into_blocks(lengths: list[int], waste: int = WASTE) -> list[Block]:
    """Sequences of these lengths, end to end, in blocks of at most `waste` idle places; of equal lengths if that is 0.

    Sequences without tokens are in none.
    """
    found: list[Block] = []
    group: list[int] = []
    start = longest = places = 0
    for length in filter(None, lengths):
        longest = max(longest, length)
        if (len(group) + 1) * longest**2 - places - length**2 > waste:
            found.append(Block.of(start, group))
            start += sum(group)
            group, longest, places = [], length, 0
        group.append(length)
        places += length**2
    return [*found, Block.of(start, group)] if group else found


def dense(x: Tensor, block: Block, dtype: torch.dtype) -> Tensor:
    """The sequences of a block out of ``(T, H, d)``, as ``(count * H, length, d)``, contiguous, idle places 0."""
    x = x[block.tokens]
    if block.places is not None:
        x = x.new_zeros(block.count * block.length, *x.shape[1:]).index_copy_(0, block.places, x)
    to = x.new_empty((block.count, x.shape[1], block.length, x.shape[2]), dtype=dtype)
    to.copy_(x.unflatten(0, (block.count, -1)).transpose(1, 2))
    return to.flatten(0, 1)


def scatter(to: Tensor, x: Tensor, block: Block) -> None:
    """What `dense` did, back into ``(T, H, d)``."""
    x = x.to(to.dtype).unflatten(0, (block.count, -1)).transpose(1, 2)
    if block.places is None:
        to[block.tokens].unflatten(0, (block.count, -1)).copy_(x)
    else:
        torch.index_select(x.flatten(0, 1), 0, block.places, out=to[block.tokens])
