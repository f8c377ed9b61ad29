"""A step on a GPU: no waiting for the device, batches copied ahead, the losses of the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastdistill.batch import Batch, ahead
from fastdistill.data.packing import Loader, Sequences
from fastdistill.losses.objective import Objective
from fastdistill.models.encoder import Encoder
from fastdistill.models.teacher import Live
from fastdistill.recipe import Losses, Stage
from fastdistill.step import Runtime, Step

LOSSES = Losses(attention=1.0, hidden=1.0, embedding=1.0, relation=1.0, relation_heads=2, soft=1.0, hard=1.0)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def loader() -> Loader:
    lengths = np.random.default_rng(0).integers(3, 30, 200)
    offsets = np.concatenate(([0], lengths.cumsum()))
    ids = np.random.default_rng(1).integers(5, 20, offsets[-1])
    return Loader(Sequences(ids, offsets, labels=np.arange(200) % 2), 256, seed=0)


def drawn(device: torch.device, count: int) -> list[Batch]:
    batches = ahead((batch for _, batch in loader().batches()), device)
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def make_step(world: Path, device: torch.device, dtype: torch.dtype, losses: Losses = LOSSES) -> Step:
    torch.manual_seed(0)
    teacher, student = (Encoder.load(world / "teacher", head="fresh", num_labels=2).to(device) for _ in range(2))
    objective = Objective(losses, ((2, 3), (4, 4)), student, teacher).to(device)
    return Step(student, Live(teacher, dtype), objective, Stage(losses=losses), Runtime(device, dtype, 1, 1))


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=gpu)])
def test_batches_copied_ahead_are_the_loaders(kind: str) -> None:
    device = torch.device(kind)
    for (_, expected), got in zip(loader().batches(), drawn(device, 30), strict=False):
        assert got.input_ids.device.type == kind
        for name in ("input_ids", "position_ids", "token_type_ids", "cu_seqlens", "labels"):
            assert torch.equal(getattr(got, name).cpu(), getattr(expected, name))
        assert got.indices is not None
        assert np.array_equal(got.indices, expected.indices)


def test_the_last_of_finitely_many_batches_is_not_lost() -> None:
    batches = [batch for (_, batch), _ in zip(loader().batches(), range(3), strict=False)]
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        assert [b.num_tokens for b in ahead(iter(batches), torch.device(device))] == [b.num_tokens for b in batches]


@gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_ten_steps_never_wait_for_the_device(world: Path) -> None:
    device = torch.device("cuda")
    step, batches = make_step(world, device, torch.bfloat16), drawn(device, 13)
    for batch in batches[:3]:  # which compile the kernels
        step.backward([batch])
        step.update(1e-4)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for batch in batches[3:]:
            step.backward([batch])
            step.update(1e-4)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
@pytest.mark.filterwarnings("ignore")  # those of torch.compile
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", ["graphs", "compiled"])
def test_launched_as_one_or_compiled_the_outcome_is_the_same(world: Path, dtype: torch.dtype, how: str) -> None:
    latent = Losses(attention=1.0, hidden=1.0, embedding=1.0)
    found = []
    for fast in (False, True):
        step = make_step(world, torch.device("cuda"), dtype, latent)
        step.student.eval()  # no dropout
        if fast and how == "graphs":
            step.use_graphs(longest=29, most=max(map(len, loader().plan(0))))
        elif fast:
            assert step.student.compile_layers()
            assert step.teacher.encoder.compile_layers()
        for batch in drawn(torch.device("cuda"), 20):
            values = step.backward([batch])
            found.append(torch.stack([*values.values(), step.update(1e-3)]).cpu())
        recorded = step.graphs is not None and len(step.graphs.graphs) > 0 and step.graphs.move is not None
        assert recorded is (fast and how == "graphs")
    plain, ours = torch.stack(found[:20]), torch.stack(found[20:])
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)


@gpu
def test_losses_are_those_of_the_cpu(world: Path) -> None:
    found = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        step, values = make_step(world, device, torch.float32), []
        step.student.eval()  # no dropout
        for batch in drawn(device, 5):
            values.append({name: float(value) for name, value in step.backward([batch]).items()})
            step.update(1e-4)
        found.append(values)
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
