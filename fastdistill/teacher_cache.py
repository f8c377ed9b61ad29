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
import zlib
from collections.abc import Callable, Generator
from functools import partial, reduce
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastdistill.batch import Batch
from fastdistill.checkpoint import publish_file, sweep
from fastdistill.data.packing import NO_LABEL, Sequences, collate, in_order, places
from fastdistill.machine import Portion
from fastdistill.models.capture import Captured, Taps
from fastdistill.models.teacher import Live
from fastdistill.recipe import HeadKind

FORMAT_VERSION = 4
TOKENS_PER_SHARD = 1 << 14  # at least
MOST_SHARDS = 1000  # each is mapped, once for each tap, of which there are some 40, and Linux allows 65,000 maps
KINDS = ("hidden", "q", "k", "v")
ALIKE = (("hidden.",), ("q.", "k.", "v."), ("logits",))  # taps that losses compare at once: of one dtype, the widest
ANSWER = "answer"  # the one tensor of a file
TOLERANCE = 0.15  # relative error of a sequence; 0.05 occurs in bf16, in batches of other shapes
MOST_LOST = 0.01  # of the norm of float32 answers kept as float16
RESERVE = 1 << 30  # bytes that a cache leaves on the disk for what the run itself writes
Lacking = list[tuple[int, list[str]]]


