"""A short text, and a cache of what a teacher says of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastdistill.data.packing import Sequences
from fastdistill.models.capture import Taps
from fastdistill.models.teacher import Live
from fastdistill.teacher_cache import Cached, cached

TAPS = Taps(hidden=frozenset({0, 3}), q=frozenset({2}), k=frozenset({2}), v=frozenset({4}), logits=True)


def text(seed: int = 0) -> Sequences:
    lengths = np.random.default_rng(seed).integers(1, 20, 60)
    offsets = np.concatenate(([0], lengths.cumsum()))
    return Sequences(np.random.default_rng(seed).integers(5, 20, offsets[-1]), offsets)


def fill(at: Path, live: Live, taps: Taps = TAPS, data: Sequences | None = None, verify: int = 0) -> Cached:
    said: list[str] = []
    return cached(at, live, data or text(), taps, tokens_per_batch=64, epochs=3, verify=verify, say=said.append)
