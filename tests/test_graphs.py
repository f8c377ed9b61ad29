"""Recorded passes have the outcome of plain ones; here a stand-in runs them again on the graph's buffers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdistill import graphs, step
from fastdistill.checkpoint import Checkpoints
from fastdistill.data.packing import Loader, collate
from fastdistill.log import Log
from fastdistill.loop import train
from fastdistill.losses.objective import Objective
from fastdistill.models.encoder import Encoder
from fastdistill.models.teacher import Live
from fastdistill.recipe import Losses, Optim, Stage
from tests.steps import ALL, LACKING, give_out, no_dropout, text, whole_step
from tests.tiny import tiny_recipe

RATE = 2.0**-10  # the same number in float32, in which a graph reads it


def recording(world: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[step.Step, step.Step]:
    """A step as it is and one whose passes are recorded, by a stand-in that runs them again on the graph's buffers."""
    monkeypatch.setattr(graphs, "capture", lambda run, pool, warm_up=2: (run, pool))
    plain, ours = (whole_step(world, replace(ALL, patience=0.0, soft=0.0, hard=0.0))[0] for _ in range(2))
    for one in (plain, ours):
        one.max_grad_norm = 0.1
        for module in one.student.modules():
            if isinstance(module, torch.nn.Embedding):
                module.sparse = False  # as on a GPU
    ours.use_graphs(longest=20, most=3)
    return plain, ours


def assert_moved_alike(ours: step.Step, plain: step.Step) -> None:
    """But for the biases of keys, whose gradients are rounding errors of 0, of which AdamW makes steps of full size."""
    for (name, mine), theirs in zip(ours.student.named_parameters(), plain.student.parameters(), strict=True):
        if not name.endswith("key.bias"):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=name)
    for mine, theirs in zip(ours.objective.parameters(), plain.objective.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
def test_recorded_passes_have_the_same_outcome(world: Path, monkeypatch: pytest.MonkeyPatch, recomputes: bool) -> None:
    plain, ours = recording(world, monkeypatch)
    if recomputes:
        assert ours.recompute()
    data, written, norms = text(), [], []
    for rows in ([0, 1, 2], [3, 4]), ([5, 6, 9], [7, 0]), ([2, 1, 0], [4, 3]), ([8], [8]):
        batches = [collate(data, np.array(some)) for some in rows]
        values, found = (one.backward(batches) for one in (plain, ours))
        for name, value in values.items():
            torch.testing.assert_close(found[name], value, msg=name)
        for mine, theirs in zip(ours.parameters, plain.parameters, strict=True):
            if theirs.grad is None:
                assert mine.grad is None, "AdamW would let it decay"
            else:
                torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-7)
        norms.append((ours.update(RATE), plain.update(RATE)))
        written.append([p.grad for p in ours.parameters])
    for norm, expected in norms:  # also those of the first steps
        torch.testing.assert_close(norm, expected)
    for later in written:
        assert all(x is y for x, y in zip(later, written[0], strict=True)), "graphs write to where gradients were"
    assert any(x is not None for x in written[0])
    assert ours.graphs is not None
    assert sorted(ours.graphs.graphs) == [(2, 3), (16, 3), (18, 3), (21, 3)]
    assert ours.graphs.move is not None
    assert_moved_alike(ours, plain)


