"""The one training loop: every stage, the teacher's fine-tuning and the control run through `train`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from fastdistill import ranks
from fastdistill.batch import ahead
from fastdistill.checkpoint import Checkpoints, Progress, TrainingState, weights
from fastdistill.data.packing import Loader
from fastdistill.log import Log
from fastdistill.losses.objective import Objective, check_alive
from fastdistill.models.encoder import Encoder
from fastdistill.models.teacher import Live
from fastdistill.recipe import Optim, Stage
from fastdistill.step import Runtime, Step
from fastdistill.teacher_cache import Cached


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """The learning rate of step `step` of `steps` (from 0): linear warm-up, then the schedule down to 0."""
    warmup = math.ceil(optim.warmup_ratio * steps)
    if step < warmup:
        return optim.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    factor = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}
    return optim.learning_rate * factor[optim.lr_scheduler_type]


def epoch_ends(loader: Loader, steps: int, accumulate: int) -> frozenset[int]:
    """The optimiser steps, up to `steps`, with which a pass over the data is complete; the last one always counts."""
    ends, batches, epoch = {steps}, 0, 0
    while batches < steps * accumulate:
        batches += len(loader.plan(epoch))
        epoch += 1
        ends.add(-(-batches // accumulate))
    return frozenset(end for end in ends if end <= steps)


def _not_finite(stage: str, step: int, what: str, value: str) -> str:
    return (
        f"stage {stage}, step {step}: the {what} {value}; training stopped, the last good checkpoint is kept. "
        f"Lower --{stage}.optim.learning_rate and continue with --resume"
    )


def _check_weights(stage: str, step: int, parameters: Iterable[Tensor]) -> None:
    if not all(p.isfinite().all() for p in parameters):
        raise FloatingPointError(_not_finite(stage, step, "weights are", "not finite"))


class Meter:
    """Term values of the steps since the last reading; they stay on the device until then."""

    def __init__(self) -> None:
        self.values: list[dict[str, Tensor]] = []

    def add(self, values: dict[str, Tensor]) -> None:
        self.values.append({name: value.detach().float() for name, value in values.items()})

    def read(self, stage: str, last_step: int) -> dict[str, float]:
        """Means over the interval that ended with `last_step`; one transfer from the device.

        Raises:
            FloatingPointError: a value is not finite; names the first such term, the stage and the step.
        """
        names = list(self.values[0])
        table = torch.stack([torch.stack([row[name] for name in names]) for row in self.values]).cpu()  # (steps, terms)
        bad = (~table.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            step = last_step - len(self.values) + 1 + row
            what = names[column] if names[column] in ("loss", "gradient norm") else f"{names[column]} loss"
            raise FloatingPointError(_not_finite(stage, step, f"{what} is", f"{table[row, column].item()}"))
        self.values = []
        return dict(zip(names, table.double().mean(0).tolist(), strict=True))


def _restore(state: TrainingState, found: Path) -> None:
    try:
        state.restore(found)
    except Exception as error:  # whatever a torn file may cause
        raise ValueError(f"the checkpoint {found} is damaged ({error}): delete it, then --resume") from error


def train(
    name: str,
    stage: Stage,
    student: Encoder,
    teacher: Live | Cached | None,
    objective: Objective,
    loader: Loader,
    steps: int,
    *,
    runtime: Runtime,
    checkpoints: Checkpoints,
    log: Log,
    validate: Callable[[Encoder], float] | None,
) -> Progress:
    """Train `student` (and the objective's projections) for `steps` optimiser steps, from the last checkpoint if any.

    Afterwards `student` holds the weights that the stage hands on. Of the batches of a step, rank r of w takes those
    numbered r, r + w, ...

    Raises:
        ValueError: a loss term is dead on the first batch.
        FloatingPointError: a loss or the gradient is not finite.
        OSError: a checkpoint could not be written.
    """
    step = Step(student, teacher, objective, stage, runtime, lambda text: log.say(f"{name}: {text}"))
    state = TrainingState(student, objective, step.optimizer, Progress())
    if found := ranks.agree(checkpoints.latest):
        ranks.first(partial(_restore, state, found))
        log.cut(state.progress.log_offset)
    else:
        log.forget(name)
    progress, meter = state.progress, Meter()
    step.most_tokens, step.lacks_room_for_graphs = progress.most_tokens, progress.lacks_room_for_graphs
    if progress.recomputes:
        step.recompute()
    accumulate = stage.gradient_accumulation_steps
    mine = loader.batches(start=progress.step * accumulate + ranks.rank(), stride=ranks.world_size())
    batches = ahead((batch for _, batch in mine), runtime.device)
    score_at = epoch_ends(loader, steps, accumulate) if validate and stage.keep == "best" else frozenset()
    log.stage(name, steps, progress.step)
    student.train()

    step.make_room(loader.largest(step.padded))
    if progress.step == 0:
        _, first = next(loader.batches())
        guard = partial(check_alive, lambda: step.forward(step.sample(first))[1], student)
        ranks.agree(partial(step.with_room, [first], guard))

    if runtime.cuda_graphs and not step.lacks_room_for_graphs:
        longest, most = int(loader.sequences.lengths.max()), max(map(len, loader.plan(0)))
        step.use_graphs(longest, most)

    clock, logged_seconds, tokens = time.perf_counter() - progress.seconds, progress.seconds, 0
    while progress.step < steps:
        now = list(islice(batches, accumulate // ranks.world_size()))
        totals = step.backward(now)
        tokens += sum(batch.num_tokens for batch in now)
        norm = step.update(learning_rate(stage.optim, progress.step, steps))
        meter.add(totals | {"gradient norm": norm})
        progress.step += 1

        last = progress.step == steps
        save = progress.step % runtime.save_steps == 0 and not last
        if last or save or progress.step % runtime.logging_steps == 0:
            means = ranks.first(partial(meter.read, name, progress.step))
            progress.seconds = time.perf_counter() - clock
            tokens = ranks.total(tokens)
            progress.tokens += tokens
            log.step(
                step=progress.step,
                tokens_per_second=tokens / (progress.seconds - logged_seconds),
                losses={term: means[term] for term in objective.weights},
                loss=means["loss"],
                gradient_norm=means["gradient norm"],
                learning_rate=learning_rate(stage.optim, progress.step - 1, steps),
                tokens=progress.tokens,
                seconds=progress.seconds,
            )
            logged_seconds, tokens = progress.seconds, 0
        paused = time.perf_counter()
        if validate and progress.step in score_at:
            score = ranks.agree(partial(validate, student))
            log.record(event="validation", stage=name, step=progress.step, score=score)
            if progress.best_score is None or score >= progress.best_score:
                progress.best_score, state.best = score, weights(student)
        if save or last:
            ranks.agree(partial(_check_weights, name, progress.step, step.parameters))
        if save:
            progress.log_offset = log.offset
            progress.most_tokens, progress.recomputes = step.most_tokens, step.recomputes
            progress.lacks_room_for_graphs = step.lacks_room_for_graphs
            ranks.agree(partial(checkpoints.save, state))
        clock += time.perf_counter() - paused
    log.end_stage()
    step.graphs = None  # which hold on to the step, and to memory
    if state.best is not None:
        student.load_state_dict(state.best)
    return progress
