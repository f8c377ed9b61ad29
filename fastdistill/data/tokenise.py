"""Text to token ids: documents cut into pieces, examples truncated."""

from __future__ import annotations

from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from fastdistill.data.packing import Sequences

EXAMPLES_AT_ONCE = 10_000


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int, *, pair: bool) -> None:
    """Refuse what cannot be tokenised, before anything is read.

    Raises:
        ValueError: the tokenizer is not a fast one, or `max_length` leaves no room for text.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer; use a model whose tokenizer has a tokenizer.json"
        )
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    if max_length <= special:
        raise ValueError(
            f"max_length={max_length} leaves no room for text beside {special} special tokens; "
            f"set it to {special + 1} or more"
        )


def cut_documents(tokenizer: PreTrainedTokenizerBase, documents: list[str], max_length: int) -> list[list[int]]:
    """Token ids of every document, in pieces of at most `max_length`, each with its special tokens; none is lost."""
    if not documents:
        return []
    encoded = tokenizer(
        documents,
        truncation=True,
        max_length=max_length,
        return_overflowing_tokens=True,
        return_token_type_ids=False,
        return_attention_mask=False,
    )
    return encoded["input_ids"]


def truncate_examples(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None, max_length: int, labels: np.ndarray
) -> Sequences:
    """One sequence per example, of at most `max_length` tokens; `counts`: examples, tokens, truncated."""
    ids, types, lengths, truncated = [], [], [], 0
    for start in range(0, len(texts), EXAMPLES_AT_ONCE):
        now = slice(start, start + EXAMPLES_AT_ONCE)
        second = pairs[now] if pairs is not None else None
        encodings = tokenizer(texts[now], second, truncation=True, max_length=max_length).encodings
        ids.append(np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32))
        types.append(np.fromiter(chain.from_iterable(e.type_ids for e in encodings), np.int8))
        lengths += [len(e) for e in encodings]
        truncated += sum(bool(e.overflowing) for e in encodings)
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    return Sequences(
        input_ids=np.concatenate(ids),
        offsets=offsets,
        token_type_ids=np.concatenate(types) if "token_type_ids" in tokenizer.model_input_names else None,
        labels=labels,
        counts={"examples": len(texts), "tokens": int(offsets[-1]), "truncated": truncated},
    )
