"""The definition of `normalized_mse`."""

from __future__ import annotations

import torch
from torch import Tensor


def normalized_mse(h_s: Tensor, h_t: Tensor) -> Tensor:
    """Squared distance of L2-normalised states, mean over rows.

    ``L = 1 / N * sum over rows of || h_s / |h_s| - h_t / |h_t| ||^2``; a row of zeros stays zero.

    Shapes: h_s, h_t ``(..., D)``, N rows; result ``()``, float32 (float64 for float64), 0 if N is 0.

    Source: Patient-KD (arXiv 1908.09355), section 3.2, rows being [CLS] states of the layers 1 to k - 1.
    """
    dtype = torch.promote_types(h_s.dtype, torch.float32)
    h_s, h_t = h_s.to(dtype), h_t.detach().to(dtype)
    directions_s, directions_t = (h / h.norm(dim=-1, keepdim=True).clamp(min=1e-12) for h in (h_s, h_t))
    return (directions_s - directions_t).square().sum() / max(1, h_s.shape[:-1].numel())
