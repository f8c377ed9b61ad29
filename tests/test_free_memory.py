"""What the system and a forward pass say of memory."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdistill import memory

CPU = torch.device("cpu")


def test_an_error_of_something_else_does_not_lack_memory() -> None:
    assert not memory.lacks_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert memory.lacks_memory(RuntimeError("could not create a primitive. Run workload with environment variable"))
    unknown = "could not create a primitive descriptor for a matmul primitive. Run workload with environment variable"
    assert not memory.lacks_memory(RuntimeError(unknown))
    remedied = ValueError("a remedy")
    remedied.__context__ = MemoryError()
    remedied.__suppress_context__ = True
    assert not memory.lacks_memory(remedied)


def test_the_least_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_control_groups", lambda: [tmp_path])
    whole = memory.free_bytes(CPU)
    assert 0 < whole < math.inf
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(CPU) > 1e6
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4500000\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 150000\nactive_file 50000\n")
    assert memory.free_bytes(CPU) == 700_000  # what only caches files is as good as free
    with monkeypatch.context() as two_ranks:
        two_ranks.setenv("LOCAL_WORLD_SIZE", "2")
        assert memory.free_bytes(CPU) == 350_000
    (tmp_path / "memory.current").write_text("6000000\n")
    assert memory.free_bytes(CPU) == 0


def test_the_groups_above_count_and_what_cannot_be_read_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "self")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path / "cgroup")
    assert memory.free_bytes(CPU) == math.inf
    job = tmp_path / "cgroup" / "slurm" / "job"
    job.mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/slurm/job\n")
    (job / "memory.max").mkdir()  # no file
    (job / "memory.current").write_text("")
    assert memory.free_bytes(CPU) == math.inf
    (job.parent / "memory.max").write_text("7000\n")
    (job.parent / "memory.current").write_text("3000\n")
    assert memory.free_bytes(CPU) == 4000


def test_of_a_gpu_what_is_free_and_what_is_reserved_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fraction = 1.0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (500, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 100)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: fraction)
    assert memory.free_bytes(torch.device("cuda")) == 500 + 300 - 100
    fraction = 0.5
    assert memory.free_bytes(torch.device("cuda")) == 500 - 100


def test_a_limit_of_the_process_counts() -> None:
    code = (
        "import resource, torch; from fastdistill.memory import free_bytes\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))\n"
        "before = free_bytes(torch.device('cpu')); held = torch.ones(1 << 28, dtype=torch.uint8)\n"
        "print(before - free_bytes(torch.device('cpu')), before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken, before = map(float, done.stdout.split())
    assert before < 3 << 30
    assert taken == pytest.approx(1 << 28, rel=0.02)


def test_what_a_forward_pass_keeps() -> None:
    x, w = torch.randn(8, 4), torch.randn(4, 4, requires_grad=True)
    assert memory.bytes_kept(lambda: (x @ w).exp().sum(), ()) == x.nbytes + 8 * 4 * 4
    assert memory.bytes_kept(lambda: ((x @ w) @ w).sum(), (x,)) == w.nbytes + 8 * 4 * 4
    assert memory.bytes_kept(lambda: ((x @ w) @ w).sum(), (w,)) == x.nbytes + 8 * 4 * 4
