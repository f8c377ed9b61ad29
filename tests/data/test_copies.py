"""Copies: as many words as the probability says, drawn alike, and pairs side by side or as published."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fastdistill.data.candidates import MODEL, NONE, VECTORS, Place
from fastdistill.data.copies import copies_of, draw
from fastdistill.data.words import Word


def place(text: str, word: str, candidates: list[str], source: int = MODEL) -> Place:
    start = text.index(word)
    return Place(Word(word, start, start + len(word)), candidates, source)


TEXT = "the good film, by far!"
PLACES = [
    place(TEXT, "good", ["fine", "great", "dull"]),
    place(TEXT, "film", ["movie"], VECTORS),
    place(TEXT, "far", [], NONE),
]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("probability", [0.1, 0.4, 1.0])
def test_words_are_replaced_with_the_probability_by_any_candidate_alike(probability: float) -> None:
    copies = draw(TEXT, PLACES, 20_000, probability, rng())
    found = Counter(copy.texts[0].split()[1] for copy in copies)
    for word in ("fine", "great", "dull"):
        assert found[word] / 20_000 == pytest.approx(probability / 3, abs=0.015)
    words = np.array([copy.words for copy in copies]).mean(0)
    assert words == pytest.approx([probability, probability, 3 - 2 * probability], abs=0.015)
    assert sum(found.values()) == 20_000
    assert set(found) <= {"good", "fine", "great", "dull"}


def test_what_is_not_replaced_stays_as_it_is() -> None:
    texts = {copy.texts[0] for copy in draw(TEXT, PLACES, 100, 0.5, rng())}
    assert texts == {f"the {a} {b}, by far!" for a in ("good", "fine", "great", "dull") for b in ("film", "movie")}


def test_words_of_a_copy_are_counted_by_what_became_of_them() -> None:
    for copy in draw(TEXT, PLACES, 100, 0.5, rng()):
        model, vectors, kept = copy.words
        assert model == ("good" not in copy.texts[0])
        assert vectors == ("movie" in copy.texts[0])
        assert model + vectors + kept == 3


def test_text_without_words_is_copied_as_it_is() -> None:
    assert [copy.texts for copy in draw("...", [], 2, 0.5, rng())] == [("...",)] * 2


OTHER = "bad plot"
PAIR = [PLACES, [place(OTHER, "bad", ["poor", "dull"])]]


def test_pairs_are_augmented_side_by_side() -> None:
    pairs = copies_of((TEXT, OTHER), PAIR, 50, 0.5, rng())
    generator = rng()
    firsts, seconds = draw(TEXT, PLACES, 50, 0.5, generator), draw(OTHER, PAIR[1], 50, 0.5, generator)
    assert [pair.texts for pair in pairs] == [a.texts + b.texts for a, b in zip(firsts, seconds, strict=True)]
    assert sum(pair.words[MODEL] for pair in pairs) == sum(copy.words[MODEL] for copy in firsts + seconds)
    assert len({pair.texts[0] for pair in pairs}) > 3
    assert len({pair.texts[1] for pair in pairs}) == 3


def test_paper_pairs_has_the_last_new_copy_of_the_first_text_beside_all_of_the_second() -> None:
    pairs = [pair.texts for pair in copies_of((TEXT, OTHER), PAIR, 51, 0.5, rng(), paper_pairs=True)]
    generator = rng()
    firsts = [copy.texts[0] for copy in draw(TEXT, PLACES, 51, 0.5, generator)]
    seconds = [copy.texts[0] for copy in draw(OTHER, PAIR[1], 51, 0.5, generator)]
    last = list(dict.fromkeys([TEXT, *firsts]))[-1]
    assert last != firsts[-1], "choose another seed: this one does not tell new copies from others"
    assert pairs == [(first, OTHER) for first in firsts] + [(last, second) for second in (OTHER, *seconds)]
