"""Where an op runs."""

from __future__ import annotations

import os

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "y", "yes", "on", "true")  # as Triton reads it
HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


def runs_in_triton(x: Tensor) -> bool:
    """Whether a Triton kernel takes `x`: on a GPU, or anywhere if Triton interprets its kernels; float64 never."""
    return (x.is_cuda or (INTERPRETED and not x.is_meta)) and x.dtype in HALF_AND_SINGLE
