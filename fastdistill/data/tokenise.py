"""Text to token ids: documents cut into pieces, examples truncated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import numpy as np
from tokenizers import Encoding
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
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    pairs: list[str] | None,
    max_length: int,
    see: Callable[[Encoding], None] = lambda encoding: None,
) -> Sequences:
    """One sequence per example, of at most `max_length` tokens; `counts`: examples, tokens, truncated.

    `see` is shown the encoding of every example, in order.
    """
    ids, types, lengths, truncated = [], [], [], 0
    for start in range(0, len(texts), EXAMPLES_AT_ONCE):
        now = slice(start, start + EXAMPLES_AT_ONCE)
        second = pairs[now] if pairs is not None else None
        encodings = tokenizer(texts[now], second, truncation=True, max_length=max_length).encodings
        ids.append(np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32))
        types.append(np.fromiter(chain.from_iterable(e.type_ids for e in encodings), np.int8))
        lengths += [len(e) for e in encodings]
        truncated += sum(bool(e.overflowing) for e in encodings)
        for encoding in encodings:
            see(encoding)
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    return Sequences(
        input_ids=np.concatenate(ids),
        offsets=offsets,
        token_type_ids=np.concatenate(types) if "token_type_ids" in tokenizer.model_input_names else None,
        counts={"examples": len(texts), "tokens": int(offsets[-1]), "truncated": truncated},
    )


def first_pieces(
    tokenizer: PreTrainedTokenizerBase, words: list[list[str]], max_length: int
) -> tuple[Sequences, np.ndarray, list[np.ndarray]]:
    """One sequence per list of words, the places of the first token of every word, and which words these are.

    Words are joined by spaces, so that every tokenizer reads them as text. A word that `max_length` cuts off, or of
    which the tokenizer keeps nothing, has no token and is counted: `counts` has examples, tokens, truncated, words, and
    lost words.

    Returns:
        The sequences, ``(R,)`` int64 places among their tokens, and for every row the numbers of its words there.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []

    def see(encoding: Encoding) -> None:
        behind = np.cumsum([len(word) + 1 for word in words[len(found)]])  # the space that follows each word
        spans = np.array(encoding.offsets).reshape(-1, 2)
        tokens = np.flatnonzero((spans[:, 1] > spans[:, 0]) & ~np.array(encoding.special_tokens_mask, bool))
        # a token's last character tells its word: some tokenizers count the space before a word to the word
        numbers, first = np.unique(np.searchsorted(behind, spans[tokens, 1], side="left"), return_index=True)
        found.append((numbers, tokens[first]))

    sequences = truncate_examples(tokenizer, [" ".join(own) for own in words], None, max_length, see)
    places = [start + own for start, (_, own) in zip(sequences.offsets, found, strict=False)]
    total, kept = sum(map(len, words)), sum(map(len, places))
    counts = {**sequences.counts, "words": total, "lost words": total - kept}
    return replace(sequences, counts=counts), np.concatenate(places), [numbers for numbers, _ in found]
