"""MaskedLM: a masked language model that is asked about single tokens of packed batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fastdistill.batch import Batch
from fastdistill.models.capture import Taps
from fastdistill.models.encoder import Encoder
from fastdistill.models.pretrained import load_tokenizer
from fastdistill.models.teacher import Live


class MaskedLM:
    """A frozen masked language model with its tokenizer.

    Args:
        path: a Hugging Face folder or Hub id.
        device: where it runs.
        dtype: of its weights.

    Raises:
        ValueError: the checkpoint has no masked-LM head or no mask token.
    """

    def __init__(self, path: str | Path, device: torch.device, dtype: torch.dtype) -> None:
        self.tokenizer = load_tokenizer(path)
        if self.tokenizer.mask_token_id is None:
            raise ValueError(f"the tokenizer of {path} has no mask token: name a masked language model")
        self.live = Live(Encoder.load(path, head="finetuned", kind="masked").to(device), dtype)

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence."""
        return self.live.encoder.max_length

    @property
    def vocab_size(self) -> int:
        return self.live.encoder.vocab_size

    def fingerprint(self) -> str:
        """Changes when a weight or its dtype does."""
        return self.live.fingerprint()

    @torch.no_grad()
    def logits(self, batch: Batch, tokens: Tensor) -> Tensor:
        """What may stand in place of the R `tokens` of a batch: ``(R,) -> (R, V)``; no other token meets the head."""
        device = self.live.device
        logits = self.live(replace(batch.to(device), labelled=tokens.to(device)), Taps(logits=True)).logits
        assert logits is not None, "they are tapped"
        return logits
