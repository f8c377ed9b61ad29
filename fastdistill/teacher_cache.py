"""Cached: what a teacher said of every sequence, kept on disk, so that later epochs need not ask it again.

One folder holds the answers of one teacher to one text. The text is cut into shards of whole sequences; a shard is a
folder with one safetensors file for each tap, in the order of the text, whatever the order of the batches.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastdistill.batch import Batch
from fastdistill.checkpoint import publish_file
from fastdistill.data.packing import Sequences, collate, in_order
from fastdistill.models.capture import Captured, Taps
from fastdistill.models.teacher import Live

FORMAT_VERSION = 1
TOKENS_PER_SHARD = 1 << 14
TOKENS_PER_BATCH = 1 << 12  # of the teacher while it fills the cache
KINDS = ("hidden", "q", "k", "v")
ANSWER = "answer"  # the one tensor of a file
TOLERANCE = 0.05  # relative error of answers in bf16 that were computed in batches of other shapes
Lacking = list[tuple[int, list[str]]]


class Cached:
    """A teacher that answers from files; called as `Live` is, with batches of `data`.

    float32 answers are kept as float16, other dtypes and all logits as they are.

    Args:
        folder: where caches lie; this one has a folder of its own there, named by what it was made from.
        live: the teacher; its weights, its configuration and its dtype are part of the name.
        data: the text; its tokens are part of the name.

    Raises:
        ValueError: what lies in that folder was made by another teacher, or from another text.
    """

    def __init__(self, folder: Path, live: Live, data: Sequences) -> None:
        self.data = data
        self.origin = {"format": FORMAT_VERSION, "teacher": live.fingerprint(), "text": data.fingerprint()}
        self.folder = folder / hashlib.sha256(json.dumps(self.origin).encode()).hexdigest()[:32]
        shard_of = data.offsets[:-1] // TOKENS_PER_SHARD
        self.bounds = [0, *(np.flatnonzero(np.diff(shard_of)) + 1).tolist(), len(data)]  # of shards, in sequences
        self.answers: dict[tuple[int, str], Tensor] = {}  # memory-mapped
        self.scaling = math.nan
        index = self.folder / "index.json"
        if index.exists():
            found = json.loads(index.read_text())
            if found["origin"] != self.origin:
                raise ValueError(
                    f"{self.folder} holds what another teacher said, or of another text: it was made from "
                    f"{found['origin']}, this run has {self.origin}; delete it"
                )
            self.scaling = found["scaling"]

    def __call__(self, batch: Batch, taps: Taps) -> Captured:
        """What the teacher said of the batch, on the batch's device."""
        assert batch.indices is not None, "a batch of the text that the cache was made for"
        shards = np.searchsorted(self.bounds, batch.indices, side="right") - 1
        starts = np.asarray(self.bounds)[shards]
        captured = Captured(scaling=self.scaling)
        for name in names_of(taps):
            places = np.arange(len(self.data) + 1) if name == "logits" else self.data.offsets
            firsts, lasts = (places[rows] - places[starts] for rows in (batch.indices, batch.indices + 1))
            parts = [self.answers[shard, name][i:j] for shard, i, j in zip(shards, firsts, lasts, strict=True)]
            put(captured, name, torch.cat(parts).to(batch.input_ids.device))
        return captured

    def open(self, taps: Taps) -> Lacking:
        """Map what is there; returns the shards that lack something, with the taps that they lack."""
        lacking = []
        for shard in range(len(self.bounds) - 1):
            for name in names_of(taps):
                if (answer := self._read(shard, name)) is not None:
                    self.answers[shard, name] = answer
            if names := [name for name in names_of(taps) if (shard, name) not in self.answers]:
                lacking.append((shard, names))
        return lacking

    def fill(self, live: Live, lacking: Lacking) -> Iterator[int]:
        """Ask the teacher what is lacking; yields the bytes of every shard once they are written.

        Raises:
            OSError: the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for shard, names in lacking:
            answers = self._ask(live, shard, names)
            index = json.dumps({"origin": self.origin, "scaling": self.scaling})
            publish_file(self.folder / "index.json", lambda path, text=index: path.write_text(text))  # type: ignore[misc]
            self._path(shard, "").parent.mkdir(exist_ok=True)
            for name, answer in answers.items():
                publish_file(self._path(shard, name), lambda path, kept=answer: save_file({ANSWER: kept}, path))  # type: ignore[misc]
                self.answers[shard, name] = answer
            self.open(taps_of(names))  # lets go of the memory
            yield sum(answer.nbytes for answer in answers.values())

    def _ask(self, live: Live, shard: int, names: list[str]) -> dict[str, Tensor]:
        """The teacher's answers to the sequences of a shard, in the order of the text."""
        part = self.data.take(np.arange(*self.bounds[shard : shard + 2]))
        answers: dict[str, Tensor] = {}
        for batch in in_order(part, max(TOKENS_PER_BATCH, int(part.lengths.max()))):
            assert batch.indices is not None, "batches of a text know its sequences"
            captured = live(batch.to(live.device), taps_of(names))
            self.scaling = captured.scaling
            tokens, _ = part.places(batch.indices)
            for name in names:
                answer, places = get(captured, name), batch.indices if name == "logits" else tokens
                dtype = torch.float16 if answer.dtype == torch.float32 and name != "logits" else answer.dtype
                shape = (len(part) if name == "logits" else int(part.offsets[-1]), *answer.shape[1:])
                kept = answers.setdefault(name, torch.empty(shape, dtype=dtype))
                kept[torch.from_numpy(places)] = answer.to("cpu", dtype)
        return answers

    def verify(self, live: Live, taps: Taps, count: int) -> float:
        """Ask the teacher about `count` sequences again; returns the greatest relative error (RMS) of an answer."""
        worst = 0.0
        for row in np.random.default_rng(0).choice(len(self.data), min(count, len(self.data)), replace=False):
            batch = collate(self.data, np.array([row])).to(live.device)
            kept, said = self(batch, taps), live(batch, taps)
            for name in names_of(taps):
                x, y = get(kept, name).double(), get(said, name).double()
                error = (x - y).norm() / y.norm()
                worst = max(worst, math.inf if error.isnan() else error.item())
        return worst

    def _path(self, shard: int, name: str) -> Path:
        return self.folder / f"{shard:05d}" / f"{name}.safetensors"

    def _read(self, shard: int, name: str) -> Tensor | None:
        """An answer, memory-mapped; None where the file is missing, torn or of another length."""
        first, last = self.bounds[shard : shard + 2]
        rows = last - first if name == "logits" else self.data.offsets[last] - self.data.offsets[first]
        try:
            with safe_open(self._path(shard, name), framework="pt") as file:
                answer: Tensor = file.get_tensor(ANSWER)
        except (OSError, SafetensorError):
            return None
        return answer if len(answer) == rows else None


