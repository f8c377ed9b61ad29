"""A stage that has too little memory."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastdistill.batch import Batch
from fastdistill.checkpoint import Checkpoints
from fastdistill.data.packing import NO_LABEL, Loader, collate
from fastdistill.log import Log
from fastdistill.loop import train
from fastdistill.losses.objective import Objective
from fastdistill.models.encoder import Encoder
from fastdistill.recipe import Losses
from fastdistill.step import Step
from tests.loops import HARD, RUNTIME, load, logged, sequences, train_once
from tests.steps import room_for


def test_the_check_of_the_terms_makes_room_too(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that lacks in the very first pass; a resumed run knows it from its checkpoint."""
    student = load(world)
    room_for(40, Encoder, monkeypatch)
    train_once(tmp_path, student, HARD, 4)
    assert len(logged(tmp_path)) == 4


def test_memory_is_estimated_of_the_largest_batch_and_by_a_resumed_run_too(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the stopped run found out holds besides."""
    seen: list[tuple[list[int], float, bool]] = []
    make_room = Step.make_room

    def noted(self: Step, batch: Batch) -> None:
        before = self.most_tokens, self.recomputes
        make_room(self, batch)
        seen.append((batch.cu_seqlens.diff().tolist(), *before))

    monkeypatch.setattr(Step, "make_room", noted)
    monkeypatch.setattr(Loader, "largest", lambda self, padded: padded or collate(self.sequences, np.array([7])))
    runtime = replace(RUNTIME, save_steps=2)
    for steps, free in ((3, 0.0), (5, 1e12)):
        monkeypatch.setattr("fastdistill.step.free_bytes", lambda _, free=free: free)
        train_once(tmp_path, load(world), HARD, steps, runtime=runtime)
    length = sequences().lengths[7]
    assert seen == [([length], math.inf, False), ([length], length, True)]


@pytest.mark.parametrize("padded", [False, True])
def test_memory_is_estimated_with_the_padding_that_there_is(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, padded: bool
) -> None:
    asked: list[bool] = []
    largest = Loader.largest
    monkeypatch.setattr(Step, "padded", padded)
    monkeypatch.setattr(
        Loader, "largest", lambda self, with_padding: asked.append(with_padding) or largest(self, padded)
    )
    train_once(tmp_path, load(world), HARD, 1)
    assert asked == [padded]


def test_a_piece_without_a_label_does_not_make_a_loss_dead(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of tags that only the longest texts have, where memory has room for one text at a time."""
    tags = np.repeat(np.where(sequences().lengths == 8, 1, NO_LABEL), sequences().lengths)
    data = replace(sequences(), labels=None, token_labels=tags)
    student = Encoder.load(world / "teacher", head="fresh", kind="tagging", num_labels=2)
    objective = Objective(Losses(hard=1.0), (), student, None, kind="tagging")
    monkeypatch.setattr("fastdistill.step.free_bytes", lambda _: 0.0)
    with Log(tmp_path / "log.jsonl") as log:
        train(
            "x", HARD, student, None, objective, Loader(data, 60, seed=1), 2,
            runtime=RUNTIME, checkpoints=Checkpoints(tmp_path, "x"), log=log, validate=None,
        )  # fmt: skip
    assert len(logged(tmp_path)) == 2


def test_a_resumed_run_that_has_less_memory_goes_on_in_pieces(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Step] = []
    make_room = Step.make_room
    monkeypatch.setattr(Step, "make_room", lambda self, batch: found.append(self) or make_room(self, batch))
    for steps, free in ((3, 1e12), (5, 0.0)):
        monkeypatch.setattr("fastdistill.step.free_bytes", lambda _, free=free: free)
        train_once(tmp_path, load(world), HARD, steps, runtime=replace(RUNTIME, save_steps=2))
    assert [one.recomputes for one in found] == [False, True]
    assert found[0].most_tokens == math.inf
    assert found[1].most_tokens < 10
