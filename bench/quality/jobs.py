"""The jobs of an experiment: the teachers, the stages that several runs share, the runs. Imports no torch.

A job's folder ends with a digest of its recipe and of the jobs that it starts from. Whoever changes the experiment gets
other jobs, and those that it leaves as they were stay done. Defaults and code are not in the digest: whoever changes
what they come to begins with an empty work folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from glob import glob
from itertools import accumulate, pairwise, takewhile
from pathlib import Path
from typing import Any, Literal

from bench.quality.config import VARIED, Experiment, Method, lineage, recipe_of
from fastdistill import Augment, Corpus, Recipe, Stage, Student, Task, Teacher
from fastdistill.cli import overridden

GENERAL = ("general", "masked")  # what stages read that has no labels of the task
INDIFFERENT = ("teacher_cache", "verify_cache", "logging_steps", "save_steps", "finetune", "control")  # of no outcome
FINETUNE = Method(recipe="recipes.finetune")


@dataclass(frozen=True, eq=False)
class Job:
    """A piece of work that is done whole or not at all, and goes on where it was interrupted.

    Args:
        name: such as ernie_tiny/4x384/rte/1: method, student, task, seed.
        kind: trial = a last stage with one learning rate, a method's or the teacher's fine-tuning; run, teacher = the
            best of the trials; part = stages that come before the last one.
        recipe: with paths below the data folder, and models of other jobs by their folder; None where there is nothing
            to train.
        needs: the trials to choose from; of the others the teacher and the part that it starts from, where there are.
        row, student, task, seed: what it is of; empty and 0 where it is of none.
    """

    name: str
    kind: Literal["trial", "teacher", "part", "run"]
    recipe: Recipe | None
    needs: tuple[Job, ...] = ()
    row: str = ""
    student: str = ""
    task: str = ""
    seed: int = 0

    @cached_property
    def folder(self) -> str:
        """Where it lies below the folder of all jobs."""
        recipe = told(self.recipe)
        if recipe is not None:
            recipe = {name: value for name, value in recipe.items() if name not in INDIFFERENT}
        decisive = json.dumps([recipe, [need.folder for need in self.needs]])  # stages in their order, all else in ours
        return f"{self.name}-{hashlib.sha256(decisive.encode()).hexdigest()[:8]}"

    @property
    def model(self) -> str:
        """Where the model lies that it hands on."""
        return f"{self.folder}/model"

    @property
    def steps(self) -> dict[str, int]:
        """Optimiser steps on general text and on the task's, with those of the parts that it starts from."""
        if self.recipe is None:
            return self.needs[0].steps
        taken = {"general": 0, "task": 0}
        for stage in self.recipe.stages.values():
            taken["general" if stage.data in GENERAL else "task"] += stage.steps or 0  # the teacher counts epochs
        for part in self.parts:
            taken = {text: steps + part.steps[text] for text, steps in taken.items()}
        return taken

    @property
    def learning_rate(self) -> float:
        """What a trial tries."""
        assert self.recipe is not None
        (stage,) = self.recipe.stages.values()
        return stage.optim.learning_rate

    @property
    def parts(self) -> list[Job]:
        """The jobs whose students this one goes on with."""
        return [need for need in self.needs if need.kind == "part"]


def told(value: Any) -> Any:
    """`value` as JSON, of dataclasses what is not the default: options that are added later do not change it."""
    if is_dataclass(value):
        return {
            f.name: told(getattr(value, f.name))
            for f in fields(value)
            if getattr(value, f.name) != (f.default_factory() if f.default_factory is not MISSING else f.default)
        }
    if isinstance(value, dict):
        return {key: told(inner) for key, inner in value.items()}
    return [told(inner) for inner in value] if isinstance(value, (tuple, list)) else value


def all_jobs(experiment: Experiment) -> list[Job]:
    """What the tables need: the teachers and the runs, in the order in which they are best done.

    Raises:
        ValueError: a method's options do not fit its recipe, or the budget is too small for its stages.
    """
    teachers = {key: teacher(experiment, key) for key in experiment.tasks}
    rows = {key: Row.of(experiment, key) for table in experiment.tables.values() for key in table.rows}
    runs: dict[str, Job] = {}
    for table in experiment.tables.values():
        for seed in table.seeds:
            for student in table.students or experiment.students:
                for task in table.tasks or experiment.tasks:
                    for key in table.rows:
                        job = run_of(experiment, rows[key], student, task, seed, teachers[task])
                        runs[job.name] = job
    return [*teachers.values(), *runs.values()]


