"""The loop's parts: schedule, epoch ends, the meter, accumulation."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdistill import loop
from fastdistill.batch import Batch
from fastdistill.checkpoint import Checkpoints, Progress
from fastdistill.data.packing import Loader, Sequences, collate
from fastdistill.log import Log
from fastdistill.loop import Meter, epoch_ends, learning_rate, train
from fastdistill.losses.objective import Objective
from fastdistill.models.capture import Captured, Taps
from fastdistill.models.encoder import Encoder
from fastdistill.recipe import Losses, Optim, Stage
from fastdistill.step import Runtime, Step, make_optimizer
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
    with pytest.raises(FloatingPointError, match=rf"stage tad, step 24: the soft loss is {bad}"):
        meter.read("tad", last_step=25)


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


def test_the_check_of_the_terms_makes_room_too(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that lacks in the very first pass; a resumed run knows it from its checkpoint."""
    forward = Encoder.forward

    def limited(self: Encoder, batch: Batch, taps: Taps) -> Captured:
        if batch.num_tokens > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, taps)

    student = load(world)
    monkeypatch.setattr(Encoder, "forward", limited)
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
