"""Masked language modelling: which tokens of a batch are to be predicted, and what stands in their place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from fastdistill.batch import Batch

SHARE = 0.15  # of the tokens is to be predicted
MASKED, RANDOM = 0.8, 0.1  # of those; the others stay as they are


@dataclass(frozen=True, eq=False)
class Masking:
    """Hides tokens as BERT does (arXiv 1810.04805, section 3.1): of the tokens that are not special 15 %, at least one,
    are to be predicted; 80 % of these become [MASK], 10 % a random token, and 10 % stay.

    Args:
        mask_token_id: of [MASK].
        ordinary: ``(V,)`` bool, the ids that may be hidden, or stand in for others.
    """

    mask_token_id: int
    ordinary: np.ndarray

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Masking:
        """With the mask of a tokenizer.

        Raises:
            ValueError: it has none.
        """
        if tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer has no mask token: masked text needs a teacher that was trained with one")
        ordinary = np.zeros(max(tokenizer.get_vocab().values()) + 1, bool)
        ordinary[list(tokenizer.get_vocab().values())] = True
        ordinary[tokenizer.all_special_ids] = False
        return cls(tokenizer.mask_token_id, ordinary)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with tokens hidden; its seed alone decides which."""
        rng = np.random.default_rng(batch.seed)
        ids = batch.input_ids.numpy().copy()
        candidates = np.flatnonzero(self.ordinary[ids])
        count = min(len(candidates), max(1, round(SHARE * len(candidates))))
        chosen = np.sort(rng.choice(candidates, count, replace=False))
        hidden, fate = ids[chosen], rng.random(count)
        stand_ins = rng.choice(np.flatnonzero(self.ordinary), count)
        ids[chosen] = np.select(
            [fate < MASKED, fate < MASKED + RANDOM], [np.full(count, self.mask_token_id), stand_ins], hidden
        )
        labelled, token_labels = torch.from_numpy(chosen), torch.from_numpy(hidden)
        return replace(
            batch, input_ids=torch.from_numpy(ids), labels=None, labelled=labelled, token_labels=token_labels
        )
