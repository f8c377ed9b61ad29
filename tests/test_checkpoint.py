"""Folders appear whole or not at all; a training state comes back exactly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdistill.checkpoint import HOST, Checkpoints, Progress, TrainingState, publish, sweep, weights


def test_publish_writes_and_replaces(tmp_path: Path) -> None:
    for text in ("one", "two"):
        publish(tmp_path / "a", lambda to, text=text: (to / "f").write_text(text))  # type: ignore[misc]
        assert (tmp_path / "a" / "f").read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_failed_publish_leaves_what_was_there(tmp_path: Path) -> None:
    publish(tmp_path / "a", lambda to: (to / "f").write_text("good") and None)

    def fail(to: Path) -> None:
        (to / "f").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"a could not be written.*No space left.*--resume"):
        publish(tmp_path / "a", fail)
    assert (tmp_path / "a" / "f").read_text() == "good"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_process_was_writing_is_deleted(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    (tmp_path / "shard").mkdir()
    names = [
        "logits",
        f".logits.{HOST}.{os.getpid()}.tmp",
        f".logits.elsewhere.{killed.pid}.tmp",
        f".logits.{HOST}.{10**20}.tmp",
        f".logits.{HOST}.none.tmp",
        f".logits.{HOST}.{killed.pid}.tmp",
    ]
    for name in names:
        (tmp_path / "shard" / name).touch()
    sweep(tmp_path)
    assert sorted(p.name for p in (tmp_path / "shard").iterdir()) == sorted(names[:-1])


def make_state(seed: int) -> TrainingState:
    torch.manual_seed(seed)
    student, objective = nn.Linear(3, 3), nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([*student.parameters(), *objective.parameters()], lr=0.1)
    return TrainingState(student, objective, optimizer, Progress())


def step(state: TrainingState) -> None:
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(state.progress.step))  # as a batch's dropout
    state.objective(state.student(noise)).square().mean().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.progress.step += 1


def test_restored_state_goes_on_to_the_bit(tmp_path: Path) -> None:
    state = make_state(0)
    step(state)
    state.best = weights(state.student)
    state.progress.best_score = 0.1 + 0.2
    Checkpoints(tmp_path, "gd").save(state)
    step(state)
    step(state)

    other = make_state(1)
    found = Checkpoints(tmp_path, "gd").latest()
    assert found is not None
    other.restore(found)
    assert (other.progress.step, other.progress.best_score) == (1, 0.1 + 0.2)
    assert other.best is not None
    assert all(torch.equal(other.best[name], state.best[name]) for name in state.best)
    step(other)
    step(other)
    for mine, theirs in ((state.student, other.student), (state.objective, other.objective)):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


def test_options_of_the_optimiser_are_those_of_the_run_that_goes_on(tmp_path: Path) -> None:
    state, other = make_state(0), make_state(0)
    step(state)
    Checkpoints(tmp_path, "gd").save(state)
    for group in other.optimizer.param_groups:
        group["weight_decay"] = 50.0
    found = Checkpoints(tmp_path, "gd").latest()
    assert found is not None
    other.restore(found)
    assert [group["weight_decay"] for group in other.optimizer.param_groups] == [50.0]
    assert other.optimizer.state_dict()["state"].keys() == state.optimizer.state_dict()["state"].keys()


def test_only_the_newest_checkpoint_of_the_stage_is_kept_and_found(tmp_path: Path) -> None:
    checkpoints, other = Checkpoints(tmp_path, "gd"), Checkpoints(tmp_path, "ged")
    assert checkpoints.latest() is None
    for number in (9, 10, 100):
        state = make_state(0)
        state.progress.step = number
        checkpoints.save(state)
    other.save(make_state(0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gd-00000100", "ged-00000000"]
    checkpoints.clear()
    assert [p.name for p in tmp_path.iterdir()] == ["ged-00000000"]


def test_half_written_checkpoint_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / ".gd-00000004.tmp").mkdir()
    assert Checkpoints(tmp_path, "gd").latest() is None
