"""The loop's parts: schedule, epoch ends, the meter, accumulation."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdistill import loop
from fastdistill.checkpoint import Checkpoints
from fastdistill.data.packing import Loader
from fastdistill.loop import Meter, epoch_ends, learning_rate
from fastdistill.losses.objective import Objective
from fastdistill.models.encoder import Encoder
from fastdistill.recipe import Losses, Optim
from fastdistill.step import make_optimizer
from tests.loops import HARD, RUNTIME, Spy, load, logged, sequences, train_once
from tests.steps import no_dropout


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
    with pytest.raises(FloatingPointError, match=rf"stage tad, step 24: the soft loss is {bad}"):
        meter.read("tad", last_step=25)


def weights_of(student: Encoder) -> list[Tensor]:
    return [p.detach().clone() for p in student.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_training_changes_the_student_and_lowers_the_loss(tmp_path: Path, world: Path) -> None:
    train_once(tmp_path, load(world), replace(HARD, tokens_per_batch=300), 60)
    losses = [r["losses"]["hard"] for r in logged(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]


def test_accumulated_step_is_the_step_on_the_mean_gradient(tmp_path: Path, world: Path) -> None:
    """Means over batches of their own: k accumulated batches give the gradient of the mean of their losses."""
    stage = replace(HARD, gradient_accumulation_steps=3, optim=Optim(max_grad_norm=0.0))
    by_hand, trained = no_dropout(load(world)), no_dropout(load(world))
    objective = Objective(Losses(hard=1.0), (), by_hand, None)
    batches = [batch for (_, batch), _ in zip(Loader(sequences(), 60, seed=1).batches(), range(3), strict=False)]
    losses = [objective(by_hand(batch, objective.student_taps), None, batch)[0] for batch in batches]
    torch.stack(losses).mean().backward()
    norm = float(nn.utils.get_total_norm([p.grad for p in by_hand.parameters() if p.grad is not None]))
    optimizer = make_optimizer(stage.optim, by_hand, objective)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(stage.optim, 0, 1)
    optimizer.step()
    progress = train_once(tmp_path, trained, stage, 1)
    for (name, expected), got in zip(by_hand.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(got, expected, msg=name)
    assert logged(tmp_path)[0]["gradient_norm"] == pytest.approx(norm, rel=1e-4)  # Adam's step would hide a factor
    assert progress.tokens == sum(batch.num_tokens for batch in batches)


def test_the_learning_rate_logged_is_the_one_applied(tmp_path: Path, world: Path) -> None:
    """Adam's first step moves every weight with a gradient by the learning rate, whatever the gradient's size."""
    stage = replace(HARD, optim=Optim(learning_rate=1e-3, weight_decay=0.0, warmup_ratio=0.5))
    student = no_dropout(load(world))
    before = student.model.get_submodule("classifier").weight.detach().clone()  # type: ignore[union-attr,operator]
    train_once(tmp_path, student, stage, 1)
    after = student.model.get_submodule("classifier").weight.detach()  # type: ignore[union-attr,operator]
    rate = learning_rate(stage.optim, 0, 1)
    assert [r["learning_rate"] for r in logged(tmp_path)] == [rate]
    torch.testing.assert_close((after - before).abs().max(), torch.tensor(rate), rtol=1e-3, atol=0)
    train_once(tmp_path / "more", load(world), stage, 8)
    assert [r["learning_rate"] for r in logged(tmp_path / "more")] == [
        learning_rate(stage.optim, n, 8) for n in range(8)
    ]


def test_gradients_are_clipped(tmp_path: Path, world: Path) -> None:
    """A norm far below Adam's epsilon leaves the weights where they are."""
    moved = []
    for norm in (0.0, 1e-14):
        student = load(world)
        before = weights_of(student)
        train_once(tmp_path / str(norm), student, replace(HARD, optim=Optim(max_grad_norm=norm, weight_decay=0.0)), 1)
        moved.append(max(float((a - b).abs().max()) for a, b in zip(weights_of(student), before, strict=True)))
    assert moved[0] > 1e-6
    assert moved[1] < 1e-9


