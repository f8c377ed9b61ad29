"""Word vectors, as GloVe publishes them: text, one word and its numbers in a line."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastdistill.data.source import COMPRESSIONS
from fastdistill.data.words import is_character

MOST_WORDS = 100_000  # as published: files begin with the most frequent words, and end with rare and misspelt ones
WORDS_AT_ONCE = 256


class Vectors:
    """Words and their directions ``(N, D)`` float32, of which each has length 1.

    Args:
        words: N words, each once.
        numbers: their vectors; one of zeros has no direction, and is near to nothing.
    """

    def __init__(self, words: list[str], numbers: np.ndarray) -> None:
        self.words = words
        self.row = {word: row for row, word in enumerate(words)}
        self.directions = torch.nn.functional.normalize(torch.from_numpy(numbers), dim=1)
        self.is_character = torch.tensor([is_character(word) for word in words])

    def nearest(self, words: Iterable[str], count: int) -> dict[str, list[str]]:
        """Of each of `words` that is here, as it is or in lower case, the `count` nearest others by cosine.

        Chinese characters are near to Chinese characters alone, and other words to other words.
        """
        rows = {word: row for word in words if (row := self._find(word)) is not None}
        found = {}
        for start in range(0, len(rows), WORDS_AT_ONCE):
            some = list(rows.items())[start : start + WORDS_AT_ONCE]
            for (word, _), near in zip(some, self._nearest_rows([row for _, row in some], count), strict=True):
                others = [self.words[row] for row in near]
                found[word] = [other for other in others if other.casefold() != word.casefold()][:count]
        return found

    def _find(self, word: str) -> int | None:
        return self.row.get(word, self.row.get(word.lower()))

    def _nearest_rows(self, rows: list[int], count: int) -> Iterator[list[int]]:
        """A few more than `count`, for the word itself, in several spellings, is among them."""
        at = torch.tensor(rows)
        unlike = self.is_character[at][:, None] != self.is_character
        cosines: Tensor = (self.directions[at] @ self.directions.T).masked_fill(unlike, -torch.inf)
        best, near = cosines.topk(min(count + 3, len(self.words)))
        for enough, row in zip((best > -torch.inf).tolist(), near.tolist(), strict=True):
            yield [other for other, real in zip(row, enough, strict=True) if real]


def read_vectors(path: Path) -> Vectors:
    """Of the first MOST_WORDS words of a GloVe text file those that are letters alone.

    A first line with the file's sizes, as word2vec writes it, is passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, not UTF-8, a line is not a word and its numbers, or no word is left.
    """
    words: dict[str, None] = {}
    numbers: list[np.ndarray] = []
    try:
        with COMPRESSIONS.get(path.suffix, open)(path, "rt", encoding="utf-8") as stream:
            for word, vector in islice(_lines(path, stream), MOST_WORDS):
                if word.isalpha() and word not in words:
                    words[word] = None
                    numbers.append(vector)
    except FileNotFoundError:
        raise FileNotFoundError(f"task.augment.vectors: there is no file {path}") from None
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"the vectors {path} cannot be read ({error}); repair or remove them") from error
    if not words:
        raise ValueError(f"the vectors {path} hold no word of letters alone: give a GloVe text file")
    return Vectors(list(words), np.stack(numbers))


def _lines(path: Path, stream: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    size = 0
    for number, line in enumerate(stream, start=1):
        fields = line.rstrip().split(" ")
        if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
            continue
        size = size or len(fields) - 1
        try:
            vector = np.array(fields[-size:], np.float32)  # some "words" of GloVe hold spaces
        except ValueError:
            vector = np.full(1, np.nan)
        if not 0 < size < len(fields) or not np.isfinite(vector).all():
            raise ValueError(
                f"the vectors {path}, line {number}: {line.strip():.60} is not a word and {max(size, 1)} numbers; "
                "give a GloVe text file"
            )
        yield " ".join(fields[:-size]), vector
