"""TinyBERT's data augmentation: copies of a task's rows in which words are replaced, made once and kept as a data set.

Every row brings its own random numbers, so that what is drawn does not depend on the other rows or on the batches of
the model. Every row comes before its copies; a copy that says the same as a row, or as a copy before it, is dropped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from datasets import Features, Value
from filelock import FileLock

from fastdistill.checkpoint import publish_file
from fastdistill.data.candidates import MODEL, NONE, VECTORS, Candidates
from fastdistill.data.copies import copies_of
from fastdistill.data.rows import REPORT, SOURCE, Rows
from fastdistill.data.source import from_files
from fastdistill.data.vectors import read_vectors
from fastdistill.data.written import features, other_columns, text_columns
from fastdistill.models.masked_lm import MaskedLM
from fastdistill.recipe import Augment, Task

# Part of the address: raise it whenever the files below change their meaning.
FORMAT_VERSION = 2
ROWS_PER_SHARD = 256
COPIES = {"cola": 30, "mnli": 10, "mrpc": 30, "sst2": 20, "qqp": 10, "qnli": 20, "rte": 30, "stsb": 30}  # as published
COPIES_ELSEWHERE = 20
PROGRESS = "progress.json"
EXAMPLES = 3  # rows that the report shows
SECONDS_BETWEEN_LINES = 30.0
NAMES = {MODEL: "replaced by the model", VECTORS: "replaced by vectors", NONE: "kept"}


@dataclasses.dataclass(frozen=True, eq=False)
class Augmented:
    """Rows of a task with their copies.

    Args:
        folder: where they lie as parquet files, with a report.
        texts, pairs: of every row and copy.
        source_ids: which of the rows each of them comes from, and has the label of.
        counts: rows, copies, those dropped because they say the same as another, of whatever row; words of the copies
            by what became of them, of those that may be replaced.
        origin: where the candidates come from.
    """

    folder: Path
    texts: list[str]
    pairs: list[str] | None
    source_ids: np.ndarray
    counts: dict[str, int]
    origin: str


def load_augmented(
    task: Task,
    rows: Rows,
    label_names: tuple[str, ...] | None,
    teacher: str | None,
    cache_dir: str | Path,
    seed: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    say: Callable[[str], None],
) -> Augmented:
    """The rows and their copies, from the cache or, the first time, made.

    Making them goes on where it was interrupted. Of several processes one makes them, and the others wait for it.

    Args:
        task: names the columns, and says how to augment.
        rows: rows of train.
        label_names: class names by index, for the files.
        teacher: model of masked words where `task.augment` names none and this one has a masked-LM head.
        cache_dir: where they are kept, under an address that everything decides which they are made from.
        seed: of the draws.
        device: where the model runs.
        dtype: of its weights.
        say: takes what is worth knowing while they are made.

    Raises:
        FileNotFoundError: the vectors or the model are not there.
        ValueError: there are neither a model nor vectors, or they cannot be used; no word has been replaced.
        OSError: the disk is full or unwritable.
    """
    model, origin = _model(task.augment, teacher, device, dtype)
    job = _Job(task, rows, label_names, model, seed, origin)
    folder = Path(cache_dir).expanduser() / "augmented" / job.address
    found = job.read(folder)
    if found is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            found = job.read(folder) or job.make(folder, say)
    if not found.counts["copies"]:
        raise ValueError(
            f"no word of the text has been replaced by candidates from {origin}: give a --task.augment.model or "
            "--task.augment.vectors of the text's language, a higher --task.augment.probability, or set data to task"
        )
    return found


def _model(
    augment: Augment, teacher: str | None, device: torch.device, dtype: torch.dtype
) -> tuple[MaskedLM | None, str]:
    """The masked language model, where there is one, and where candidates come from, in words."""
    also = "; other words keep themselves" if augment.vectors is None else f" and {augment.vectors}"
    if augment.model is not None:
        return MaskedLM(augment.model, device, dtype), f"{augment.model}{also}"
    lacking = "there is no teacher.path"
    if teacher is not None:
        try:
            return MaskedLM(teacher, device, dtype), f"{teacher}{also}"
        except ValueError as error:
            lacking = str(error).partition(" (")[0]
    if augment.vectors is None:
        raise ValueError(
            f"words cannot be replaced, for {lacking} and no vectors are named: give --task.augment.model, a masked "
            "language model, or --task.augment.vectors, a GloVe text file, or both"
        )
    return None, f"{augment.vectors} alone, for {lacking}"


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """What is made from what."""

    task: Task
    rows: Rows
    label_names: tuple[str, ...] | None
    model: MaskedLM | None
    seed: int
    origin: str

    @property
    def copies(self) -> int:
        return self.task.augment.copies or COPIES.get(self.task.name or "", COPIES_ELSEWHERE)

    @cached_property
    def columns(self) -> dict[str, list[str]]:
        """The texts, or both texts of the pairs, by column."""
        return text_columns(self.task, self.rows)

    @cached_property
    def kept(self) -> dict[str, list[Any]]:
        """What copies have from their row, by column."""
        return other_columns(self.task, self.rows)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Options that decide the copies; how the model's batches are cut does not."""
        augment = self.task.augment
        options = ("probability", "candidates", "show_original", "max_length", "paper_pairs")
        return {
            "copies": self.copies,
            **{name: getattr(augment, name) for name in options},
            "task.max_length": self.task.max_length,
            "seed": self.seed,
        }

    @cached_property
    def address(self) -> str:
        """Changes when anything does that the files are made from; rows, model and vectors count by their content."""
        rows = json.dumps([self.columns, self.kept, self.label_names])
        tokenizer = None
        if self.model is not None:
            tokenizer = json.loads(self.model.tokenizer.backend_tokenizer.to_str())
            tokenizer["truncation"] = tokenizer["padding"] = None  # what it remembers of its last call
        parts = [
            FORMAT_VERSION,
            self.settings,
            hashlib.sha256(rows.encode()).hexdigest(),
            self.model and self.model.fingerprint(),
            tokenizer,
            self._digest_of_vectors(),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def _digest_of_vectors(self) -> str | None:
        if self.task.augment.vectors is None:
            return None
        path = Path(self.task.augment.vectors).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"task.augment.vectors: there is no file {path}; name a GloVe text file")
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def read(self, folder: Path) -> Augmented | None:
        """What lies in `folder`; None where that is missing or torn."""
        try:
            counts = json.loads((folder / REPORT).read_text())["counts"]
            found: dict[str, list[Any]] = {name: [] for name in (*self.columns, SOURCE)}
            for batch in from_files(sorted(folder.glob("*.parquet"))).read(*found, option="task"):
                for name, values in found.items():
                    values += batch[name]
        except (FileNotFoundError, IndexError, KeyError, TypeError, ValueError):
            return None
        ids = np.array(found[SOURCE], np.int64)
        if len(ids) != counts["rows"] + counts["copies"]:
            return None
        texts, *pairs = (found[name] for name in self.columns)
        return Augmented(folder, texts, pairs[0] if pairs else None, ids, counts, self.origin)

    def make(self, folder: Path, say: Callable[[str], None]) -> Augmented:
        """Make what `folder` shall hold under another name, and rename that last."""
        unfinished = folder.with_name(f"unfinished-{folder.name}")
        unfinished.mkdir(exist_ok=True)
        self._write(unfinished, say)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        (folder / PROGRESS).unlink()
        made = self.read(folder)
        if made is None:
            raise OSError(f"{folder} was written but cannot be read back; is the disk full or failing?")
        return made

    def _write(self, folder: Path, say: Callable[[str], None]) -> None:
        say(f"augment: {len(self.rows.texts):,} rows x {self.copies} copies, candidates from {self.origin}")
        augment = self.task.augment
        vectors = None if augment.vectors is None else read_vectors(Path(augment.vectors).expanduser())
        assert self.task.max_length is not None, "the task is complete"
        candidates = Candidates(self.model, vectors, augment, self.task.max_length)
        total = len(self.rows.texts)
        shards = -(-total // ROWS_PER_SHARD)
        done, counts, examples = _progress(folder, shards)
        said_before = self._said_before([folder / _name(shard, shards) for shard in range(done)])
        before, start, said = done, time.perf_counter(), time.perf_counter()
        for shard in range(done, shards):
            rows = range(shard * ROWS_PER_SHARD, min(total, (shard + 1) * ROWS_PER_SHARD))
            table, changed, shown = self._shard(rows, candidates, said_before)
            counts.update(changed)
            examples += shown
            publish_file(folder / _name(shard, shards), partial(pyarrow.parquet.write_table, table))
            progress = json.dumps([shard + 1, counts, examples])
            publish_file(folder / PROGRESS, partial(Path.write_text, data=progress))
            if (now := time.perf_counter()) - said > SECONDS_BETWEEN_LINES:
                left = (now - start) / (shard + 1 - before) * (shards - shard - 1)
                say(f"augment: {rows.stop:,} of {total:,} rows, {left:,.0f} s left")
                said = now
        report = {"origin": self.origin, "settings": self.settings, "counts": counts, "examples": examples}
        (folder / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")

    def _shard(
        self, rows: range, candidates: Candidates, said: set[int]
    ) -> tuple[pyarrow.Table, Counter[str], list[dict[str, list[str]]]]:
        """The table of a few rows and their copies, its counts, and the first rows of all as examples.

        `said` are hashes of what no copy may say, for there it is; those of the table come in.
        """
        texts = list(dict.fromkeys(column[row] for row in rows for column in self.columns.values()))
        places = dict(zip(texts, candidates(texts), strict=True))
        augment = self.task.augment
        table: dict[str, list[Any]] = {name: [] for name in (*self.columns, *self.kept, SOURCE)}
        counts = Counter(dict.fromkeys(("rows", "copies", "dropped", *NAMES.values()), 0))
        examples = []
        for row in rows:
            original = tuple(column[row] for column in self.columns.values())
            rng = np.random.default_rng((self.seed, row))
            drawn = copies_of(
                original, [places[text] for text in original], self.copies, augment.probability, rng,
                paper_pairs=augment.paper_pairs,
            )  # fmt: skip
            written = {original: (0, 0, 0)}
            for copy in drawn:
                if (key := hash(copy.texts)) not in said:
                    said.add(key)
                    written[copy.texts] = copy.words
            for name, values in zip(self.columns, zip(*written, strict=True), strict=True):
                table[name] += values
            for name, kept in self.kept.items():
                table[name] += [kept[row]] * len(written)
            table[SOURCE] += [row] * len(written)
            counts.update(rows=1, copies=len(written) - 1, dropped=len(drawn) + 1 - len(written))
            counts.update({name: sum(words[source] for words in written.values()) for source, name in NAMES.items()})
            if row < EXAMPLES:
                examples.append({" | ".join(original): [" | ".join(texts) for texts in list(written)[1:EXAMPLES]]})
        declared = Features({**features(self.task, self.rows, self.label_names), SOURCE: Value("int64")})
        return pyarrow.Table.from_pydict(table, schema=declared.arrow_schema), counts, examples

    def _said_before(self, shards: list[Path]) -> set[int]:
        """Hashes of what the rows say, and the copies in `shards`."""
        said = set(map(hash, zip(*self.columns.values(), strict=True)))
        for shard in shards:
            table = pyarrow.parquet.read_table(shard, columns=list(self.columns))
            said.update(map(hash, zip(*(table[name].to_pylist() for name in self.columns), strict=True)))
        return said


def _name(shard: int, shards: int) -> str:
    return f"train-{shard:05d}-of-{shards:05d}.parquet"


def _progress(folder: Path, shards: int) -> tuple[int, Counter[str], list[dict[str, list[str]]]]:
    """Shards that an interrupted job has safely written, what they counted, and its examples."""
    try:
        done, counts, examples = json.loads((folder / PROGRESS).read_text())
        if all((folder / _name(shard, shards)).exists() for shard in range(done)):
            return done, Counter(counts), examples
    except (FileNotFoundError, ValueError, TypeError):
        pass
    return 0, Counter(), []