def test_the_best_epoch_is_kept(tmp_path: Path, world: Path) -> None:
    seen: list[list[Tensor]] = []
    scores = [0.1, 0.9, 0.5, 0.2]

    def validate(encoder: Encoder) -> float:
        seen.append(weights_of(encoder))
        return scores[len(seen) - 1]

    loader = Loader(sequences(), 60, seed=1)
    per_epoch = [len(loader.plan(epoch)) for epoch in range(4)]
    student = load(world)
    progress = train_once(tmp_path, student, replace(HARD, keep="best"), sum(per_epoch), validate=validate)
    assert [r["step"] for r in logged(tmp_path, "validation")] == np.cumsum(per_epoch).tolist()
    assert same(weights_of(student), seen[1])
    assert not same(seen[1], seen[3])
    assert progress.best_score == 0.9


def test_validation_is_no_part_of_the_time_of_training(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()  # a second each time that it is looked at

    def validate(_: Encoder) -> float:
        for _ in range(10_000):
            next(clock)
        return 0.5

    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))
    progress = train_once(tmp_path, load(world), replace(HARD, keep="best"), 5, validate=validate)
    assert logged(tmp_path, "validation")
    assert 0 < progress.seconds < 1000


def test_the_last_step_is_kept_where_the_stage_says_so(tmp_path: Path, world: Path) -> None:
    student = load(world)
    train_once(tmp_path, student, HARD, 5, validate=lambda _: pytest.fail("validated"))
    assert logged(tmp_path, "validation") == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_student_trains_in_train_mode_and_in_the_precision_asked_for(
    tmp_path: Path, world: Path, dtype: torch.dtype
) -> None:
    student = load(world)
    spy = Spy(student)
    train_once(tmp_path, student, HARD, 3, runtime=replace(RUNTIME, dtype=dtype), spy=spy)
    assert {call[:2] for call in spy.calls} == {(True, dtype)}


def test_a_dead_term_stops_the_run_before_a_step(tmp_path: Path, world: Path) -> None:
    student = load(world).requires_grad_(False)
    with pytest.raises(ValueError, match="hard loss does not depend on the student"):
        train_once(tmp_path, student, HARD, 3)
    assert logged(tmp_path) == []


def test_the_guard_does_not_move_the_dropout_that_follows(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded, free = load(world), load(world)
    train_once(tmp_path / "a", guarded, HARD, 2)
    monkeypatch.setattr(loop, "check_alive", lambda *_: None)
    train_once(tmp_path / "b", free, HARD, 2)
    assert same(weights_of(guarded), weights_of(free))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interrupted_training_goes_on_to_the_bit(tmp_path: Path, world: Path, dtype: torch.dtype) -> None:
    """With accumulation, several epochs, the best one kept, and in bf16 too."""
    stage = replace(HARD, gradient_accumulation_steps=2, keep="best")
    runtime = replace(RUNTIME, dtype=dtype, save_steps=2)
    scores = {name: itertools.cycle([0.3, 0.8, 0.1, 0.2, 0.4]) for name in ("whole", "parts")}
    whole, first, second = load(world), load(world), load(world)
    train_once(tmp_path / "whole", whole, stage, 9, runtime=runtime, validate=lambda _: next(scores["whole"]))
    spy = Spy(first, fail_at=1 + 2 * 6 + 1)  # the guard's call, six steps, half a step
    parts, validate = tmp_path / "parts", lambda _: next(scores["parts"])
    with pytest.raises(KeyboardInterrupt):
        train_once(parts, first, stage, 9, runtime=runtime, spy=spy, validate=validate)
    assert Checkpoints(parts, "x").latest() is not None
    train_once(parts, second, stage, 9, runtime=runtime, validate=validate)
    assert same(weights_of(whole), weights_of(second))  # those of the best epoch, which was before the interruption
    losses = [[(r["step"], r["losses"], r["tokens"]) for r in logged(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_a_damaged_checkpoint_is_named(tmp_path: Path, world: Path) -> None:
    student = load(world)
    with pytest.raises(KeyboardInterrupt):
        train_once(tmp_path, student, HARD, 5, runtime=replace(RUNTIME, save_steps=2), spy=Spy(student, fail_at=4))
    (tmp_path / "x-00000002" / "optimizer.pt").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"checkpoint .*x-00000002 is damaged"):
        train_once(tmp_path, load(world), HARD, 5)


def test_weights_that_overflow_are_not_handed_on(tmp_path: Path, world: Path) -> None:
    stage = replace(HARD, optim=Optim(learning_rate=1e38, warmup_ratio=0.0, weight_decay=1e3, max_grad_norm=0.0))
    with pytest.raises(FloatingPointError, match=r"stage x, step 1: the .* is|weights are not finite"):
        train_once(tmp_path, load(world), stage, 1)
