"""The memory benchmark: sizes double until a step fails, each in a process with a limit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
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


def test_a_limit_that_nothing_fits_into_is_felt(tmp_path: Path) -> None:
    """A process that may hold 50 MiB cannot even begin; what it says is kept."""
    found = memory.in_a_process("ours", Workload(data=tmp_path), 0.05, CPU)
    assert set(found) == {"failed"}
    assert found["failed"]


@pytest.mark.parametrize(
    ("option", "message"),
    [("--loops=ours,theirs", "--loops theirs: choose from published"), ("--data=/nowhere", "no data at /nowhere")],
)
def test_errors_name_the_value(option: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        memory.main(["--cpu", f"--data={tmp_path}", option])


def test_results_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "in_a_process", lambda *_: {"failed": "no memory"})
    out = tmp_path / "memory.json"
    memory.main(["--cpu", f"--data={tmp_path}", f"--out={out}"])
    written = json.loads(out.read_text())
    assert [(r["loop"], r["axis"], r["fits"]) for r in written["results"]] == [
        (loop, axis, 0) for axis in ("batch_size", "length") for loop in ("published", "compiled", "ours")
    ]