class Cached:
    """A teacher that answers from files; called as `Live` is, with batches of `data`.

    float32 answers are kept as float16 where its range suffices, other dtypes and all logits as they are.

    Args:
        folder: where caches lie; this one has a folder of its own there, named by what it was made from.
        live: the teacher; its weights below the head, its configuration and its dtype are part of the name.
        data: the text; its tokens are part of the name.
    """

    def __init__(self, folder: Path, live: Live, data: Sequences) -> None:
        self.data = data
        origin = {"format": FORMAT_VERSION, "teacher": live.fingerprint(head=False), "text": data.fingerprint()}
        self.origin = json.dumps(origin)
        self.origin_of_logits = json.dumps(origin | {"head": live.fingerprint()})
        self.folder = folder / hashlib.sha256(self.origin.encode()).hexdigest()[:32]
        shard_of = data.offsets[:-1] // max(TOKENS_PER_SHARD, -(-int(data.offsets[-1]) // MOST_SHARDS))
        self.bounds = [0, *(np.flatnonzero(np.diff(shard_of)) + 1).tolist(), len(data)]  # of shards, in sequences
        self.answers: dict[tuple[int, str], Tensor] = {}  # memory-mapped
        self.logits = self._logits_of(live.encoder.kind)
        self.scaling = math.nan
        self.foreign: set[str] = set()  # origins of what lies in the folder and does not belong there

    def __call__(self, batch: Batch, taps: Taps) -> Captured:
        """What the teacher said of the batch, on the batch's device."""
        assert batch.indices is not None, "a batch of the text that the cache was made for"
        shards = np.searchsorted(self.bounds, batch.indices, side="right") - 1
        starts = np.asarray(self.bounds)[shards]
        captured, found = Captured(scaling=self.scaling), {}
        for name in names_of(taps):
            offsets = self._offsets(name)
            firsts, lasts = (offsets[rows] - offsets[starts] for rows in (batch.indices, batch.indices + 1))
            found[name] = [self.answers[shard, name][i:j] for shard, i, j in zip(shards, firsts, lasts, strict=True)]
        for kinds in ALIKE:
            alike = {name: parts for name, parts in found.items() if name.startswith(kinds)}
            dtypes = {part.dtype for parts in alike.values() for part in parts}
            for name, parts in alike.items():
                put(captured, name, sent(parts, reduce(torch.promote_types, dtypes), batch.input_ids.device))
        return captured

    def open(self, taps: Taps) -> Lacking:
        """Map what is there; returns the shards that lack something, with the taps that they lack, most taps first."""
        lacking = []
        for shard in range(len(self.bounds) - 1):
            names = [n for n in names_of(taps) if (shard, n) not in self.answers and not self._read(shard, n)]
            if names:
                lacking.append((shard, names))
        return sorted(lacking, key=lambda one: -len(one[1]))

    def fill(self, live: Live, lacking: Lacking, portion: Portion) -> Generator[dict[str, int], None, None]:
        """Ask the teacher what is lacking, a portion at once; yields the bytes of a shard, by tap, once written.

        Raises:
            OSError: the disk is full, and what was written is deleted; or something else lies where a file should.
        """
        written: list[Path] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)
            publish_file(self.folder / "index.json", lambda path: path.write_text(self.origin))
            for shard, names in lacking:
                self._path(shard, "").parent.mkdir(exist_ok=True)
                for path in (self._path(shard, name) for name in names):
                    if path.is_dir():
                        raise IsADirectoryError(f"{path} is a folder where a file should be: delete it")
            for shard, names in lacking:
                answers = portion.of(partial(self._ask, live, shard, names), int(self.data.lengths.max()))
                for name, answer in answers.items():
                    about = {
                        "origin": self._origin(name),
                        "scaling": repr(self.scaling),
                        "sum": checksum(self._place(shard, name), answer, self.scaling),
                    }
                    to = self._path(shard, name)
                    publish_file(to, partial(save_file, {ANSWER: answer}, metadata=about))
                    written.append(to)
                    if not self._read(shard, name):
                        raise OSError(f"{to} was written but cannot be read back; is the disk full or failing?")
                yield {name: answer.nbytes for name, answer in answers.items()}
        except OSError:
            self.answers.clear()  # which hold on to the files
            for path in written:
                path.unlink(missing_ok=True)
            raise

    def _ask(self, live: Live, shard: int, names: list[str], tokens_per_batch: int) -> dict[str, Tensor]:
        """The teacher's answers to the sequences of a shard, in the order of the text."""
        first, last = self.bounds[shard : shard + 2]
        part = self.data.take(np.arange(first, last))
        answers: dict[str, Tensor] = {}
        for batch in in_order(part, tokens_per_batch):
            assert batch.indices is not None, "batches of a text know its sequences"
            captured = live(batch.to(live.device), taps_of(names))
            self.scaling = captured.scaling
            for name in names:
                answer, offsets = get(captured, name), self._offsets(name)[first : last + 1]
                at, _ = places(offsets - offsets[0], batch.indices)
                shape = (int(offsets[-1] - offsets[0]), *answer.shape[1:])
                kept = answers.setdefault(name, torch.empty(shape, dtype=answer.dtype))
                kept[torch.from_numpy(at)] = answer.cpu()
        return {name: answer if name == "logits" else halved(answer) for name, answer in answers.items()}

    def verify(self, live: Live, taps: Taps, rows: np.ndarray) -> float:
        """Ask the teacher about the sequences `rows` again; returns the greatest error (RMS) of a tap in one of them,
        relative to the tap's RMS over all of them."""
        errors, squares, sizes = torch.zeros(3, len(rows), len(names_of(taps)), dtype=torch.float64)
        for r, row in enumerate(rows):
            batch = collate(self.data, np.array([row])).to(live.device)
            kept, said = self(batch, taps), live(batch, taps)
            for n, name in enumerate(names_of(taps)):
                x, y = get(kept, name).double().cpu(), get(said, name).double().cpu()
                errors[r, n], squares[r, n], sizes[r, n] = (x - y).square().sum(), y.square().sum(), y.numel()
        relative = errors / sizes * sizes.sum(0) / squares.sum(0)
        return relative.where(errors != 0, 0.0).sqrt().nan_to_num(nan=math.inf).max().item()

    def saved(self, live: Live, taps: Taps, shard: int, portion: Portion) -> float:
        """Seconds for each token that to ask the teacher takes longer than to read, timed with a batch of a shard."""
        return portion.of(partial(self._saved, live, taps, shard), int(self.data.lengths.max()))

    def _saved(self, live: Live, taps: Taps, shard: int, tokens_per_batch: int) -> float:
        rows = np.arange(*self.bounds[shard : shard + 2])
        within = self.data.offsets[rows + 1] - self.data.offsets[rows[0]] <= tokens_per_batch
        batch = collate(self.data, rows[within]).to(live.device)

        def seconds(teacher: Live | Cached) -> float:
            start = time.perf_counter()
            said = teacher(batch, taps)
            get(said, names_of(taps)[-1]).sum().item()  # which waits for the device
            return time.perf_counter() - start

        return (seconds(live) - seconds(self)) / batch.num_tokens

    def _offsets(self, name: str) -> np.ndarray:
        """``(N + 1,)``: the rows of an answer that belong to sequence n are ``[offsets[n], offsets[n + 1])``."""
        return self.logits if name == "logits" else self.data.offsets

    def _logits_of(self, kind: HeadKind | None) -> np.ndarray:
        """The offsets of logits: a row for each sequence, token, or labelled token."""
        labels = self.data.token_labels
        if kind == "span" or (kind == "tagging" and labels is None):
            return self.data.offsets
        if kind == "tagging" and labels is not None:
            return np.concatenate(([0], np.cumsum(labels != NO_LABEL)))[self.data.offsets]
        return np.arange(len(self.data) + 1)

    def _origin(self, name: str) -> str:
        return self.origin_of_logits if name == "logits" else self.origin

    def _place(self, shard: int, name: str) -> str:
        """The tap and the sequences ``[first, last)`` that a file holds."""
        first, last = self.bounds[shard : shard + 2]
        return f"{name} {first}:{last}"

    def _path(self, shard: int, name: str) -> Path:
        return self.folder / f"{shard:05d}" / f"{name}.safetensors"

    def _read(self, shard: int, name: str) -> bool:
        """Map an answer; False where the file is missing, torn, damaged, or of another origin or place."""
        first, last = self.bounds[shard : shard + 2]
        rows = self._offsets(name)[last] - self._offsets(name)[first]
        try:
            with safe_open(self._path(shard, name), framework="pt") as file:
                answer, about = file.get_tensor(ANSWER), file.metadata() or {}
            scaling = float(about["scaling"])
        except (OSError, SafetensorError, KeyError, ValueError):
            return False
        except RuntimeError as error:  # as torch says it where there are no more maps
            raise OSError(f"{self._path(shard, name)} cannot be mapped: {error}") from error
        if (origin := about.get("origin", "")) != self._origin(name):
            self.foreign.add(origin)
            return False
        if about.get("sum") != checksum(self._place(shard, name), answer, scaling) or len(answer) != rows:
            return False
        self.scaling = scaling
        self.answers[shard, name] = answer
        return True


