"""The description of `normalized_mse` that tests and benchmarks read: one row per layer and sequence."""

from __future__ import annotations

from typing import Any

import torch

from ..spec import ROUNDING, Draw, Shape, Spec
from .op import normalized_mse
from .reference import normalized_mse as reference

_OPERATIONS_PER_ELEMENT = 14  # two norms, two divisions, a difference and the gradient, counted by hand


def _num_elements(shape: Shape) -> int:
    return shape.layers * len(shape.lengths) * shape.hidden_size_t


def _inputs(shape: Shape, draw: Draw) -> dict[str, Any]:
    rows = (shape.layers, len(shape.lengths), shape.hidden_size_t)
    return {"h_s": draw(*rows), "h_t": draw(*rows)}


def _bytes_moved(shape: Shape, dtype: torch.dtype) -> int:
    return 3 * _num_elements(shape) * dtype.itemsize


def _flops(shape: Shape) -> int:
    return _OPERATIONS_PER_ELEMENT * _num_elements(shape)


SPEC = Spec("normalized_mse", normalized_mse, reference, _inputs, ("h_s",), _bytes_moved, _flops, tolerance=ROUNDING)
