"""What the system says of memory and processors, and a forward pass of memory."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastdistill import machine
from fastdistill.step import Runtime
from tests.tiny import tiny_recipe

CPU = torch.device("cpu")


def test_an_error_of_something_else_does_not_lack_memory() -> None:
    assert not machine.lacks_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert machine.lacks_memory(RuntimeError("could not create a primitive. Run workload with environment variable"))
    unknown = "could not create a primitive descriptor for a matmul primitive. Run workload with environment variable"
    assert not machine.lacks_memory(RuntimeError(unknown))
    remedied = ValueError("a remedy")
    remedied.__context__ = MemoryError()
    remedied.__suppress_context__ = True
    assert not machine.lacks_memory(remedied)


def test_a_portion_is_halved_for_good_where_memory_lacks_and_that_is_said() -> None:
    said: list[str] = []
    portion = machine.Portion(100, said.append)

    def room_for(most: int) -> Callable[[int], int]:
        def work(tokens: int) -> int:
            if tokens > most:
                raise MemoryError
            return tokens

        return work

    assert portion.of(room_for(100), least=1) == 100
    assert portion.of(room_for(30), least=20) == 25
    assert portion.of(room_for(24), least=20) == 20
    assert portion.of(room_for(100), least=1) == 20
    assert said == [
        f"out of memory with {failed} tokens at once: going on with {less}"
        for failed, less in ((100, 50), (50, 25), (25, 20))
    ]
    with pytest.raises(MemoryError):
        portion.of(room_for(19), least=20)
    with pytest.raises(ZeroDivisionError):
        portion.of(lambda tokens: tokens // 0, least=1)
    with pytest.raises(RuntimeError, match="another"):
        portion.of(another, least=1)
    assert len(said) == 3
    assert machine.Portion(100).of(room_for(300), least=200) == 200


def another(_: int) -> int:
    raise RuntimeError("another error")


def test_the_least_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(machine, "_control_groups", lambda: [tmp_path])
    whole = machine.free_bytes(CPU)
    assert 0 < whole < math.inf
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_bytes(CPU) > 1e6
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4500000\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 150000\nactive_file 50000\n")
    assert machine.free_bytes(CPU) == 700_000  # what only caches files is as good as free
    with monkeypatch.context() as two_ranks:
        two_ranks.setenv("LOCAL_WORLD_SIZE", "2")
        assert machine.free_bytes(CPU) == 350_000
    (tmp_path / "memory.current").write_text("6000000\n")
    assert machine.free_bytes(CPU) == 0


def test_the_groups_above_count_and_what_cannot_be_read_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "PROCESS", tmp_path / "self")
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path / "cgroup")
    assert machine.free_bytes(CPU) == math.inf
    job = tmp_path / "cgroup" / "slurm" / "job"
    job.mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/slurm/job\n")
    (job / "memory.max").mkdir()  # no file
    (job / "memory.current").write_text("")
    assert machine.free_bytes(CPU) == math.inf
    (job.parent / "memory.max").write_text("7000\n")
    (job.parent / "memory.current").write_text("3000\n")
    assert machine.free_bytes(CPU) == 4000


def test_of_a_gpu_what_is_free_and_what_is_reserved_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fraction = 1.0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (500, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 100)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: fraction)
    assert machine.free_bytes(torch.device("cuda")) == 500 + 300 - 100
    fraction = 0.5
    assert machine.free_bytes(torch.device("cuda")) == 500 - 100


def test_a_limit_of_the_process_counts() -> None:
    code = (
        "import resource, torch; from fastdistill.machine import free_bytes\n"
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
    assert machine.bytes_kept(lambda: (x @ w).exp().sum(), ()) == x.nbytes + 8 * 4 * 4
    assert machine.bytes_kept(lambda: ((x @ w) @ w).sum(), (x,)) == w.nbytes + 8 * 4 * 4
    assert machine.bytes_kept(lambda: ((x @ w) @ w).sum(), (w,)) == x.nbytes + 8 * 4 * 4


@pytest.mark.parametrize(
    ("inner", "outer", "ranks", "expected"),
    [
        ("max 100000\n", "max 100000\n", 1, 8),
        ("250000 100000\n", "max 100000\n", 1, 2),
        ("400000 100000\n", "300000 100000\n", 1, 3),
        ("400000 100000\n", "max 100000\n", 2, 2),
        ("50000 100000\n", "max 100000\n", 1, 1),
        ("1600000 100000\n", "", 1, 8),
    ],
)
def test_threads_for_the_time_that_control_groups_give(
    inner: str, outer: str, ranks: int, expected: int, world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(machine, "_control_groups", lambda: [tmp_path / "job", tmp_path])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "cpu.max").write_text(inner)
    (tmp_path / "cpu.max").write_text(outer)
    assert machine.processors() == expected
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    Runtime.of(replace(tiny_recipe(world, tmp_path), device="cpu"))
    assert taken == [expected]
