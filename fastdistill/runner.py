"""START HERE: `run(recipe)` fine-tunes the teacher, distils stage by stage, trains the control and reports.

inputs -> teacher -> initial student -> for each stage: train, evaluate, hand on through its folder -> control -> report
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastdistill import assistant, ranks, report
from fastdistill.checkpoint import Checkpoints, Progress, publish, take_fitting, weights
from fastdistill.checks import check_values, plain
from fastdistill.data.packing import Loader
from fastdistill.evaluate import EVALUATION_TOKENS, predict, probe
from fastdistill.inputs import Inputs, load_inputs
from fastdistill.log import Log
from fastdistill.loop import train
from fastdistill.losses.objective import Objective, read_layers
from fastdistill.machine import Portion, lacks_memory
from fastdistill.metrics import metrics_of, score, scores
from fastdistill.models.encoder import Encoder, Head
from fastdistill.models.layermap import LayerMap, format_layer_map, parse_layer_map
from fastdistill.models.pretrained import quiet
from fastdistill.models.student import copy_head
from fastdistill.models.teacher import Ensemble, Live
from fastdistill.recipe import HeadKind, Recipe, Stage
from fastdistill.roles import max_length
from fastdistill.step import Runtime
from fastdistill.teacher_cache import Cached, cached
from fastdistill.workspace import Workspace, check_workspace, open_workspace


def run(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, from_stage: str | None = None
) -> report.Report:
    """Run `recipe` and return its report, which also lies in its output directory.

    Args:
        recipe: the whole run, as a value.
        resume: continue the run that lies in the output directory; the outcome is the same to the bit.
        overwrite: delete the run that lies in the output directory first.
        from_stage: start at this stage, from the folder that the stage before it left in the output directory.

    Raises:
        ValueError: the recipe, the data or the models do not fit; raised before anything is trained or written.
        FloatingPointError: a loss became NaN or infinite; the last good checkpoint is kept.
        OSError: something could not be read or written; the last good checkpoint is kept.
    """
    with opened(recipe, resume=resume, overwrite=overwrite, from_stage=from_stage) as runner:
        return runner.run()


@contextmanager
def opened(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, from_stage: str | None = None
) -> Iterator[Runner]:
    """What `run` runs, all of it checked and its output directory held; with an assistant, that has been distilled."""
    quiet()
    recipe = plain(recipe)
    ranks.join()
    ranks.first(lambda: check_values(recipe))
    told: list[str] = []
    if recipe.assistant is None:
        ranks.agree(lambda: check_workspace(recipe, resume=resume, overwrite=overwrite, from_stage=from_stage))
    else:
        recipe, told = assistant.distil(recipe, run, resume=resume, overwrite=overwrite, from_stage=from_stage)
    runtime = ranks.first(lambda: Runtime.of(recipe))
    inputs = ranks.first(lambda: load_inputs(recipe))
    space = Workspace.of(recipe)
    with ExitStack() as held:

        def enter() -> None:
            held.enter_context(space.lock())
            open_workspace(space, recipe, inputs.fingerprint, overwrite=overwrite, from_stage=from_stage)

        ranks.agree(enter)
        log = held.enter_context(Log(space.log if ranks.rank() == 0 else None))
        log.say(runtime.describe(recipe.precision))
        for line in (*told, *inputs.said):
            log.say(line)
        for part, counts in inputs.data_counts().items():
            log.say(f"{part}: {', '.join(f'{what} {count}' for what, count in counts.items())}")
        yield Runner(inputs.recipe, inputs, space, log, runtime)


def seed_of(seed: int, name: str) -> int:
    """The seed of a stage: other stages do not move it, so that a stage run alone is the same stage."""
    return zlib.crc32(f"{seed}/{name}".encode())


WITHOUT_POOLER = ("masked", "tagging", "span")  # kinds of heads, under which a model is saved without


@dataclass
class Runner:
    """The steps of a run; each leaves a folder, which rank 0 writes, and is passed over where that folder is there."""

    recipe: Recipe
    inputs: Inputs
    space: Workspace
    log: Log
    runtime: Runtime

    def run(self) -> report.Report:
        """All of them, in order."""
        self.finetune_teacher()
        folder = self.train_student()
        self.train_control()

        def close() -> report.Report:
            shutil.rmtree(self.space.checkpoints)
            return report.write(self.recipe, self.inputs, self.space, self.log, folder, self.runtime.device)

        return ranks.agree(close)

    def finetune_teacher(self) -> None:
        """Stage 0: the teacher learns the task, or shows that it already has."""
        stage, task, folder = self.recipe.finetune, self.inputs.task, self.space.teacher
        if ranks.agree(folder.exists) or task is None:
            return
        if self.recipe.teacher.finetuned is not None:
            teacher = self.inputs.load_headed(self.recipe.teacher.finetuned).to(self.runtime.device)
            ranks.agree(lambda: self._publish(folder, None, {}, {"name": "teacher", **self._scored(teacher)}))
        elif not stage.skip:
            assert self.recipe.teacher.path is not None, "one of the two is named; inputs are checked"
            teacher = self._load_headed(self.recipe.teacher.path, "fresh", self.inputs.kind)
            self._train("finetune", stage, teacher, [], folder)

    def train_student(self) -> Path:
        """The distillation stages, from the initial student to the folder of the last."""
        folder = self.make_initial_student()
        for name, stage in self.recipe.stages.items():
            if not stage.skip:
                folder = self.distil(name, stage, start=folder)
        return folder

    def make_initial_student(self) -> Path:
        """The student before any training; the control starts from it too."""
        folder = self.space.stage("init")
        if not ranks.agree(folder.exists):
            ranks.agree(lambda: self._publish(folder, self.inputs.student, self.inputs.projections, {"name": "init"}))
        return folder

    def distil(self, name: str, stage: Stage, start: Path) -> Path:
        """One stage, from the student folder `start` to the folder it returns."""
        folder = self.space.stage(name)
        if not ranks.agree(folder.exists):
            teachers = self.inputs.load_teachers(stage, self.space.teacher)
            self._train(name, stage, self._load_student(start, stage), teachers, folder, start)
        return folder

    def train_control(self) -> None:
        """The initial student on gold labels alone, for as many steps as the stages on task data took."""
        stage, folder = self.recipe.control, self.space.control
        steps = sum(r["steps"] for r in report.results(self.recipe, self.space) if r["data"] in ("task", "augmented"))
        if ranks.agree(folder.exists) or stage.skip or self.inputs.task is None or not steps:
            return
        student = self._load_student(self.space.stage("init"), stage)
        self._train("control", dataclasses.replace(stage, steps=steps, epochs=None), student, [], folder)

    def _load_student(self, folder: Path, stage: Stage) -> Encoder:
        """The student with the head that it has, or with a new one where the stage's losses need another.

        A head that predicts masked words starts from that of the pretrained teacher, where it has one, as far as
        widths agree.
        """
        has = json.loads((folder / "result.json").read_text()).get("head")
        needs = self.inputs.head(stage) if stage.losses.soft or stage.losses.hard else has
        if needs is None:
            return Encoder.load(folder)
        student = self._load_headed(folder, "finetuned" if needs == has else "fresh", needs)
        if has in WITHOUT_POOLER and needs not in WITHOUT_POOLER:  # as it was before the head over tokens
            initial = load_file(self.space.stage("init") / "model.safetensors")
            pooler = {name: weight for name, weight in initial.items() if name.startswith("pooler.")}
            student.model.base_model.load_state_dict(pooler, strict=False)
        if needs == "masked" != has and self.inputs.masked_head is not None:
            copy_head(Encoder.load(self.inputs.masked_head, head="finetuned", kind=needs), student)
        return student

    def _load_headed(self, path: str | Path, head: Head, kind: HeadKind) -> Encoder:
        torch.manual_seed(seed_of(self.recipe.seed, "head"))  # one for all: the control starts with the same head
        if kind == "masked":
            return Encoder.load(path, head=head, kind=kind)
        names = self.inputs.id2label
        return Encoder.load(path, head=head, kind=kind, num_labels=self.inputs.num_labels, id2label=names)

    def _train(
        self,
        name: str,
        stage: Stage,
        student: Encoder,
        teachers: list[Encoder],
        folder: Path,
        start: Path | None = None,
    ) -> None:
        """Train one job and publish its folder: weights, tokenizer, projections, result."""
        torch.manual_seed(seed_of(self.recipe.seed, name))
        layers: LayerMap = ()
        teacher = teachers[0] if teachers else None
        if teacher is not None:
            layers = parse_layer_map(stage.layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
            if read := read_layers(stage.losses, layers):
                self.log.say(f"{name}: {format_layer_map(read, student.num_hidden_layers, teacher.num_hidden_layers)}")
        length = max_length(self.recipe, stage)
        objective = Objective(stage.losses, layers, student, teacher, kind=self.inputs.head(stage), max_length=length)
        if start is not None:
            take_fitting(objective, start / "objective.safetensors")  # projections
        for module in (*teachers, objective, student):
            module.to(self.runtime.device)
        if self.recipe.torch_compile:
            for who, encoder in (*(("teacher", one) for one in teachers), ("student", student)):
                if not encoder.compile_layers():
                    self.log.say(f"{name}: the {who} is not compiled, for this family's layers are not known")
        loader = self.inputs.loader(stage, seed_of(self.recipe.seed, name))
        steps = stage.steps or -(-loader.num_batches(stage.epochs or 1.0) // stage.gradient_accumulation_steps)
        checkpoints = Checkpoints(self.space.checkpoints, name)
        taught_by = self._taught_by(name, stage, teachers, objective, loader, steps)
        if isinstance(taught_by, Cached):
            teachers.clear()  # the teacher has said all, and what it takes of memory is the student's now
            del teacher
        progress = train(
            name, stage, student, taught_by, objective, loader, steps,
            runtime=self.runtime, checkpoints=checkpoints, log=self.log,
            validate=self._validate if self._knows_task(student) else None,
        )  # fmt: skip
        ranks.agree(lambda: self._hand_on(name, stage, student, objective, progress, folder))
        ranks.agree(checkpoints.clear)

    def _hand_on(
        self, name: str, stage: Stage, student: Encoder, objective: Objective, progress: Progress, folder: Path
    ) -> None:
        """Publish the folder of a job that has been trained, and say how it went."""
        result = {
            "name": name,
            "teacher": stage.teacher,
            "data": stage.data,
            "steps": progress.step,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 2),
            "tokens_per_second": round(progress.tokens / progress.seconds, 1),
            "losses": report.first_and_last(self.space.log, name),
            **self._scored(student),
            "validation": progress.best_score,
            "head": student.kind,
        }
        self._publish(folder, student, weights(objective), result)
        scored = ""
        if result["score"] is not None:
            probed = "" if self._knows_task(student) else " (linear probe)"
            scored = f", {metrics_of(self.recipe.task)[0]} {result['score']:.4f}{probed}"
        self.log.say(f"{name}: {progress.step} steps, {progress.tokens:,} tokens, {progress.seconds:.0f} s{scored}")

    def _taught_by(
        self, name: str, stage: Stage, teachers: list[Encoder], objective: Objective, loader: Loader, steps: int
    ) -> Live | Cached | None:
        """The teacher beside the student, or from files where it would be asked more than once."""
        if not teachers:
            return None
        dtype, weights = self.runtime.teacher_dtype or self.runtime.dtype, self.recipe.teacher.weights
        if len(teachers) == 1:
            live = Live(teachers[0], dtype, dropout=stage.teacher_dropout)
        else:
            live = Ensemble(teachers, weights or [1.0] * len(teachers), dtype, dropout=stage.teacher_dropout)
        epochs = steps * stage.gradient_accumulation_steps / len(loader.plan(0))
        if not self.recipe.teacher_cache or epochs <= 1:
            return live
        if loader.masking is not None or stage.teacher_dropout:
            why = "every batch hides other words" if loader.masking is not None else "the teacher's dropout is on"
            self.log.say(f"{name}: no teacher cache, for {why}")
            return live
        folder = Path(self.recipe.cache_dir).expanduser() / "teacher"
        ask = partial(
            cached, folder, live, loader.sequences, objective.teacher_taps,
            tokens_per_batch=loader.tokens_per_batch, epochs=epochs, verify=self.recipe.verify_cache,
            say=lambda text: self.log.say(f"{name}: {text}"),
        )  # fmt: skip
        try:
            return ranks.first(ask)
        except (OSError, RuntimeError, MemoryError) as error:
            if not isinstance(error, OSError) and not lacks_memory(error):
                raise
            self.log.say(f"{name}: no teacher cache ({error}); the teacher runs beside the student")
            return live

    def _knows_task(self, encoder: Encoder) -> bool:
        """Whether it has the task's head."""
        return self.inputs.task is not None and encoder.kind == self.inputs.kind

    @cached_property
    def portion(self) -> Portion:
        """What is evaluated at once."""
        return Portion(EVALUATION_TOKENS, self.log.say)

    def _validate(self, encoder: Encoder) -> float:
        task = self.inputs.task
        assert task is not None
        assert task.validation.gold is not None
        predictions = predict(encoder, task.validation, self.runtime.device, self.portion)
        return score(metrics_of(self.recipe.task)[0], predictions, task.validation.gold)

    def _scored(self, encoder: Encoder) -> dict[str, Any]:
        """All scores of the task on the held-out rows, and the one that choices are made by; by a linear probe where
        there is no head for it, and none where there is no task or a probe cannot tell."""
        task = self.inputs.task
        found: dict[str, float] = {}
        if task is None or (self.inputs.kind == "span" and not self._knows_task(encoder)):
            return {"score": None, "scores": {}}
        metrics = metrics_of(self.recipe.task)
        for name, data in {"": task.test, **task.more}.items():
            if self._knows_task(encoder):
                predictions = predict(encoder, data, self.runtime.device, self.portion)
            else:
                predictions = probe(encoder, task.train, data, self.runtime.device, self.portion)
            assert data.gold is not None
            values = scores(metrics, predictions, data.gold)
            found |= {f"{metric}, {name}" if name else metric: value for metric, value in values.items()}
        return {"score": found[metrics[0]], "scores": found}

    def _publish(
        self, folder: Path, encoder: Encoder | None, projections: dict[str, Tensor], result: dict[str, object]
    ) -> None:
        def write(to: Path) -> None:
            if encoder is not None:
                encoder.model.save_pretrained(to)
                # a fast tokenizer remembers the truncation of its last call, and would save it
                self.inputs.tokenizer.backend_tokenizer.no_truncation()
                self.inputs.tokenizer.save_pretrained(to)
            if projections:
                save_file(projections, to / "objective.safetensors")
            (to / "result.json").write_text(json.dumps(result, indent=1))

        publish(folder, write)
