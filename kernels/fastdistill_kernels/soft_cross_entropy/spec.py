"""The description of `soft_cross_entropy` that tests and benchmarks read: one row per sequence."""

from __future__ import annotations

from typing import Any

import torch

from ..spec import Draw, Shape, Spec
from .op import soft_cross_entropy
from .reference import soft_cross_entropy as reference

_OPERATIONS_PER_LOGIT = 12  # three softmaxes and their gradient, counted by hand: an order of size, not a measurement


def _inputs(shape: Shape, draw: Draw) -> dict[str, Any]:
    num_rows = len(shape.lengths)
    labels = torch.randint(shape.classes, (num_rows,), generator=draw.generator)
    return {
        "student_logits": draw(num_rows, shape.classes),
        "teacher_logits": draw(num_rows, shape.classes),
        "labels": labels.to(draw.device),
        "temperature": 2.0,
    }


def _bytes_moved(shape: Shape, dtype: torch.dtype) -> int:
    return 3 * len(shape.lengths) * shape.classes * dtype.itemsize


def _flops(shape: Shape) -> int:
    return _OPERATIONS_PER_LOGIT * len(shape.lengths) * shape.classes


SPEC = Spec(
    "soft_cross_entropy",
    soft_cross_entropy,
    reference,
    _inputs,
    ("student_logits",),
    _bytes_moved,
    _flops,
)
