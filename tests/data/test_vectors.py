"""Word vectors: neighbours by cosine, and files that are refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from fastdistill.data.vectors import Vectors, read_vectors

# near to "good" by angle are fine, great, dull, whatever their lengths; "bad" lies behind
LINES = """\
good 1 0 0
Good 1 0 0.001
great 20 9 0
fine 0.1 0.01 0
dull 1 1 1
bad -1 0 0
, 1 0 0
b2b 1 0 0
好 1 0 0
坏 -1 0.1 0
新 0.9 0.1 0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "glove.txt"
    path.write_text(LINES, encoding="utf-8")
    return path


def test_nearest_words_by_cosine(file: Path) -> None:
    vectors = read_vectors(file)
    assert vectors.nearest(["good", "bad", "unheard"], 3) == {
        "good": ["fine", "great", "dull"],
        "bad": ["dull", "great", "fine"],
    }
    assert vectors.nearest(["good"], 100) == {"good": ["fine", "great", "dull", "bad"]}
    assert vectors.nearest([], 3) == {}


def test_characters_are_near_to_characters_alone(file: Path) -> None:
    assert read_vectors(file).nearest(["好"], 5) == {"好": ["新", "坏"]}


def test_lower_case_serves_for_words_that_are_not_there(file: Path) -> None:
    assert read_vectors(file).nearest(["FINE", "Good"], 1) == {"FINE": ["good"], "Good": ["fine"]}


def test_many_words_at_once_are_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = Vectors([f"w{'abcdefghij'[n % 10]}{'abcdefghij'[n // 10]}" for n in range(60)], rng.normal(size=(60, 5)))
    whole = vectors.nearest(vectors.words, 4)
    monkeypatch.setattr("fastdistill.data.vectors.WORDS_AT_ONCE", 7)
    assert vectors.nearest(vectors.words, 4) == whole
    assert len(whole) == 60
    assert all(len(near) == 4 and word not in near for word, near in whole.items())


def test_compressed_files_headers_and_words_with_spaces(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt.gz"
    path.write_bytes(gzip.compress(f"12 3\n{LINES}. . 1 0 0\nat me@home.org 1 0 0\n".encode()))
    assert read_vectors(path).words == ["good", "Good", "great", "fine", "dull", "bad", "好", "坏", "新"]


def test_only_the_first_words_count(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdistill.data.vectors.MOST_WORDS", 8)
    assert read_vectors(file).words == ["good", "Good", "great", "fine", "dull", "bad"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("good 1 2\nbad 1\n", "line 2: bad 1 is not a word and 2 numbers"),
        ("good 1 2\nbad 1 x\n", "line 2: bad 1 x is not"),
        ("good 1 nan\n", "line 1: good 1 nan is not"),
        ("good\n", "line 1: good is not a word and"),
        ("", "hold no word"),
        (", 1 2\n", "hold no word"),
    ],
)
def test_files_that_are_none_are_refused(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=expected):
        read_vectors(path)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 1 2\n")
    (tmp_path / "torn.txt.gz").write_bytes(gzip.compress(LINES.encode() * 50)[:-20])
    for name in ("latin.txt", "torn.txt.gz"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read .*; repair or remove"):
            read_vectors(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_vectors(tmp_path / "gone.txt")
