"""Relation heads: one model's heads cut anew, so that models of different head counts can be compared."""

from __future__ import annotations

import math

from torch import Tensor

from ..checks import check_whole


def split_heads(x: Tensor, num_relation_heads: int | None) -> Tensor:
    """``(T, heads, d)`` -> ``(T, num_relation_heads, heads * d / num_relation_heads)``; as it is if None."""
    if num_relation_heads is None:
        return x
    check_whole(num_relation_heads=num_relation_heads)
    num_tokens, *heads = x.shape
    width = math.prod(heads)
    if num_relation_heads < 1 or width % num_relation_heads != 0:
        raise ValueError(
            f"num_relation_heads={num_relation_heads} does not divide the hidden size {width}: "
            "choose a common divisor of both models' hidden sizes"
        )
    return x.reshape(num_tokens, num_relation_heads, width // num_relation_heads)
