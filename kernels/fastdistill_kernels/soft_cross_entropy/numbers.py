"""The numbers of `soft_cross_entropy`, which its two programs, Triton's and plain PyTorch's, are made with."""

from __future__ import annotations

from dataclasses import dataclass

MASKED = -1e30  # logits below are taken for it, -inf too: no softmax sees it, and it stays finite when it is scaled


@dataclass(frozen=True)
class Numbers:
    """Of logits ``(N, width)`` the first `classes` columns count, and rows whose label is not `ignore_index`.

    `factor` multiplies the soft term; gradients are expected to arrive as `expected_soft` and `expected_hard`.
    """

    classes: int
    ignore_index: int
    temperature_s: float
    temperature_t: float
    factor: float
    expected_soft: float
    expected_hard: float
