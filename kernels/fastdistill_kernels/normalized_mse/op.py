"""`normalized_mse`: the public function."""

from __future__ import annotations

from torch import Tensor

from .reference import normalized_mse as reference


def normalized_mse(h_s: Tensor, h_t: Tensor) -> Tensor:
    """Squared distance of L2-normalised states: ``mean over rows of || h_s / |h_s| - h_t / |h_t| ||^2``.

    Args:
        h_s: student states, ``(..., D)``, computed in float32 at least.
        h_t: teacher states, ``(..., D)``; a constant, it never receives gradients.

    Returns:
        ``()`` float32 (float64 for float64 states), between 0 and 4; 0 for no rows.

    Raises:
        ValueError: states of different shapes.

    Source: Patient-KD (arXiv 1908.09355), section 3.2.
    """
    if h_s.shape != h_t.shape or h_s.dim() == 0:
        raise ValueError(
            f"states are {tuple(h_s.shape)} and {tuple(h_t.shape)}: directions can be compared in one space only; "
            "project the student to the teacher's size first"
        )
    return reference(h_s, h_t)  # a few [CLS] rows: nothing to fuse
