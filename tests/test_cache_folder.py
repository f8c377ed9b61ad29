"""The folder of a cache: shared by several runs, on a disk that fills or fails, verified."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdistill import teacher_cache
from fastdistill.checkpoint import HOST
from fastdistill.data.packing import NO_LABEL
from fastdistill.models.capture import Taps
from fastdistill.models.encoder import Encoder
from fastdistill.models.teacher import Live
from fastdistill.teacher_cache import Cached
from tests.cached import TAPS, fill, put_wrong, text


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "TOKENS_PER_SHARD", 100)


@pytest.fixture
def live(world: Path) -> Live:
    torch.manual_seed(0)
    return Live(Encoder.load(world / "teacher", head="fresh", num_labels=2))


def test_of_several_runs_one_asks_and_the_others_wait(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though each of them found that all is lacking."""
    asked: list[int] = []
    both, opened, ask, read = threading.Barrier(2), set(), Cached._ask, Cached.open

    def together(self: Cached, taps: Taps) -> teacher_cache.Lacking:
        lacking = read(self, taps)
        if self not in opened:
            opened.add(self)
            both.wait()
        return lacking

    def counted(self: Cached, live: Live, shard: int, *rest: Any) -> dict[str, torch.Tensor]:
        asked.append(shard)
        return ask(self, live, shard, *rest)

    monkeypatch.setattr(Cached, "open", together)
    monkeypatch.setattr(Cached, "_ask", counted)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: fill(tmp_path, live), range(2))
    assert sorted(asked) == list(range(len(one.bounds) - 1))
    for key, answer in one.answers.items():
        assert torch.equal(other.answers[key], answer)


def test_no_more_memory_maps_is_an_error_of_the_system(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which a run survives, without the cache."""
    fill(tmp_path, live)

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("unable to mmap 12 bytes from file: Cannot allocate memory (12)")

    monkeypatch.setattr(teacher_cache, "safe_open", full)
    with pytest.raises(OSError, match="cannot be mapped: unable to mmap 12 bytes"):
        fill(tmp_path, live)


def test_a_disk_that_would_be_filled_is_left_alone(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other runs have kept there stays."""
    kept = set(fill(tmp_path, live, data=text(seed=1)).folder.rglob("*.safetensors"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=teacher_cache.RESERVE))
    with pytest.raises(OSError, match="has 1,024 MiB left; the cache takes 0 MiB more, and 1,024 MiB stay free"):
        fill(tmp_path, live)
    assert set(tmp_path.rglob("*.safetensors")) == kept


def test_what_cannot_be_read_back_is_no_cache(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "checksum", lambda *_: str(random.random()))
    with pytest.raises(OSError, match="was written but cannot be read back"):
        fill(tmp_path, live)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_a_killed_run_was_about_to_write_is_deleted(live: Live, tmp_path: Path) -> None:
    """And what a living one, or one on another machine, writes is not."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    shard = Cached(tmp_path, live, text()).folder / "00001"
    shard.mkdir(parents=True)
    dead, alive, elsewhere = (
        shard / f".q.2.safetensors.{host}.{pid}.tmp"
        for host, pid in ((HOST, process.pid), (HOST, os.getppid()), ("elsewhere", process.pid))
    )
    for path in (dead, alive, elsewhere):
        path.write_text("half of it")
    fill(tmp_path, live)
    assert set(tmp_path.rglob("*.tmp")) == {alive, elsewhere}


def test_verification_finds_an_answer_that_is_not_the_teachers(live: Live, tmp_path: Path) -> None:
    cache = fill(tmp_path, live, verify=5)
    assert cache.verify(live, TAPS, np.arange(60)) < 2e-3  # float16
    for shard in range(len(cache.bounds) - 1):
        put_wrong(cache, shard, "hidden.3", lambda answer: 1.2 * answer)
    with pytest.raises(ValueError, match=r"differs from what the teacher says by 2.0e-01.*delete it"):
        fill(tmp_path, live, verify=6)


def test_verification_finds_a_single_sequence(live: Live, tmp_path: Path) -> None:
    put_wrong(fill(tmp_path, live), 1, "hidden.3", lambda answer: answer.index_fill(0, torch.tensor([-1]), 0.0))
    with pytest.raises(ValueError, match="differs from what the teacher says"):
        fill(tmp_path, live, verify=60)


def test_nothing_and_zeros_are_verified(world: Path, tmp_path: Path) -> None:
    """Sequences none of whose tokens has a tag, and a head that says 0."""
    live = Live(Encoder.load(world / "teacher", head="fresh", kind="tagging", num_labels=3))
    tags = np.where(np.arange(len(text().input_ids)) < 20, 1, NO_LABEL)
    fill(tmp_path, live, data=replace(text(), token_labels=tags), verify=60)
    for parameter in live.encoder.model.get_submodule("classifier").parameters():
        parameter.zero_()
    fill(tmp_path, live, data=replace(text(), token_labels=tags), verify=60)
