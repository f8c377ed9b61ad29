"""Layers under torch.compile: the same outcome, from a bounded number of programs."""

from __future__ import annotations

import pytest
import torch
from encoders import make_batch, tiny_encoder
from torch._dynamo.utils import counters

from fastdistill.batch import Batch
from fastdistill.losses.objective import Objective, check_alive
from fastdistill.models.teacher import Live
from fastdistill.recipe import Losses, Stage
from fastdistill.step import Runtime, Step

LOSSES = Losses(attention=1.0, hidden=1.0, embedding=1.0)
BATCHES = [[9, 9, 30, 31], [4, 12], [3, 3, 3, 7, 7, 40], [50], [1, 2]]


def make_step(family: str, compiled: bool, dtype: torch.dtype = torch.float32) -> Step:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student, teacher = tiny_encoder(family, hidden_size=24, **dropout), tiny_encoder(family)
    if compiled:
        assert student.compile_layers()
        assert teacher.compile_layers()
    torch.manual_seed(0)
    objective = Objective(LOSSES, ((1, 1), (3, 3)), student, teacher)
    return Step(
        student.train(),
        Live(teacher, dtype),
        objective,
        Stage(losses=LOSSES),
        Runtime(torch.device("cpu"), torch.float32, 1, 1),
    )


def gradients(step: Step, batch: Batch) -> list[torch.Tensor | None]:
    step.optimizer.zero_grad()
    step.backward([batch])
    return [None if p.grad is None else p.grad.to_dense() for p in step.parameters]


@pytest.mark.filterwarnings("ignore")  # those of torch and of what it pickles
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_same_gradients_from_a_bounded_number_of_programs(family: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    plain, ours = make_step(family, compiled=False), make_step(family, compiled=True)
    made = []
    for lengths in BATCHES:
        batch = make_batch(lengths)
        for mine, theirs in zip(gradients(ours, batch), gradients(plain, batch), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        check_alive(lambda batch=batch: ours.forward(batch)[1], ours.student)
        made.append(counters["stats"]["unique_graphs"])
    assert len(set(made)) == 1, f"{made} programs after each batch: other sizes made new ones"
    assert made[0] <= 12


@pytest.mark.filterwarnings("ignore")
def test_a_packed_teacher_stays_as_it_is() -> None:
    torch._dynamo.reset()
    plain, ours = (make_step("bert", compiled, torch.bfloat16) for compiled in (False, True))
    batch = make_batch([9, 9, 30, 31])
    torch.testing.assert_close(ours.backward([batch]), plain.backward([batch]), rtol=1e-2, atol=1e-3)
