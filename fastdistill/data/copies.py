"""Copies of a text, or of both texts of a pair, in which words are replaced at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastdistill.data.candidates import NONE, Place


@dataclass(frozen=True)
class Copy:
    """A copy of a row's texts; how many of its words are from MODEL, how many from VECTORS, how many (NONE) stayed."""

    texts: tuple[str, ...]
    words: tuple[int, int, int]

    def __add__(self, other: Copy) -> Copy:
        """Both copies side by side, as a pair."""
        first, second = self.words, other.words
        return Copy(self.texts + other.texts, (first[0] + second[0], first[1] + second[1], first[2] + second[2]))


def copies_of(
    texts: tuple[str, ...],
    places: list[list[Place]],
    count: int,
    probability: float,
    rng: np.random.Generator,
    *,
    paper_pairs: bool = False,
) -> list[Copy]:
    """Copies of a row, those among them that say the same.

    Args:
        texts: one text, or a pair.
        places: of each of them the words that may be replaced.
        count: copies drawn of each text.
        probability: of each word to be replaced, by any of its candidates alike.
        rng: of the draws.
        paper_pairs: first the copies of the first text beside the second as it is, then the last new copy of the first
            beside the second and its copies, as the published program pairs them. Otherwise copy i is of both texts.
    """
    drawn = [draw(text, some, count, probability, rng) for text, some in zip(texts, places, strict=True)]
    if len(drawn) == 1:
        return drawn[0]
    if not paper_pairs:
        return [first + second for first, second in zip(*drawn, strict=True)]
    first, second = (Copy((text,), (0, 0, len(some))) for text, some in zip(texts, places, strict=True))
    *_, last = {copy.texts: copy for copy in (first, *drawn[0])}.values()
    return [copy + second for copy in drawn[0]] + [last + copy for copy in (second, *drawn[1])]


def draw(text: str, places: list[Place], count: int, probability: float, rng: np.random.Generator) -> list[Copy]:
    """Copies of one text."""
    copies = []
    for lots, choices in rng.random((count, 2, len(places))):
        parts, words, end = [], [0, 0, 0], 0
        for place, lot, choice in zip(places, lots, choices, strict=True):
            replaced = lot < probability and place.source != NONE
            words[place.source if replaced else NONE] += 1
            if replaced:
                parts += [text[end : place.word.start], place.candidates[int(choice * len(place.candidates))]]
                end = place.word.end
        copies.append(Copy(("".join([*parts, text[end:]]),), (words[0], words[1], words[2])))
    return copies
