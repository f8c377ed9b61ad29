"""MaskedLM: a masked language model that is asked about single tokens of packed batches."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastdistill.batch import Batch
from fastdistill.models.capture import Taps
from fastdistill.models.encoder import Encoder
from fastdistill.models.families import VOCABULARY_HEADS, predict_tokens
from fastdistill.models.pretrained import load_masked_lm, load_tokenizer
from fastdistill.models.teacher import Live


class MaskedLM:
    """A frozen masked language model with its tokenizer.

    Args:
        path: a Hugging Face folder or Hub id.
        device: where it runs.
        dtype: of its weights.

    Raises:
        ValueError: the checkpoint has no masked-LM head or no mask token, or its family's head is not known.
    """

    def __init__(self, path: str | Path, device: torch.device, dtype: torch.dtype) -> None:
        self.tokenizer = load_tokenizer(path)
        if self.tokenizer.mask_token_id is None:
            raise ValueError(f"the tokenizer of {path} has no mask token: name a masked language model")
        model = load_masked_lm(path)
        if model.config.model_type not in VOCABULARY_HEADS:
            raise ValueError(
                f"{path} is of the family {model.config.model_type}; known are the masked-LM heads of "
                f"{', '.join(VOCABULARY_HEADS)}"
            )
        self.live = Live(Encoder(model).to(device), dtype)

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
        device, last = self.live.device, self.live.encoder.num_hidden_layers
        hidden = self.live(batch.to(device), Taps(hidden=frozenset({last}))).hidden[last]
        return predict_tokens(self.live.encoder.model, hidden[tokens.to(device)])