def chosen(jobs: Iterable[Job], pattern: str) -> list[Job]:
    """The jobs whose names `pattern` fits."""
    return [job for job in jobs if fnmatch(job.name, pattern)]


def teacher(experiment: Experiment, task: str) -> Job:
    """The choice of the teacher of a task among its trials."""
    spec = experiment.teacher
    finetune = overridden(recipe_of(FINETUNE), experiment.common)
    ((name, stage),) = finetune.stages.items()
    trials = []
    for rate in spec.learning_rates:
        tried = replace(
            stage,
            epochs=spec.epochs,
            tokens_per_batch=spec.tokens_per_batch,
            optim=replace(stage.optim, learning_rate=rate),
        )
        recipe = replace(
            finetune,
            teacher=Teacher(path=spec.path),
            task=replace(experiment.tasks[task], augment=Augment()),
            stages={name: tried},
            seed=spec.seed,
        )
        trials.append(Job(f"teacher/{task}/{rate:g}", "trial", recipe, task=task, seed=spec.seed))
    return Job(f"teacher/{task}", "teacher", None, tuple(trials), task=task, seed=spec.seed)


@dataclass(frozen=True)
class Row:
    """A method, ready to be given a student and a task.

    Args:
        key: what the experiment calls it.
        recipe: with the common options and its own; the stages that are skipped are left out.
        varied: the options of the student and of the task that are its own, by group.
        shares: of its stages in the steps.
    """

    key: str
    recipe: Recipe
    varied: dict[str, set[str]]
    shares: dict[str, float]

    @classmethod
    def of(cls, experiment: Experiment, key: str) -> Row:
        methods = lineage(experiment, key)
        recipe = recipe_of(methods[0])
        try:
            for options in (experiment.common, *(method.overrides for method in methods)):
                recipe = overridden(recipe, options) if options else recipe
        except ValueError as error:
            raise ValueError(f"method {key}: {error}") from None
        stages = {name: stage for name, stage in recipe.stages.items() if not stage.skip}
        last = next(reversed(stages), "")
        if not last or stages[last].data in GENERAL or not (stages[last].losses.soft or stages[last].losses.hard):
            raise ValueError(
                f"method {key}: its last stage must learn labels of the task, or there is nothing to score"
            )
        if stages[last].keep != "best":
            raise ValueError(
                f"method {key}: {last}.keep is {stages[last].keep}, but rates are chosen by scores on validation "
                "rows: set it to best"
            )
        if masked := [name for name, stage in stages.items() if stage.data == "masked"]:
            raise ValueError(
                f"method {key}: {masked[0]}.data is masked, but students are handed on through folders, and those with "
                "a head for masked words have no pooler: set it to general, or leave the stage out"
            )
        if any("learning_rate" in method.overrides.get(last, {}).get("optim", {}) for method in methods):
            raise ValueError(
                f"method {key}: {last}.optim.learning_rate is given, but all of learning_rates are tried for the last "
                "stage of every method: leave it out"
            )
        varied = {group: {name for m in methods for name in m.overrides.get(group, ())} for group in VARIED}
        shares = {name: share for method in methods for name, share in method.shares.items()}
        return cls(key, replace(recipe, stages=stages), varied, shares)


def run_of(experiment: Experiment, row: Row, student: str, task: str, seed: int, taught_by: Job) -> Job:
    """A method on a task: the best of its trials.

    These start from the stages before the last one, which methods share that have the same: first those that do not
    know the task, then the others.
    """
    recipe = resolved(experiment, row, student, task, seed)
    recipe = replace(recipe, teacher=replace(recipe.teacher, finetuned=taught_by.model))
    needs = [taught_by]
    stages = list(recipe.stages.items())
    (last, final), before = stages[-1], stages[:-1]
    general = list(takewhile(lambda item: item[1].data in GENERAL and item[1].teacher != "finetuned", before))
    if general:
        alone = staged(replace(recipe, teacher=Teacher(path=recipe.teacher.path), task=Task()), general)
        part = Job(f"general/{student}/{seed}", "part", alone, student=student, seed=seed)
        recipe, needs = replace(recipe, student=Student(path=part.model)), [taught_by, part]
    if others := before[len(general) :]:
        part = Job(
            f"before/{student}/{task}/{seed}", "part", staged(recipe, others), tuple(needs), "", student, task, seed
        )
        recipe, needs = replace(recipe, student=Student(path=part.model)), [taught_by, part]
    name, trials = f"{row.key}/{student}/{task}/{seed}", []
    for rate in experiment.learning_rates:
        tried = replace(final, optim=replace(final.optim, learning_rate=rate))
        one = staged(recipe, [(last, tried)])
        trials.append(Job(f"{name}/{rate:g}", "trial", one, tuple(needs), row.key, student, task, seed))
    return Job(name, "run", None, tuple(trials), row.key, student, task, seed)


