"""Live: a frozen teacher that runs beside the student."""

from __future__ import annotations

import torch
from torch import nn

from fastdistill.batch import Batch
from fastdistill.models.capture import Captured, Taps
from fastdistill.models.encoder import Encoder


class Live(nn.Module):
    """An encoder that only teaches: always in eval mode, without gradients, its parameters frozen in place.

    Args:
        encoder: the teacher; it is changed.
        dtype: of its matrices, cast here once where autocast would do it for every batch.
    """

    def __init__(self, encoder: Encoder, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        for module in encoder.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)
        self.eval()

    def train(self, mode: bool = True) -> Live:
        """Stays in eval mode whatever is asked: a teacher with dropout teaches noise."""
        return super().train(False)

    # not inference_mode: what the teacher returns is saved for the student's backward pass
    @torch.no_grad()
    def forward(self, batch: Batch, taps: Taps) -> Captured:
        """What the teacher knows of the batch; see `Encoder.forward`."""
        return self.encoder(batch, taps)