def test_pieces_are_not_recorded(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what a piece is a part, a graph would not know."""
    plain, ours = recording(world, monkeypatch)
    plain.most_tokens = ours.most_tokens = 14
    batches = [collate(text(), np.arange(7)), collate(text(), np.array([0, 2]))]
    values, found = (one.backward(batches) for one in (plain, ours))
    for name, value in values.items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert ours.graphs is not None
    assert list(ours.graphs.graphs) == [(7, 3)]


def test_dropout_of_recorded_passes_is_that_of_the_batch(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ours = recording(world, monkeypatch)
    for one in (plain, ours):
        one.student.train()
    # drawn for each token alone: attention is that of the padded places of a GPU, or of runs of sequences here
    for one in (plain, ours):
        one.student.model.config.attention_probs_dropout_prob = 0.0
        for module in one.student.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
    batch = replace(collate(text(), np.arange(10)), seed=5)
    expected = plain.backward([batch])
    for _ in range(3):
        torch.testing.assert_close(ours.backward([batch]), expected)


def test_a_bounded_number_of_graphs(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ours = recording(world, monkeypatch)
    assert ours.graphs is not None
    monkeypatch.setattr(graphs, "MOST", 2)
    for row in range(5):
        batches = [collate(text(), np.array([row]))] * 2
        for one in (plain, ours):
            one.backward(batches)
            one.update(RATE)
    assert len(ours.graphs.graphs) == 2
    assert_moved_alike(ours, plain)


def test_graphs_are_given_up_where_memory_lacks(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = recording(world, monkeypatch)
    batches = [collate(text(), np.arange(10))] * 2
    ours.backward(batches)
    give_out(monkeypatch, ours, 40, LACKING[0])
    ours.optimizer.zero_grad(set_to_none=False)
    ours.backward(batches)
    assert ours.graphs is None
    assert ours.most_tokens == 36
    assert ours.update(RATE).isfinite()


def test_graphs_that_were_given_up_are_not_recorded_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on from its checkpoint as it had come to it."""
    recorded: list[step.Step] = []
    use_graphs = step.Step.use_graphs

    def with_little_memory(self: step.Step, longest: int, most: int) -> None:
        use_graphs(self, longest, most)
        recorded.append(self)
        give_out(monkeypatch, self, 20, LACKING[0])

    monkeypatch.setattr(graphs, "capture", lambda run, pool, warm_up=2: (run, pool))
    monkeypatch.setattr(step.Step, "use_graphs", with_little_memory)
    losses = Losses(attention=1.0)
    runtime = step.Runtime(torch.device("cpu"), torch.float32, 1, 2, cuda_graphs=True)
    for steps in (5, 8):
        student, teacher = (Encoder.load(world / "teacher") for _ in range(2))
        objective = Objective(losses, ((2, 3), (4, 4)), student, teacher)
        with Log(tmp_path / "log.jsonl") as log:
            progress = train(
                "x", Stage(losses=losses), student, Live(teacher), objective, Loader(text(), 24, seed=1), steps,
                runtime=runtime, checkpoints=Checkpoints(tmp_path, "x"), log=log, validate=None,
            )  # fmt: skip
    assert progress.step == 8
    assert len(recorded) == 1
    assert recorded[0].lacks_room_for_graphs


def test_label_losses_are_not_recorded(world: Path) -> None:
    ours, said = whole_step(world, ALL)
    ours.use_graphs(longest=20, most=8)
    assert ours.graphs is None
    assert said[0].startswith("no CUDA graphs: they need a teacher that runs beside the student, models that run")


def test_cuda_graphs_want_a_gpu(world: Path, tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(world, tmp_path), device="cpu", cuda_graphs=True)
    with pytest.raises(ValueError, match="cuda_graphs is true, but the run is on the CPU: leave it out, or use a GPU"):
        step.Runtime.of(recipe)


def test_a_whole_stage_with_graphs(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches a step: the loop tells graphs how long and many sequences are."""
    recorded: list[graphs.Graphs] = []
    use_graphs = step.Step.use_graphs

    def as_on_a_gpu(self: step.Step, longest: int, most: int) -> None:
        for module in self.student.modules():
            if isinstance(module, torch.nn.Embedding):
                module.sparse = False
        use_graphs(self, longest, most)
        assert self.graphs is not None
        recorded.append(self.graphs)

    monkeypatch.setattr(graphs, "capture", lambda run, pool, warm_up=2: (run, pool))
    monkeypatch.setattr(step.Step, "use_graphs", as_on_a_gpu)
    losses = Losses(attention=1.0, hidden=1.0, embedding=1.0)
    stage = Stage(losses=losses, gradient_accumulation_steps=2, optim=Optim(learning_rate=1e-3))
    found, norms = [], []
    for fused in (False, True):
        folder = tmp_path / str(fused)
        folder.mkdir()
        torch.manual_seed(0)
        student, teacher = (Encoder.load(world / "teacher") for _ in range(2))
        no_dropout(student)
        objective = Objective(losses, ((2, 3), (4, 4)), student, teacher)
        runtime = step.Runtime(torch.device("cpu"), torch.float32, 1, 100, cuda_graphs=fused)
        with Log(folder / "log.jsonl") as log:
            train(
                "x", stage, student, Live(teacher), objective, Loader(text(), 24, seed=1), 12,
                runtime=runtime, checkpoints=Checkpoints(folder, "x"), log=log, validate=None,
            )  # fmt: skip
        steps = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        norms.append([step["gradient_norm"] for step in steps if step["event"] == "step"])
        found.append({n: p for n, p in student.named_parameters() if not n.endswith("key.bias")})
    ((one,),) = (recorded,)
    assert one.longest == 15
    assert one.most == max(map(len, Loader(text(), 24, seed=1).plan(0)))
    assert one.move is not None
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-5, msg=name)
