"""A stage of hard labels, trained as the runner does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdistill.batch import Batch
from fastdistill.checkpoint import Checkpoints, Progress
from fastdistill.data.packing import Loader, Sequences
from fastdistill.log import Log
from fastdistill.loop import train
from fastdistill.losses.objective import Objective
from fastdistill.models.capture import Captured
from fastdistill.models.encoder import Encoder
from fastdistill.recipe import Losses, Optim, Stage
from fastdistill.step import Runtime


def sequences(count: int = 30) -> Sequences:
    lengths = np.random.default_rng(0).integers(3, 9, count)
    offsets = np.concatenate(([0], lengths.cumsum()))
    ids = np.random.default_rng(1).integers(5, 20, offsets[-1])
    return Sequences(ids, offsets, labels=np.random.default_rng(2).integers(0, 2, count))


RUNTIME = Runtime(torch.device("cpu"), torch.float32, logging_steps=1, save_steps=1000)
HARD = Stage(teacher="none", losses=Losses(hard=1.0), tokens_per_batch=60, optim=Optim(learning_rate=1e-2))


class Spy(Objective):
    """The objective, which also notes how it was called, and raises before call number `fail_at`."""

    def __init__(self, student: Encoder, fail_at: int = -1) -> None:
        super().__init__(Losses(hard=1.0), (), student, None)
        self.student, self.calls, self.fail_at = [student], [], fail_at

    def forward(
        self, student: Captured, teacher: Captured | None, batch: Batch, whole: Batch | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        assert student.logits is not None
        self.calls.append((self.student[0].training, student.logits.dtype, batch.num_tokens))
        return super().forward(student, teacher, batch, whole)


def load(world: Path) -> Encoder:
    torch.manual_seed(0)
    return Encoder.load(world / "teacher", head="fresh", num_labels=2)


def train_once(
    folder: Path,
    student: Encoder,
    stage: Stage,
    steps: int,
    *,
    runtime: Runtime = RUNTIME,
    validate: Callable[[Encoder], float] | None = None,
    spy: Spy | None = None,
) -> Progress:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    with Log(folder / "log.jsonl") as log:
        return train(
            "x", stage, student, None, spy or Spy(student), Loader(sequences(), stage.tokens_per_batch, seed=1), steps,
            runtime=runtime, checkpoints=Checkpoints(folder, "x"), log=log, validate=validate,
        )  # fmt: skip


def logged(folder: Path, event: str = "step") -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [r for r in records if r["event"] == event]