def cached(
    folder: Path, live: Live, data: Sequences, taps: Taps, *, epochs: float, verify: int, say: Callable[[str], None]
) -> Cached:
    """A teacher that answers all of `data` from files, those it lacks made first.

    Args:
        folder, live, data: as for `Cached`.
        taps: what will be asked.
        epochs: how often; said beside what the cache costs.
        verify: sequences of which the teacher is asked again.
        say: takes the estimate, and what was verified.

    Raises:
        ValueError: the files are another teacher's or text's, or differ from what the teacher says now.
        OSError: the disk is or would be full.
    """
    cache = Cached(folder, live, data)
    lacking = cache.open(taps)
    if lacking:
        shards = len(cache.bounds) - 1
        start = time.perf_counter()
        filling = cache.fill(live, lacking)
        size = next(filling)
        seconds, rest = time.perf_counter() - start, len(lacking) - 1
        say(
            f"teacher cache: {shards} shards, {len(lacking)} to make, about {size * len(lacking) / 2**20:,.0f} MiB and "
            f"{seconds * len(lacking):,.0f} s in {cache.folder}; each of {epochs:g} epochs is up to "
            f"{seconds * shards:,.0f} s shorter"
        )
        if (free := shutil.disk_usage(cache.folder).free) < size * rest:
            raise OSError(f"{cache.folder} has {free / 2**20:,.0f} MiB left, {size * rest / 2**20:,.0f} are needed")
        for _ in filling:
            pass
    if verify:
        worst = cache.verify(live, taps, verify)
        say(f"teacher cache: {verify} sequences asked again, greatest relative error {worst:.1e}")
        if worst > TOLERANCE:
            raise ValueError(
                f"{cache.folder} differs from what the teacher says by {worst:.1e} (at most {TOLERANCE} is rounding): "
                "delete it"
            )
    return cache


def names_of(taps: Taps) -> list[str]:
    """A name for every tensor that `taps` asks for: hidden.3, q.12, logits."""
    layers = [f"{kind}.{layer}" for kind in KINDS for layer in sorted(getattr(taps, kind))]
    return layers + ["logits"] * taps.logits


def taps_of(names: list[str]) -> Taps:
    """The taps that have these names."""
    layers = {kind: frozenset(int(n.partition(".")[2]) for n in names if n.startswith(f"{kind}.")) for kind in KINDS}
    return Taps(**layers, logits="logits" in names)


def get(captured: Captured, name: str) -> Tensor:
    """What was captured under `name`."""
    kind, _, layer = name.partition(".")
    found = captured.logits if kind == "logits" else getattr(captured, kind)[int(layer)]
    assert isinstance(found, Tensor)
    return found


def put(captured: Captured, name: str, answer: Tensor) -> None:
    """Capture `answer` under `name`."""
    kind, _, layer = name.partition(".")
    if kind == "logits":
        captured.logits = answer
    else:
        getattr(captured, kind)[int(layer)] = answer
