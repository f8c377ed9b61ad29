"""The loop's parts: schedule, decay groups, epoch ends, the meter, accumulation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastdistill.checkpoint import Checkpoints
from fastdistill.data.packing import Loader, Sequences
from fastdistill.log import Log
from fastdistill.loop import Meter, Runtime, epoch_ends, learning_rate, make_optimizer, train
from fastdistill.losses.objective import Objective
from fastdistill.models.encoder import Encoder
from fastdistill.recipe import Losses, Optim, Stage


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_learning_rate_rises_to_its_peak_and_falls_as_named(kind: str) -> None:
    optim = Optim(learning_rate=2.0, lr_scheduler_type=kind, warmup_ratio=0.2)  # type: ignore[arg-type]
    rates = [learning_rate(optim, step, 50) for step in range(50)]
    assert all(a < b for a, b in zip(rates[:10], rates[1:11], strict=True))
    assert rates[10] == max(rates) == 2.0
    middle = {"linear": 1.0, "cosine": 1.0, "constant": 2.0}[kind]
    assert rates[30] == pytest.approx(middle)
    assert rates[20] == pytest.approx({"linear": 1.5, "cosine": 1 + math.cos(math.pi / 4), "constant": 2.0}[kind])


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(Optim(learning_rate=3.0, warmup_ratio=0.0), 0, 10) == 3.0


def test_weight_decay_spares_biases_and_norms() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    decayed, spared = make_optimizer(Optim(weight_decay=0.3), model).param_groups
    assert {tuple(p.shape) for p in decayed["params"]} == {(5, 4), (4, 4)}
    assert [p.ndim for p in spared["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)


def sequences(count: int = 30) -> Sequences:
    lengths = np.random.default_rng(0).integers(3, 9, count)
    offsets = np.concatenate(([0], lengths.cumsum()))
    ids = np.random.default_rng(1).integers(5, 20, offsets[-1])
    return Sequences(ids, offsets, labels=np.random.default_rng(2).integers(0, 2, count))


def test_epoch_ends_are_where_the_loader_starts_the_next_epoch() -> None:
    loader, accumulate, steps = Loader(sequences(), 40, seed=3), 2, 9
    epochs = [epoch for (epoch, _), _ in zip(loader.batches(), range(steps * accumulate + 1), strict=False)]
    expected = {-(-n // accumulate) for n in range(1, len(epochs)) if epochs[n] != epochs[n - 1]} | {steps}
    assert epoch_ends(loader, steps, accumulate) == {e for e in expected if e <= steps}
    assert len(epoch_ends(loader, steps, accumulate)) > 2


def test_meter_gives_means_and_starts_again() -> None:
    meter = Meter()
    for value in (1.0, 2.0, 6.0):
        meter.add({"hidden": torch.tensor(value), "soft": torch.tensor(-value)})
    assert meter.read("gd", 3) == {"hidden": 3.0, "soft": -3.0}
    meter.add({"hidden": torch.tensor(5.0)})
    assert meter.read("gd", 4) == {"hidden": 5.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_meter_names_the_first_step_that_is_not_finite(bad: float) -> None:
    meter = Meter()
    for step in range(5):
        meter.add({"hidden": torch.tensor(1.0), "soft": torch.tensor(bad if step >= 3 else 0.0)})
    with pytest.raises(FloatingPointError, match=rf"stage tad, step 24: the soft is {bad}"):
        meter.read("tad", last_step=25)


RUNTIME = Runtime(torch.device("cpu"), torch.float32, logging_steps=1, save_steps=1000)


def train_once(tmp_path: Path, world: Path, stage: Stage, steps: int, **losses: float) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    student = Encoder.load(world / "teacher", head="fresh", num_labels=2)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    objective = Objective(Losses(hard=1.0), (), student, None)
    loader = Loader(sequences(), stage.tokens_per_batch, seed=1)
    tmp_path.mkdir(exist_ok=True)
    with Log(tmp_path / "log.jsonl") as log:
        train(
            "x", stage, student, None, objective, loader, steps,
            runtime=RUNTIME, checkpoints=Checkpoints(tmp_path, "x"), log=log, validate=None,
        )  # fmt: skip
    return {name: p.detach() for name, p in student.named_parameters()}


def test_training_changes_the_student_and_lowers_the_loss(tmp_path: Path, world: Path) -> None:
    import json

    stage = Stage(teacher="none", losses=Losses(hard=1.0), tokens_per_batch=300, optim=Optim(learning_rate=1e-2))
    train_once(tmp_path, world, stage, 30)
    losses = [json.loads(line)["losses"]["hard"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.7 * losses[0]


def test_accumulated_step_is_the_step_on_the_mean_gradient(tmp_path: Path, world: Path) -> None:
    """With plain means over equal batches, k accumulated batches give the gradient of their mean loss."""
    stage = Stage(
        teacher="none",
        losses=Losses(hard=1.0),
        tokens_per_batch=60,
        gradient_accumulation_steps=3,
        optim=Optim(max_grad_norm=0.0),
    )
    torch.manual_seed(0)
    student = Encoder.load(world / "teacher", head="fresh", num_labels=2).eval()
    objective = Objective(Losses(hard=1.0), (), student, None)
    batches = [batch for (_, batch), _ in zip(Loader(sequences(), 60, seed=1).batches(), range(3), strict=False)]
    losses = [objective(student(batch, objective.student_taps), None, batch)[0] for batch in batches]
    torch.stack(losses).mean().backward()
    optimizer = make_optimizer(stage.optim, student, objective)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(stage.optim, 0, 1)
    optimizer.step()
    trained = train_once(tmp_path / "run", world, stage, 1)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(trained[name], parameter.detach())


def test_runtime_follows_the_recipe(world: Path, tmp_path: Path) -> None:
    import dataclasses

    from tests.tiny import tiny_recipe

    recipe = tiny_recipe(world, tmp_path)
    assert Runtime.of(dataclasses.replace(recipe, device="cpu", precision="bf16")).dtype == torch.bfloat16
    assert Runtime.of(dataclasses.replace(recipe, device="cpu", precision="fp32")).dtype == torch.float32


def test_autocast_multiplies_in_bf16_and_keeps_the_weights() -> None:
    layer = nn.Linear(4, 4)
    with Runtime(torch.device("cpu"), torch.bfloat16, 1, 1).autocast():
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    with RUNTIME.autocast():
        assert layer(torch.ones(1, 4)).dtype == torch.float32
    assert layer.weight.dtype == torch.float32
