"""Neighbouring sequences of like length as one dense block, as matrix products on a CPU want them.

A block per sequence would be hundreds of small operators, one block for all would be mostly padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WASTE = 8192  # idle places of the maps of a block: about what one more block would cost
MULTIPLE = 8  # of the length of a block: oneDNN compiles products of every shape anew, and keeps a thousand of them


@dataclass(frozen=True)
class Block:
    """Neighbouring sequences of a packed batch, seen as one dense block.

    Args:
        tokens: where they lie.
        count, length: their number and the length that all have here, the longest or more.
        real: ``(count, length)`` bool, whether a place holds a token, where lengths differ; the others are idle.
        places: ``(tokens,)`` the place of every token, where lengths differ.
    """

    tokens: slice
    count: int
    length: int
    real: Tensor | None = None
    places: Tensor | None = None

    @classmethod
    def of(cls, start: int, lengths: list[int], length: int, device: torch.device | None) -> Block:
        """The sequences of `lengths` that lie one after the other from token `start` on."""
        tokens = slice(start, start + sum(lengths))
        if len(lengths) * length == sum(lengths):
            return cls(tokens, len(lengths), length)
        real = torch.arange(length) < torch.tensor(lengths)[:, None]
        places = real.flatten().nonzero()[:, 0]
        return cls(tokens, len(lengths), length, real.to(device), places.to(device))


def into_blocks(
    lengths: list[int], device: torch.device | None = None, *, waste: int = WASTE, multiple: int = MULTIPLE
) -> list[Block]:
    """Sequences of these lengths, end to end, in blocks whose length is a multiple of `multiple`.

    Blocks of more than one sequence have at most `waste` idle places. Sequences without tokens are in none. `device` is
    that of what is to be cut, a CPU if it is None.
    """
    found: list[Block] = []
    group: list[int] = []
    start = length = pairs = 0
    for n in filter(None, lengths):
        together = max(length, -(-n // multiple) * multiple)
        if group and (len(group) + 1) * together**2 - pairs - n**2 > waste:
            found.append(Block.of(start, group, length, device))
            start += sum(group)
            group, pairs, together = [], 0, -(-n // multiple) * multiple
        group.append(n)
        length, pairs = together, pairs + n**2
    return [*found, Block.of(start, group, length, device)] if group else found


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
