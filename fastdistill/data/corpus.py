"""General text: tokenised once into memory-mapped files, found again by what they were made of."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from fastdistill.checkpoint import publish_file
from fastdistill.data.packing import Sequences
from fastdistill.data.source import Source, from_files, from_hub, local_files, suffix
from fastdistill.data.tokenise import check_tokenizer, cut_documents
from fastdistill.recipe import Corpus

# Part of the cache key: raise it whenever the files below change their meaning.
FORMAT_VERSION = 1
PROGRESS = "progress.json"
BATCHES_BETWEEN_SAVES = 100  # of documents, while text is tokenised


def load_corpus(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, cache_dir: str | Path) -> Sequences:
    """The tokenised corpus, from the cache or, the first time, from its text.

    Documents longer than `corpus.max_length` become several sequences, each with its own special tokens. Blank
    documents are skipped. `counts` of the result: documents, sequences, tokens, skipped.

    Raises:
        FileNotFoundError: the files are missing, or the Hub data set cannot be reached.
        ValueError: there is no text, the column does not exist, or a file is damaged or not UTF-8.
    """
    check_tokenizer(tokenizer, corpus.max_length, pair=False)
    source = _source(corpus)
    folder = Path(cache_dir).expanduser() / "corpus" / _key(source, corpus, tokenizer)
    stored = _read(folder)
    if stored is None:
        _build(folder, source, corpus, tokenizer)
        stored = _read(folder)
        if stored is None:
            raise OSError(f"{folder} was written but cannot be read back; is the disk full or failing?")
    return stored


def _source(corpus: Corpus) -> Source:
    if corpus.path is None:
        raise ValueError("general.path is not set; give a file, glob, folder or Hub id of general text")
    files = local_files(corpus.path)
    if files:
        return from_files(files)
    splits = from_hub(corpus.path, corpus.name)
    if corpus.split not in splits:
        raise ValueError(
            f"{corpus.path} has no split {corpus.split!r}; set general.split to one of {', '.join(splits)}"
        )
    return splits[corpus.split]


def _key(source: Source, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> str:
    """Everything that decides the tokens, as one name; files count by their content, not by name or time."""
    contents = []
    for file in source.files:
        with file.open("rb") as stream:
            contents.append([suffix(file), hashlib.file_digest(stream, "sha256").hexdigest()])
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # a tokenizer remembers the truncation and padding of its last call, which is not its own state
    state["truncation"] = state["padding"] = None
    hub = None if source.files else [source.version, corpus.split]
    parts = [FORMAT_VERSION, contents, hub, corpus.text, corpus.max_length, state]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _build(folder: Path, source: Source, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write under another name and rename last, so that an unfinished build is never taken for a whole one.

    A build that was interrupted is gone on with. Of several processes one builds, and the others wait for it.
    """
    unfinished = folder.with_name(f"unfinished-{folder.name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if _read(folder) is None:
            unfinished.mkdir(exist_ok=True)
            try:
                _write(unfinished, source, corpus, tokenizer)
            except ValueError:  # about the text, which will be another one when it is mended
                shutil.rmtree(unfinished)
                raise
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)


def _write(folder: Path, source: Source, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> None:
    dtype = np.min_scalar_type(max(tokenizer.get_vocab().values()))
    done, counts = _progress(folder, dtype)
    with (folder / "tokens.bin").open("ab") as tokens, (folder / "offsets.bin").open("ab") as offsets:
        tokens.truncate(counts["tokens"] * dtype.itemsize)
        offsets.truncate((counts["sequences"] + 1) * 8 if done else 0)
        if not done:
            offsets.write(np.zeros(1, np.int64).tobytes())
        for number, (documents, skipped) in enumerate(_documents(source, corpus.text), start=1):
            if number <= done:
                continue
            pieces = cut_documents(tokenizer, documents, corpus.max_length)
            ends = counts["tokens"] + np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
            offsets.write(ends.tobytes())
            tokens.write(np.fromiter(chain.from_iterable(pieces), dtype).tobytes())
            counts["documents"] += len(documents)
            counts["sequences"] += len(pieces)
            counts["tokens"] = int(ends[-1]) if pieces else counts["tokens"]
            counts["skipped"] += skipped
            if number % BATCHES_BETWEEN_SAVES == 0:
                for file in (tokens, offsets):
                    file.flush()
                    os.fsync(file.fileno())
                publish_file(folder / PROGRESS, partial(Path.write_text, data=json.dumps([number, counts])))
        for file in (tokens, offsets):
            file.flush()
            os.fsync(file.fileno())
    if counts["documents"] == 0:
        raise ValueError(f"{source.where} has no text: all {counts['skipped']} documents are blank")
    index = {"version": FORMAT_VERSION, "source": source.where, "dtype": dtype.name, "counts": counts}
    publish_file(folder / "index.json", partial(Path.write_text, data=json.dumps(index, indent=1)))
    (folder / PROGRESS).unlink(missing_ok=True)


def _progress(folder: Path, dtype: np.dtype[Any]) -> tuple[int, dict[str, int]]:
    """How many batches of documents an interrupted build has safely written, and what they held."""
    try:
        done, counts = json.loads((folder / PROGRESS).read_text())
        sizes = {"tokens.bin": counts["tokens"] * dtype.itemsize, "offsets.bin": (counts["sequences"] + 1) * 8}
        if all((folder / name).stat().st_size >= size for name, size in sizes.items()):
            return done, counts
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return 0, {"documents": 0, "sequences": 0, "tokens": 0, "skipped": 0}


def _documents(source: Source, column: str) -> Iterator[tuple[list[str], int]]:
    """The documents a few at a time, with the number of blank ones that were left out."""
    first = 1
    for batch in source.read(column, option="general.text"):
        values = batch[column]
        for row, value in enumerate(values, start=first):
            if not isinstance(value, str | None):
                raise ValueError(f"{source.where}, row {row}: column {column!r} holds {value!r:.40}, not text")
        documents = [value for value in values if value and not value.isspace()]
        yield documents, len(values) - len(documents)
        first += len(values)


def _read(folder: Path) -> Sequences | None:
    """The corpus in `folder`; None where it is missing or torn, that is, where a file has not the size it should."""
    try:
        index: dict[str, Any] = json.loads((folder / "index.json").read_text())
        dtype, counts = np.dtype(index["dtype"]), index["counts"]
        sizes = {"tokens.bin": counts["tokens"] * dtype.itemsize, "offsets.bin": (counts["sequences"] + 1) * 8}
        if any((folder / name).stat().st_size != size for name, size in sizes.items()):
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return Sequences(
        input_ids=np.memmap(folder / "tokens.bin", dtype, mode="r"),
        offsets=np.memmap(folder / "offsets.bin", np.int64, mode="r"),
        counts=counts,
    )
