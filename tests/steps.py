"""A step over all loss terms, on a few short sequences, and memory that gives out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdistill import step
from fastdistill.batch import Batch
from fastdistill.data.packing import Sequences
from fastdistill.losses.objective import Objective
from fastdistill.models.capture import Captured, Taps
from fastdistill.models.encoder import Encoder
from fastdistill.models.teacher import Live
from fastdistill.recipe import Losses, Stage
from fastdistill.step import Runtime

ALL = Losses(
    attention=1.0,
    hidden=0.5,
    embedding=2.0,
    relation=0.3,
    relation_heads=2,
    patience=0.4,
    cosine=0.6,
    soft=1.0,
    hard=0.7,
)
LACKING = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("could not create a primitive"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError("Unable to allocate 9 bytes"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: operation failed due to a previous error during capture"),
]
LACKING[-1].__context__ = LACKING[0]  # as torch.cuda.graph leaves it


def text() -> Sequences:
    lengths = np.array([3, 9, 4, 12, 9, 5, 7, 15, 2, 6])
    offsets = np.concatenate(([0], lengths.cumsum()))
    ids = np.random.default_rng(0).integers(5, 20, offsets[-1])
    return Sequences(ids, offsets, labels=np.arange(10) % 2)


def whole_step(world: Path, losses: Losses, teacher_dtype: torch.dtype = torch.float32) -> tuple[step.Step, list[str]]:
    """A step over all loss terms, and what it says."""
    torch.manual_seed(0)
    teacher = Encoder.load(world / "teacher", head="fresh", num_labels=2)
    student = Encoder.load(world / "teacher", head="fresh", num_labels=2).eval()  # no dropout
    with torch.no_grad():  # no term of two models that are alike shows what it divides by
        for weight in student.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    objective = Objective(losses, ((2, 3), (4, 4)), student, teacher, max_length=20)
    said: list[str] = []
    runtime = Runtime(torch.device("cpu"), torch.float32, 1, 1)
    return step.Step(student, Live(teacher, teacher_dtype), objective, Stage(losses=losses), runtime, said.append), said


def no_dropout(encoder: Encoder) -> Encoder:
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return encoder


def give_out(monkeypatch: pytest.MonkeyPatch, ours: step.Step, most: int, error: RuntimeError) -> None:
    """As if memory had room for `most` tokens, and that were found out in the backward pass."""
    forward = ours.forward

    def limited(batch: Batch, whole: Batch | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, values = forward(batch, whole)
        if batch.num_tokens > most:
            (17 * loss).backward(retain_graph=True)
            raise error
        return loss, values

    monkeypatch.setattr(ours, "forward", limited)


def room_for(most: int, kind: type[Encoder] | type[Live], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if memory had room for `most` tokens in a forward pass."""
    forward: Any = kind.forward

    def limited(self: Any, batch: Batch, taps: Taps) -> Captured:
        if batch.num_tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, taps)

    monkeypatch.setattr(kind, "forward", limited)