def staged(recipe: Recipe, stages: list[tuple[str, Stage]]) -> Recipe:
    """`recipe` with these stages, and with general text and an augmentation only where one of them reads it."""
    read = {stage.data for _, stage in stages}
    task = recipe.task if "augmented" in read else replace(recipe.task, augment=Augment())
    general = recipe.general if read & set(GENERAL) else Corpus()
    return replace(recipe, stages=dict(stages), general=general, task=task)


def resolved(experiment: Experiment, row: Row, student: str, task: str, seed: int) -> Recipe:
    """The recipe of a method with all that the experiment says; the teacher is yet to be fine-tuned."""
    own = {
        group: {name: getattr(getattr(row.recipe, group), name) for name in names}
        for group, names in row.varied.items()
    }
    recipe = replace(
        row.recipe,
        teacher=Teacher(path=experiment.teacher.path),
        student=replace(experiment.students[student], **own["student"]),
        general=experiment.general,
        task=replace(experiment.tasks[task], split_seed=experiment.teacher.seed, **own["task"]),
        finetune=replace(row.recipe.finetune, skip=True),
        control=replace(row.recipe.control, skip=True),
        seed=seed,
    )
    try:
        return budgeted(recipe, experiment, row.shares, task)
    except ValueError as error:
        raise ValueError(f"method {row.key}: {error}") from None


def budgeted(recipe: Recipe, experiment: Experiment, shares: dict[str, float], task: str) -> Recipe:
    """`recipe` with the steps and batches that the budget allows: the same for every method."""
    budget = experiment.budget
    stages = dict(recipe.stages)
    for general, steps, tokens in (
        (True, budget.general_steps, budget.general_tokens),
        (False, budget.task_steps[task], budget.task_tokens),
    ):
        names = [name for name, stage in stages.items() if (stage.data in GENERAL) == general]
        parts = [shares.get(name, 1.0) for name in names]
        ends = [round(steps * end / sum(parts)) for end in accumulate(parts)]
        for name, (begin, end) in zip(names, pairwise([0, *ends]), strict=True):
            if begin == end:
                raise ValueError(
                    f"{steps} steps leave none for stage {name}, for the stages share them as {parts}: enlarge the "
                    "budget or its share"
                )
            stages[name] = replace(
                stages[name], steps=end - begin, epochs=None, tokens_per_batch=tokens, gradient_accumulation_steps=1
            )
    return replace(recipe, stages=stages)


def with_needs(jobs: Iterable[Job]) -> list[Job]:
    """`jobs` and all that they start from, each once, needs first."""
    found: dict[str, Job] = {}
    for job in jobs:
        found |= {need.folder: need for need in with_needs(job.needs)} | {job.folder: job}
    return list(found.values())


def read_by(jobs: Iterable[Job]) -> set[str]:
    """What the jobs and those that they start from read below the data folder, of the Hub, or of other jobs."""
    found: set[str | None] = set()
    for recipe in (job.recipe for job in with_needs(jobs) if job.recipe is not None):
        augment = recipe.task.augment
        found |= {recipe.teacher.path, recipe.student.path, recipe.general.path, recipe.task.path}
        found |= {augment.model, augment.vectors}
    return {path for path in found if path}


def lying_at(path: Path) -> list[Path]:
    """What there is at `path`, or matches it as a glob."""
    return [path] if path.exists() else sorted(map(Path, glob(str(path), recursive=True)))


def placed(recipe: Recipe, *, data: Path, models: Path, output_dir: Path, cache_dir: Path) -> Recipe:
    """`recipe` with its paths made absolute; those that nothing lies at below `data` are Hub ids."""

    def below(folder: Path, path: str | None) -> str | None:
        return str(folder / path) if path and (folder == models or lying_at(folder / path)) else path

    own = models if recipe.student.path and (models / recipe.student.path).exists() else data  # a part's, or given
    augment = recipe.task.augment
    augment = replace(augment, model=below(data, augment.model), vectors=below(data, augment.vectors))
    return replace(
        recipe,
        teacher=replace(
            recipe.teacher,
            path=below(data, recipe.teacher.path),
            finetuned=below(models, recipe.teacher.finetuned),
        ),
        student=replace(recipe.student, path=below(own, recipe.student.path)),
        general=replace(recipe.general, path=below(data, recipe.general.path)),
        task=replace(recipe.task, path=below(data, recipe.task.path), augment=augment),
        output_dir=str(output_dir),
        cache_dir=str(cache_dir),
    )
