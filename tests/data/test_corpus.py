"""Corpora: tokenised once, nothing lost, and never read half-made."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from fastdistill.data import corpus as corpus_module
from fastdistill.data import source as source_module
from fastdistill.data.corpus import load_corpus
from fastdistill.data.packing import Sequences
from fastdistill.recipe import Corpus

CLS, SEP = 2, 3
MakeTokenizer = Callable[[list[str]], PreTrainedTokenizerFast]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("a b c\n\nthe film was good\n   \n" + "a b c d e f g " * 3 + "\n")
    return file


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of documents of every call that tokenises."""
    calls: list[int] = []
    original = corpus_module.cut_documents

    def counted(tokenizer: PreTrainedTokenizerFast, documents: list[str], max_length: int) -> list[list[int]]:
        calls.append(len(documents))
        return original(tokenizer, documents, max_length)

    monkeypatch.setattr(corpus_module, "cut_documents", counted)
    return calls


def unpack(sequences: Sequences) -> list[list[int]]:
    return [sequences.input_ids[a:b].tolist() for a, b in zip(sequences.offsets, sequences.offsets[1:], strict=False)]


def cached_folder(cache: Path) -> Path:
    (folder,) = visible(cache)
    return folder


def visible(cache: Path) -> list[Path]:
    """What lies in the cache, but for the locks of processes that build."""
    return [path for path in (cache / "corpus").iterdir() if not path.name.startswith(".")]


def test_long_documents_are_cut_and_nothing_is_lost(
    text_file: Path, cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    sequences = load_corpus(Corpus(path=str(text_file), max_length=8), tokenizer, cache)
    pieces = unpack(sequences)
    assert all(piece[0] == CLS and piece[-1] == SEP and len(piece) <= 8 for piece in pieces)
    words = [token for piece in pieces for token in piece if token not in (CLS, SEP)]
    assert words == tokenizer(text_file.read_text(), add_special_tokens=False)["input_ids"]
    assert dict(sequences.counts) == {"documents": 3, "sequences": 6, "tokens": len(words) + 12, "skipped": 2}
    assert sequences.input_ids.dtype == np.uint8
    assert isinstance(sequences.input_ids, np.memmap)
    assert sequences.lengths.tolist() == [len(piece) for piece in pieces]


def test_large_vocabularies_take_a_wider_type(text_file: Path, cache: Path, make_tokenizer: MakeTokenizer) -> None:
    wide = make_tokenizer([f"w{i}" for i in range(300)] + ["film"])
    sequences = load_corpus(Corpus(path=str(text_file)), wide, cache)
    assert sequences.input_ids.dtype == np.uint16
    assert 305 in sequences.input_ids


def test_a_second_call_reads_the_cache(
    text_file: Path, cache: Path, tokenizer: PreTrainedTokenizerFast, tokenised: list[int]
) -> None:
    first = load_corpus(Corpus(path=str(text_file)), tokenizer, cache)
    assert tokenised == [3]
    tokenizer("a b", truncation=True, max_length=3)  # leaves its truncation behind in the tokenizer
    again = load_corpus(Corpus(path=str(text_file)), tokenizer, cache)
    renamed = text_file.rename(text_file.with_name("renamed.txt"))
    moved = load_corpus(Corpus(path=str(renamed)), copy.deepcopy(tokenizer), cache)
    assert tokenised == [3]
    assert unpack(first) == unpack(again) == unpack(moved)
    assert first.counts == again.counts


def test_what_decides_the_tokens_decides_the_cache(
    text_file: Path,
    cache: Path,
    tokenizer: PreTrainedTokenizerFast,
    make_tokenizer: MakeTokenizer,
    tokenised: list[int],
) -> None:
    load_corpus(Corpus(path=str(text_file)), tokenizer, cache)
    load_corpus(Corpus(path=str(text_file)), make_tokenizer(["the", "film"]), cache)
    load_corpus(Corpus(path=str(text_file), max_length=9), tokenizer, cache)
    text_file.write_text("a b d\n")
    changed = load_corpus(Corpus(path=str(text_file)), tokenizer, cache)
    assert tokenised == [3, 3, 3, 1]
    assert changed.counts["documents"] == 1


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "index.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_torn_cache_is_rebuilt(
    name: str, damage: str, text_file: Path, cache: Path, tokenizer: PreTrainedTokenizerFast, tokenised: list[int]
) -> None:
    whole = unpack(load_corpus(Corpus(path=str(text_file)), tokenizer, cache))
    file = cached_folder(cache) / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-3])
    assert unpack(load_corpus(Corpus(path=str(text_file)), tokenizer, cache)) == whole
    assert tokenised == [3, 3]


