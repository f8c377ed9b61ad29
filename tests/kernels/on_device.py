"""Where the ops are tested, and how tensors are made there."""

from __future__ import annotations

from functools import partial

import torch

from fastdistill_kernels.device import INTERPRETED

DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
KERNELS_RUN = INTERPRETED or DEVICE == "cuda"

arange = partial(torch.arange, device=DEVICE)
empty = partial(torch.empty, device=DEVICE)
eye = partial(torch.eye, device=DEVICE)
full = partial(torch.full, device=DEVICE)
ones = partial(torch.ones, device=DEVICE)
rand = partial(torch.rand, device=DEVICE)
randint = partial(torch.randint, device=DEVICE)
randn = partial(torch.randn, device=DEVICE)
tensor = partial(torch.tensor, device=DEVICE)
zeros = partial(torch.zeros, device=DEVICE)
