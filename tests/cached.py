"""A short text, and a cache of what a teacher says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastdistill.data.packing import Sequences
from fastdistill.models.capture import Taps
from fastdistill.models.teacher import Live
from fastdistill.teacher_cache import ANSWER, Cached, cached, checksum

TAPS = Taps(hidden=frozenset({0, 3}), q=frozenset({2}), k=frozenset({2}), v=frozenset({4}), logits=True)


def text(seed: int = 0) -> Sequences:
    lengths = np.random.default_rng(seed).integers(1, 20, 60)
    offsets = np.concatenate(([0], lengths.cumsum()))
    return Sequences(np.random.default_rng(seed).integers(5, 20, offsets[-1]), offsets)


def put_wrong(cache: Cached, shard: int, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Something else in the place of an answer, with a sum that fits."""
    path = cache._path(shard, name)
    with safe_open(path, framework="pt") as file:
        about, wrong = file.metadata(), change(file.get_tensor(ANSWER).clone())
    total = checksum(cache._place(shard, name), wrong, float(about["scaling"]))
    path.unlink()
    save_file({ANSWER: wrong}, path, about | {"sum": total})


def fill(at: Path, live: Live, taps: Taps = TAPS, data: Sequences | None = None, verify: int = 0) -> Cached:
    said: list[str] = []
    return cached(at, live, data or text(), taps, tokens_per_batch=64, epochs=3, verify=verify, say=said.append)
