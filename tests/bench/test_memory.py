"""The memory benchmark: sizes double until a step fails, each in a process with a limit."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import memory
from bench.workload import Workload

CPU = torch.device("cpu")


def test_sizes_double_until_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def fits_to_20(name: str, work: Workload, *_: object) -> dict[str, Any]:
        tried.append(work.batch_size)
        return {"failed": "no memory"} if work.batch_size > 20 else {"peak_mib": 1.0, "said": []}

    monkeypatch.setattr(memory, "in_a_process", fits_to_20)
    found = memory.grow("ours", replace(Workload(), batch_size=4), "batch_size", 1000, 4.0, CPU)
    assert tried == [4, 8, 16, 32]
    assert found["fits"] == 16
    assert memory.line(found).split() == ["ours", "batch_size", "16", "then:", "no", "memory"]
    bounded = memory.grow("ours", replace(Workload(), batch_size=4), "batch_size", 8, 4.0, CPU)
    assert bounded["fits"] == 8
    assert "no more was tried" in memory.line(bounded)


def test_a_limit_that_nothing_fits_into_is_felt(texts: Path) -> None:
    """A process that may hold 50 MiB cannot even begin; what it says is kept."""
    found = memory.in_a_process("ours", Workload(text="wiki", blocks=True, data=texts), 0.05, CPU)
    assert set(found) == {"failed"}
    assert found["failed"]


@pytest.mark.parametrize(
    ("status", "said", "found"),
    [
        (1, "RuntimeError: DefaultCPUAllocator: can't allocate memory: 8 bytes", "failed"),
        (1, "MemoryError", "failed"),
        (1, "torch.OutOfMemoryError: CUDA out of memory.", "failed"),
        (1, "MemoryError\nDuring handling of the above exception\nRuntimeError: no kernel", "failed"),
        (1, "OSError: [Errno 12] Cannot allocate memory", "failed"),
        (1, "libgomp: Thread creation failed: Resource temporarily unavailable", "failed"),
        (-9, "ended by signal 9", "failed"),
        (1, "AssertionError: Torch not compiled with CUDA enabled", "error"),
        (3, "ended with status 3", "error"),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors(
    status: int, said: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = SimpleNamespace(returncode=status, stderr="" if said.startswith("ended") else f"Traceback\n{said}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert memory.in_a_process("ours", Workload(), 4.0, CPU) == {found: said.splitlines()[-1]}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--loops=ours,theirs", "--loops theirs: choose from published"),
        ("--data=/nowhere", "no data at /nowhere"),
        ("--longest=8", "--longest 8: must be --length 128, which is tried first, or more"),
        ("--most=4", "--most 4: must be --batch_size 8, which is tried first, or more"),
        ("--limit_gib=-1", "--limit_gib -1.0: must be more than 0"),
        ("--limit_gib=nan", "--limit_gib nan: must be more than 0"),
        ("--limit_gib=inf", "--limit_gib inf: must be more than 0, and finite"),
    ],
)
def test_errors_name_the_value(option: str, message: str, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(memory, "in_a_process")  # before any work
    with pytest.raises(SystemExit, match=message):
        memory.main(["--cpu", f"--data={texts}", option])


def test_results_are_written(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "in_a_process", lambda *_: {"failed": "no memory"})
    out = texts / "memory.json"
    memory.main(["--cpu", f"--data={texts}", f"--out={out}"])
    written = json.loads(out.read_text())
    assert [(r["loop"], r["axis"], r["fits"]) for r in written["results"]] == [
        (loop, axis, 0) for axis in ("batch_size", "length") for loop in ("published", "compiled", "ours")
    ]


def test_an_error_ends_the_program_and_keeps_what_was_found(
    texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks_at_16(name: str, work: Workload, *_: object) -> dict[str, Any]:
        if name == "compiled" and work.batch_size == 16:
            return {"error": "no compiler"}
        return {"failed": "no memory"} if work.batch_size > 20 else {"peak_mib": 1.0, "said": []}

    monkeypatch.setattr(memory, "in_a_process", breaks_at_16)
    out = texts / "memory.json"
    with pytest.raises(SystemExit, match="error: compiled, batch_size 16: no compiler"):
        memory.main(["--cpu", f"--data={texts}", f"--out={out}"])
    published, compiled = json.loads(out.read_text())["results"]
    assert (published["fits"], compiled["fits"]) == (16, 8)
    assert compiled["tries"][-1] == {"batch_size": 16, "error": "no compiler"}
    assert "then: no compiler" in capsys.readouterr().out
