"""Candidates: for every word that may be replaced, the words that may stand in its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastdistill.data.packing import Sequences, in_order
from fastdistill.data.vectors import Vectors
from fastdistill.data.words import Word, as_spelt, is_character, replaceable
from fastdistill.models.masked_lm import MaskedLM
from fastdistill.recipe import Augment

MODEL, VECTORS, NONE = 0, 1, 2  # where the candidates of a word come from


@dataclass(frozen=True)
class Place:
    """A word, what may replace it, and where that comes from: MODEL, VECTORS, or NONE where there is nothing."""

    word: Word
    candidates: list[str]
    source: int


@dataclass
class _Masked:
    """The masked variants of many texts, one sequence for each word that is asked about.

    Shapes:
        sequences: V variants.
        masks: ``(V,)`` where the mask lies in each.
        words: what it hides.
    """

    sequences: Sequences
    masks: np.ndarray
    words: list[str]


class Candidates:
    """Finds the candidates of all words of many texts at once.

    A word that is one token of the model's vocabulary is masked, one variant of the text for each, and the variants of
    all texts go through the model in packed batches. Other words have their nearest neighbours among the vectors. A
    candidate is never the word itself, and always a whole word of letters: no special token, mark or part of a word.

    Args:
        model: a masked language model, or None: the vectors serve for all words.
        vectors: word vectors, or None: words that are several tokens keep themselves.
        augment: how many candidates, and what the model reads.
        most_words: words and marks at the beginning of a text that are looked at.

    Raises:
        ValueError: the model cannot read as many tokens as one masked word needs.
    """

    def __init__(self, model: MaskedLM | None, vectors: Vectors | None, augment: Augment, most_words: int) -> None:
        self.model, self.vectors, self.augment, self.most_words = model, vectors, augment, most_words
        if model is not None:
            self.frame = Frame(model, augment)
            self.vocabulary, kinds = _vocabulary(model)
            self.kinds = kinds.to(model.live.device)

    def __call__(self, texts: list[str]) -> list[list[Place]]:
        """The words of every text that may be replaced, each with at most `augment.candidates` others."""
        words = [replaceable(text, self.most_words) for text in texts]
        places = [[Place(word, [], NONE) for word in some] for some in words]
        if self.model is not None and texts:
            tokens = _single_tokens(self.model, texts, words)
            said = iter(self._ask(self._mask(tokens, words)))
            for some, own in zip(places, tokens.at, strict=True):
                for n in np.flatnonzero(own >= 0):
                    some[n] = replace(some[n], candidates=next(said), source=MODEL)
        left = dict.fromkeys(place.word.text for some in places for place in some if place.source == NONE)
        near = self.vectors.nearest(left, self.augment.candidates) if self.vectors is not None else {}
        return [[self._spelt(place, near) for place in some] for some in places]

    def _spelt(self, place: Place, near: dict[str, list[str]]) -> Place:
        word, source = place.word.text, place.source
        found = place.candidates if source == MODEL else near.get(word, [])
        source = NONE if not found else VECTORS if source == NONE else source
        return Place(place.word, [as_spelt(word, candidate) for candidate in found], source)

    def _mask(self, tokens: Tokens, words: list[list[Word]]) -> _Masked:
        """One variant for each word that is a single token, in the order of texts and words."""
        ids, types, lengths, masks = [], [], [], []
        hidden = [
            word.text
            for some, at in zip(words, tokens.at, strict=True)
            for word, n in zip(some, at, strict=True)
            if n >= 0
        ]
        for text, at in zip(tokens.ids, tokens.at, strict=True):
            if (at := at[at >= 0]).size:
                variants, kinds, where = self.frame.variants(text, at)
                ids.append(variants.ravel())
                types.append(np.tile(kinds, len(variants)))
                lengths += [variants.shape[1]] * len(variants)
                masks.append(where)
        offsets = np.cumsum([0, *lengths], dtype=np.int64)
        empty = np.zeros(0, np.int32)
        sequences = Sequences(np.concatenate([empty, *ids]), offsets, np.concatenate([empty, *types]))
        return _Masked(sequences, np.concatenate([empty, *masks]), hidden)

    def _ask(self, masked: _Masked) -> list[list[str]]:
        """What the model would put in place of each mask, likeliest first."""
        assert self.model is not None
        found: list[list[str]] = [[]] * len(masked.words)
        if not masked.words:
            return found
        own_kind = torch.tensor([is_character(word) for word in masked.words]).long()
        for batch in in_order(masked.sequences, self.augment.tokens_per_batch):
            assert batch.indices is not None
            at = batch.cu_seqlens[:-1] + torch.from_numpy(masked.masks[batch.indices])
            logits = self.model.logits(batch, at)
            allowed = self.kinds[own_kind[batch.indices].to(logits.device)]
            for n, likely in zip(batch.indices, self._likeliest(logits.masked_fill(~allowed, -torch.inf)), strict=True):
                word = masked.words[n].casefold()
                found[n] = [w for w in likely if w.casefold() != word][: self.augment.candidates]
        return found

    def _likeliest(self, logits: Tensor) -> Iterator[list[str]]:
        """A few more than are wanted, for the word itself, in several spellings, is among them."""
        best, ids = logits.topk(min(self.augment.candidates + 3, logits.shape[1]))
        for likely, real in zip(ids.tolist(), (best > -torch.inf).tolist(), strict=True):
            yield [self.vocabulary[token] for token, is_real in zip(likely, real, strict=True) if is_real]


class Frame:
    """The special tokens around a masked text, and around the text as it was behind it.

    Raises:
        ValueError: `augment.max_length`, or the model, has no room for a token beside them.
    """

    def __init__(self, model: MaskedLM, augment: Augment) -> None:
        self.mask = model.tokenizer.mask_token_id
        self.texts = 2 if augment.show_original else 1
        example = model.tokenizer(*["a"] * self.texts, return_special_tokens_mask=True).encodings[0]
        own = np.array(example.special_tokens_mask) == 0  # runs of the text's own tokens
        ends = np.flatnonzero(np.diff(np.concatenate([[False], own, [False]]).astype(np.int8)))
        self.special = np.split(np.array(example.ids, np.int32), ends)
        self.types = np.split(np.array(example.type_ids, np.int32), ends)
        around = int((~own).sum())
        longest = min(augment.max_length, model.max_length)
        self.room = (longest - around) // self.texts
        if self.room < 1:
            raise ValueError(
                f"task.augment: the model reads {longest} tokens at once, of which {around} are special: no word has "
                "room beside them; raise max_length"
            )

    def variants(self, text: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each of the tokens `at` the text, or what has room of it around that token, with this token masked.

        Shapes:
            text: ``(n,)`` token ids, without special tokens.
            at: ``(m,)`` places in it.
            result: ids ``(m, L)``, token types ``(L,)``, places of the masks ``(m,)``.
        """
        size = min(len(text), self.room)
        starts = np.clip(at - self.room // 2, 0, len(text) - size)
        seen = text[starts[:, None] + np.arange(size)]
        masked = seen.copy()
        masked[np.arange(len(at)), at - starts] = self.mask
        # special tokens and texts take turns
        parts = [
            masked if n == 1 else seen if n % 2 else np.tile(ids, (len(at), 1)) for n, ids in enumerate(self.special)
        ]
        types = [np.repeat(kinds[:1], size) if n % 2 else kinds for n, kinds in enumerate(self.types)]
        return np.hstack(parts), np.concatenate(types), at - starts + len(self.special[0])


@dataclass
class Tokens:
    """Texts as a model reads them.

    Shapes:
        ids: for each text ``(n,)``, without special tokens.
        at: for each text, of each of its words, the one token that it is, or -1 where it is several.
    """

    ids: list[np.ndarray]
    at: list[np.ndarray]


def _single_tokens(model: MaskedLM, texts: list[str], words: list[list[Word]]) -> Tokens:
    ids, at = [], []
    encodings = model.tokenizer(texts, add_special_tokens=False, truncation=False).encodings
    for text, some, encoding in zip(texts, words, encodings, strict=True):
        spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        first = np.searchsorted(spans[:, 1], [word.start for word in some], side="right")
        last = np.searchsorted(spans[:, 0], [word.end for word in some], side="left")
        alone = [
            n if behind == n + 1 and text[slice(*spans[n])].strip() == word.text else -1
            for n, behind, word in zip(first.tolist(), last.tolist(), some, strict=True)
        ]
        ids.append(np.array(encoding.ids, np.int32))
        at.append(np.array(alone, np.int64))
    return Tokens(ids, at)


def _vocabulary(model: MaskedLM) -> tuple[list[str], Tensor]:
    """The text of every token, and ``(2, V)`` which are whole words, and which are Chinese characters.

    A whole word is one that, by itself, is encoded as that token.
    """
    tokenizer, size = model.tokenizer, model.vocab_size
    known = np.array(sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)))
    known = known[known < size]
    texts = [""] * size
    for token, text in zip(known, tokenizer.batch_decode(known[:, None].tolist()), strict=True):
        texts[token] = text.strip()
    letters = [token for token in known if texts[token].isalpha()]
    encoded = tokenizer([f" {texts[token]}" for token in letters], add_special_tokens=False)["input_ids"]
    kinds = torch.zeros(2, size, dtype=torch.bool)
    for token, ids in zip(letters, encoded, strict=True):
        if ids == [token]:
            kinds[int(is_character(texts[token])), token] = True
    return texts, kinds
