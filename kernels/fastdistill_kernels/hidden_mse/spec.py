"""The description of `hidden_mse` that tests and benchmarks read."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..spec import Draw, Shape, Spec
from .op import hidden_mse
from .reference import hidden_mse as reference


def _inputs(shape: Shape, draw: Draw) -> dict[str, Any]:
    size_s, size_t = shape.hidden_size_s, shape.hidden_size_t
    h_s, h_t = (tuple(draw(shape.tokens, d) for _ in range(shape.layers)) for d in (size_s, size_t))
    return {
        "h_s": h_s if shape.layers > 1 else h_s[0],
        "h_t": h_t if shape.layers > 1 else h_t[0],
        "weight": draw(size_t, size_s) * size_s**-0.5,
        "bias": draw(size_t),
    }


def _bytes_moved(shape: Shape, dtype: torch.dtype) -> int:
    states = shape.layers * shape.tokens * (2 * shape.hidden_size_s + shape.hidden_size_t)
    projection = 2 * shape.hidden_size_t * (shape.hidden_size_s + 1)
    return (states + projection) * dtype.itemsize


def _flops(shape: Shape) -> int:
    return 6 * shape.layers * shape.tokens * shape.hidden_size_s * shape.hidden_size_t


SPEC = Spec("hidden_mse", hidden_mse, reference, _inputs, ("h_s", "weight", "bias"), _bytes_moved, _flops)
NORMALIZED, COSINE = (
    replace(
        SPEC, name=f"hidden_{name}", op=partial(hidden_mse, distance=name), reference=partial(reference, distance=name)
    )
    for name in ("normalized", "cosine")
)
