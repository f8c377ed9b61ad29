"""Words: cut as BERT cuts them, and only those that may be replaced."""

from __future__ import annotations

import pytest

from fastdistill.data.words import as_spelt, is_character, replaceable


def words(sentence: str, most: int = 100) -> list[str]:
    found = replaceable(sentence, most)
    assert all(sentence[word.start : word.end] == word.text for word in found)
    return [word.text for word in found]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("The film, though slow, pleased.", ["film", "slow", "pleased"]),
        ("It wasn't good; they'd NOT say", ["good", "say"]),
        ("rated 4.5 by b2b users in 2006", ["rated", "users"]),
        ("well-made  \tcafé", ["well", "made", "café"]),
        ("这部电影很好看, 不坏!", ["部", "电", "影", "好", "看", "坏"]),
        ("a 好film", ["好", "film"]),
        ("... 42 !", []),
        ("", []),
    ],
)
def test_words_are_letters_alone_and_no_stop_words(sentence: str, expected: list[str]) -> None:
    assert words(sentence) == expected


def test_only_the_first_words_and_marks_are_looked_at() -> None:
    assert words("good , film was bad", most=3) == ["good", "film"]


def test_characters() -> None:
    assert [word for word in ("好", "好看", "a", "。", "") if is_character(word)] == ["好"]


@pytest.mark.parametrize(
    ("word", "candidate", "expected"),
    [
        ("film", "movie", "movie"),
        ("Film", "movie", "Movie"),
        ("FILM", "movie", "MOVIE"),
        ("I", "movie", "Movie"),
        ("film", "Rome", "Rome"),
        ("FILM", "Rome", "Rome"),
        ("好", "坏", "坏"),
    ],
)
def test_capitals_are_those_of_the_word(word: str, candidate: str, expected: str) -> None:
    assert as_spelt(word, candidate) == expected