def sent(parts: list[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Them end to end on `device`, as `dtype`; to a GPU from pinned memory, lest the host wait."""
    room = torch.empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=dtype, pin_memory=device.type == "cuda")
    return torch.cat(parts, out=room).to(device, non_blocking=True)


def halved(answer: Tensor) -> Tensor:
    """float32 as float16 where that loses no number to infinity and few to zero; other dtypes as they are."""
    if answer.dtype != torch.float32:
        return answer
    half = answer.half()
    lost, norm = (torch.linalg.vector_norm(x, dtype=torch.float64) for x in (half - answer, answer))
    return half if lost <= MOST_LOST * norm else answer


def checksum(place: str, answer: Tensor, scaling: float) -> str:
    """Of the bytes, dtype and shape, what scores are scaled by, and where it belongs."""
    content = answer.contiguous().flatten().view(torch.uint8).numpy()
    return f"{place} {zlib.crc32(content.data):08x} {answer.dtype} {tuple(answer.shape)} {scaling!r}"


def cached(
    folder: Path, live: Live, data: Sequences, taps: Taps, *,
    tokens_per_batch: int, epochs: float, verify: int, say: Callable[[str], None],
) -> Cached:  # fmt: skip
    """A teacher that answers all of `data` from files, those it lacks made first.

    Args:
        folder, live, data: as for `Cached`.
        taps: what will be asked.
        tokens_per_batch: most tokens that the teacher is asked about at once.
        epochs: how often; said beside what the cache costs.
        verify: sequences of which the teacher is asked again.
        say: takes the estimate, and what was verified.

    Raises:
        ValueError: the files differ from what the teacher says now.
        OSError: the disk is or would be full, or the system has no more memory maps.
    """
    cache = Cached(folder, live, data)
    if cache.open(taps):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{cache.folder.name}.lock")
        try:
            holding = lock.acquire(timeout=1)
        except Timeout:  # of several runs one asks, the others wait for it
            say(f"teacher cache: waiting for another run that makes {cache.folder}")
            holding = lock.acquire()
        with holding:
            _fill(cache, live, taps, Portion(tokens_per_batch, lambda text: say(f"teacher cache: {text}")), epochs, say)
    if verify:
        rows = np.random.default_rng(0).choice(len(data), min(verify, len(data)), replace=False)
        worst = cache.verify(live, taps, rows)
        say(f"teacher cache: {len(rows)} sequences asked again, greatest relative error {worst:.1e}")
        if worst > TOLERANCE:
            raise ValueError(
                f"{cache.folder} differs from what the teacher says by {worst:.1e} (at most {TOLERANCE} is rounding): "
                "delete it"
            )
    return cache


def _fill(cache: Cached, live: Live, taps: Taps, portion: Portion, epochs: float, say: Callable[[str], None]) -> None:
    """Make what is still lacking; what that costs is said after the first shard."""
    lacking = cache.open(taps)
    if not lacking:
        return
    tokens = np.diff(cache.data.offsets[cache.bounds])  # of every shard
    for origin in sorted(cache.foreign):
        say(
            f"teacher cache: {cache.folder} holds files of {origin[:300]!r}, not of {cache.origin_of_logits}: they "
            "are refused, and made anew"
        )
    start = time.perf_counter()
    filling = cache.fill(live, lacking, portion)
    first, size = lacking[0][0], next(filling)
    seconds = (time.perf_counter() - start) / max(1, tokens[first])  # for each token
    saved = cache.saved(live, taps, first, portion) * tokens.sum()
    gain = (
        f"about {saved:,.0f} s shorter"
        if saved > 0
        else "no shorter, for to read takes as long as to ask: leave it out"
    )
    largest = max(size.values())  # for what the first did not lack
    rest = sum(
        size.get(name, largest) / max(1, tokens[first]) * tokens[n] for n, names in lacking[1:] for name in names
    )
    say(
        f"teacher cache: {len(lacking)} of {len(tokens)} shards to make, about "
        f"{(sum(size.values()) + rest) / 2**20:,.0f} MiB and {seconds * sum(tokens[n] for n, _ in lacking):,.0f} s "
        f"in {cache.folder}; each of {epochs:.3g} epochs is {gain}"
    )
    if (free := shutil.disk_usage(cache.folder).free) < rest + RESERVE:
        left, wanted, kept = (f"{size / 2**20:,.0f} MiB" for size in (free, rest, RESERVE))
        filling.throw(OSError(f"{cache.folder} has {left} left; the cache takes {wanted} more, and {kept} stay free"))
    for _ in filling:
        pass


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
