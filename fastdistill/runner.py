"""START HERE: `run(recipe)` fine-tunes the teacher, distils stage by stage, trains the control and reports.

inputs -> teacher -> initial student -> for each stage: train, evaluate, hand on through its folder -> control -> report
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastdistill import ranks, report
from fastdistill.checkpoint import Checkpoints, Progress, publish, weights
from fastdistill.checks import check_values, plain
from fastdistill.data.packing import Loader
from fastdistill.evaluate import metric_of, predict, probe, score
from fastdistill.inputs import Inputs, load_inputs
from fastdistill.log import Log
from fastdistill.loop import train
from fastdistill.losses.objective import Objective
from fastdistill.memory import lacks_memory
from fastdistill.models.encoder import Encoder, Head
from fastdistill.models.layermap import LayerMap, format_layer_map, parse_layer_map
from fastdistill.models.pretrained import quiet
from fastdistill.models.teacher import Live
from fastdistill.recipe import Recipe, Stage
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
    quiet()
    recipe = plain(recipe)
    ranks.join()
    ranks.first(lambda: check_values(recipe))
    ranks.agree(lambda: check_workspace(recipe, resume=resume, overwrite=overwrite, from_stage=from_stage))
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
        for part, counts in inputs.data_counts().items():
            log.say(f"{part}: {', '.join(f'{what} {count}' for what, count in counts.items())}")
        return Runner(recipe, inputs, space, log, runtime).run()


def seed_of(seed: int, name: str) -> int:
    """The seed of a stage: other stages do not move it, so that a stage run alone is the same stage."""
    return zlib.crc32(f"{seed}/{name}".encode())


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
        folder = self.make_initial_student()
        for name, stage in self.recipe.stages.items():
            if not stage.skip:
                folder = self.distil(name, stage, start=folder)
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
            teacher = Encoder.load(self.recipe.teacher.finetuned, head="finetuned").to(self.runtime.device)
            ranks.agree(lambda: self._publish(folder, None, {}, {"name": "teacher", "score": self._score(teacher)}))
        elif not stage.skip:
            assert self.recipe.teacher.path is not None, "one of the two is named; inputs are checked"
            torch.manual_seed(seed_of(self.recipe.seed, "head"))
            teacher = Encoder.load(
                self.recipe.teacher.path, head="fresh", num_labels=self.inputs.num_labels, id2label=self.inputs.id2label
            )
            self._train("finetune", stage, teacher, None, folder)

    def make_initial_student(self) -> Path:
        """The student before any training; the control starts from it too."""
        folder = self.space.stage("init")
        if not ranks.agree(folder.exists):
            student, projections = self.inputs.student, self.inputs.projections
            ranks.agree(lambda: self._publish(folder, student, projections, {"name": "init"}))
        return folder

    def distil(self, name: str, stage: Stage, start: Path) -> Path:
        """One stage, from the student folder `start` to the folder it returns."""
        folder = self.space.stage(name)
        if not ranks.agree(folder.exists):
            student = self._load_student(start, stage)
            path, head = self.inputs.teacher_path(stage, self.space.teacher)
            teacher = Encoder.load(path, head=head) if path else None
            self._train(name, stage, student, teacher, folder, start)
        return folder

    def train_control(self) -> None:
        """The initial student on gold labels alone, for as many steps as the stages on task data took."""
        stage, folder = self.recipe.control, self.space.control
        steps = sum(r["steps"] for r in report.results(self.recipe, self.space) if r["data"] in ("task", "augmented"))
        if ranks.agree(folder.exists) or stage.skip or self.inputs.task is None or not steps:
            return
        student = self._load_student(self.space.stage("init"), stage)
        self._train("control", dataclasses.replace(stage, steps=steps, epochs=None), student, None, folder)

    def _load_student(self, folder: Path, stage: Stage) -> Encoder:
        """The student with the head that it has, or with a new one where the stage's losses need one."""
        head: Head = "none"
        if stage.losses.soft or stage.losses.hard:
            head = "fresh"
        if json.loads((folder / "result.json").read_text()).get("head", False):
            head = "finetuned"
        if head == "none":
            return Encoder.load(folder)
        torch.manual_seed(seed_of(self.recipe.seed, "head"))  # one for all: the control starts with the same head
        return Encoder.load(folder, head=head, num_labels=self.inputs.num_labels, id2label=self.inputs.id2label)

    def _train(
        self,
        name: str,
        stage: Stage,
        student: Encoder,
        teacher: Encoder | None,
        folder: Path,
        start: Path | None = None,
    ) -> None:
        """Train one job and publish its folder: weights, tokenizer, projections, result."""
        torch.manual_seed(seed_of(self.recipe.seed, name))
        layers: LayerMap = ()
        if teacher is not None:
            layers = parse_layer_map(stage.layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
            self.log.say(f"{name}: {format_layer_map(layers, student.num_hidden_layers, teacher.num_hidden_layers)}")
        regression = self.recipe.task.kind == "regression"
        objective = Objective(stage.losses, layers, student, teacher, regression=regression)
        if start is not None:
            _take_projections(objective, start)
        for module in (student, objective, teacher):
            if module is not None:
                module.to(self.runtime.device)
        if self.recipe.torch_compile:
            for who, encoder in (("student", student), ("teacher", teacher)):
                if encoder is not None and not encoder.compile_layers():
                    self.log.say(f"{name}: the {who} is not compiled, for this family's layers are not known")
        data = self.inputs.data(stage)
        loader = Loader(data, stage.tokens_per_batch, seed=seed_of(self.recipe.seed, name))
        steps = stage.steps or -(-loader.num_batches(stage.epochs or 1.0) // stage.gradient_accumulation_steps)
        checkpoints = Checkpoints(self.space.checkpoints, name)
        taught_by = self._taught_by(name, teacher, objective, loader, steps * stage.gradient_accumulation_steps)
        progress = train(
            name, stage, student, taught_by, objective, loader, steps,
            runtime=self.runtime, checkpoints=checkpoints, log=self.log,
            validate=self._validate if student.has_head else None,
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
            "score": self._score(student),
            "validation": progress.best_score,
            "head": student.has_head,
        }
        self._publish(folder, student, weights(objective), result)
        scored = (
            ""
            if result["score"] is None
            else f", {metric_of(self.recipe.task)} {result['score']:.4f}"
            + ("" if student.has_head else " (linear probe)")
        )
        self.log.say(f"{name}: {progress.step} steps, {progress.tokens:,} tokens, {progress.seconds:.0f} s{scored}")

    def _taught_by(
        self, name: str, teacher: Encoder | None, objective: Objective, loader: Loader, batches: int
    ) -> Live | Cached | None:
        """The teacher beside the student, or from files where it would be asked more than once."""
        if teacher is None:
            return None
        live = Live(teacher, self.runtime.teacher_dtype or self.runtime.dtype)
        epochs = batches / len(loader.plan(0))
        if not self.recipe.teacher_cache or epochs <= 1:
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

    def _validate(self, encoder: Encoder) -> float:
        task = self.inputs.task
        assert task is not None
        assert task.validation.labels is not None
        predictions = predict(encoder, task.validation, self.runtime.device)
        return score(metric_of(self.recipe.task), predictions, task.validation.labels, self.inputs.num_labels)

    def _score(self, encoder: Encoder) -> float | None:
        """The task score on the held-out rows; by a linear probe where there is no head."""
        task = self.inputs.task
        if task is None:
            return None
        if encoder.has_head:
            predictions = predict(encoder, task.test, self.runtime.device)
        else:
            predictions = probe(encoder, task.train, task.test, self.recipe.task, self.runtime.device)
        assert task.test.labels is not None
        return score(metric_of(self.recipe.task), predictions, task.test.labels, self.inputs.num_labels)

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


def _take_projections(objective: Objective, folder: Path) -> None:
    """Go on with the projections of the stage before, where they fit."""
    path = folder / "objective.safetensors"
    if path.exists():
        own = objective.state_dict()
        fitting = {k: v for k, v in load_file(path).items() if k in own and own[k].shape == v.shape}
        objective.load_state_dict(own | fitting)