@pytest.mark.parametrize("damage", [None, "tokens.bin", "progress.json"])
def test_an_interrupted_build_is_gone_on_with(
    damage: str | None,
    text_file: Path,
    cache: Path,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the last save, two documents before the end; from the start where a file is torn."""
    expected = load_corpus(Corpus(path=str(text_file)), tokenizer, tmp_path / "another")
    monkeypatch.setattr(source_module, "ROWS_AT_ONCE", 1)
    monkeypatch.setattr(corpus_module, "BATCHES_BETWEEN_SAVES", 2)
    original, seen = corpus_module.cut_documents, []

    def cut(tokenizer: PreTrainedTokenizerFast, documents: list[str], max_length: int) -> list[list[int]]:
        seen.append(documents)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return original(tokenizer, documents, max_length)

    monkeypatch.setattr(corpus_module, "cut_documents", cut)
    with pytest.raises(KeyboardInterrupt):
        load_corpus(Corpus(path=str(text_file)), tokenizer, cache)
    assert cached_folder(cache).name.startswith("unfinished-")
    with (cached_folder(cache) / "tokens.bin").open("ab") as file:
        file.write(b"half a batch")
    if damage is not None:
        (cached_folder(cache) / damage).write_text("[")
    got = load_corpus(Corpus(path=str(text_file)), tokenizer, cache)
    assert seen[5:] == ([["a b c"], [], ["the film was good"], []] if damage else []) + [seen[4]]
    assert unpack(got) == unpack(expected)
    assert got.counts == expected.counts
    assert sorted(path.name for path in cached_folder(cache).iterdir()) == ["index.json", "offsets.bin", "tokens.bin"]


def test_a_build_is_under_another_name_until_it_is_whole(
    text_file: Path, cache: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = corpus_module.cut_documents

    def look(*arguments: object) -> list[list[int]]:
        seen.append(cached_folder(cache).name)
        return original(*arguments)

    monkeypatch.setattr(corpus_module, "cut_documents", look)
    load_corpus(Corpus(path=str(text_file)), tokenizer, cache)
    assert [name.startswith("unfinished-") for name in seen] == [True]
    assert not cached_folder(cache).name.startswith("unfinished-")


def test_of_two_builders_one_waits_for_the_other(
    text_file: Path,
    cache: Path,
    tokenizer: PreTrainedTokenizerFast,
    tokenised: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, second = corpus_module._write, ThreadPoolExecutor(1)
    started: list[Future[Sequences]] = []

    def with_another(*arguments: object) -> None:
        corpus = Corpus(path=str(text_file))
        started.append(second.submit(load_corpus, corpus, copy.deepcopy(tokenizer), cache))
        with pytest.raises(TimeoutError):
            started[0].result(0.5)
        original(*arguments)

    monkeypatch.setattr(corpus_module, "_write", with_another)
    first = load_corpus(Corpus(path=str(text_file)), tokenizer, cache)
    assert unpack(started[0].result(10)) == unpack(first)
    assert tokenised == [3]


def test_hub_data_sets_are_known_by_their_commit(
    text_file: Path,
    cache: Path,
    tokenizer: PreTrainedTokenizerFast,
    tokenised: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = datasets.load_dataset_builder
    commit = "commit1"

    def hub(path: str, name: str | None, revision: str | None) -> datasets.DatasetBuilder:
        assert (path, name, revision) == ("owner/texts", "en", None)
        files = {"train": str(text_file), "test": str(text_file)}
        builder = original("text", data_files=files, cache_dir=str(cache / "datasets"))
        builder.hash = commit
        return builder

    monkeypatch.setattr(source_module.datasets, "load_dataset_builder", hub)
    corpus = Corpus(path="owner/texts", name="en")
    assert load_corpus(corpus, tokenizer, cache).counts["documents"] == 3
    load_corpus(corpus, tokenizer, cache)
    assert tokenised == [3]
    commit = "commit2"
    load_corpus(corpus, tokenizer, cache)
    load_corpus(Corpus(path="owner/texts", name="en", split="test"), tokenizer, cache)
    assert tokenised == [3, 3, 3]
    with pytest.raises(ValueError, match=r"no split 'dev'; set general.split to one of train, test"):
        load_corpus(Corpus(path="owner/texts", name="en", split="dev"), tokenizer, cache)


def test_batches_of_rows_leave_no_seam(
    text_file: Path, cache: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus(path=str(text_file), max_length=8)
    whole = load_corpus(corpus, tokenizer, cache / "whole")
    monkeypatch.setattr(source_module, "ROWS_AT_ONCE", 2)
    parts = load_corpus(corpus, tokenizer, cache / "parts")
    assert unpack(parts) == unpack(whole)
    assert parts.counts == whole.counts
    rows = text_file.with_name("rows.jsonl")
    rows.write_text("\n".join(json.dumps({"text": text}) for text in [None, None, None, 4]))
    with pytest.raises(ValueError, match=r"rows\.jsonl, row 4: column 'text' holds 4, not text"):
        load_corpus(Corpus(path=str(rows)), tokenizer, cache)


def test_text_of_blanks_alone_is_an_error(tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    blank = tmp_path / "blank.txt"
    blank.write_text("\n  \n\t\n")
    with pytest.raises(ValueError, match=r"blank\.txt has no text: all 3 documents are blank"):
        load_corpus(Corpus(path=str(blank)), tokenizer, cache)
    assert visible(cache) == []


def test_missing_text_is_skipped_but_other_things_are_not_text(
    tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": text}) for text in ["a", None, "b"]))
    assert load_corpus(Corpus(path=str(rows)), tokenizer, cache).counts["skipped"] == 1
    rows.write_text("\n".join(json.dumps({"text": number}) for number in [1, 2]))
    with pytest.raises(ValueError, match=r"rows\.jsonl, row 1: column 'text' holds 1, not text"):
        load_corpus(Corpus(path=str(rows)), tokenizer, cache)


def test_no_path(cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"general\.path is not set"):
        load_corpus(Corpus(), tokenizer, cache)
