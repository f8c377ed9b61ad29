"""An experiment as its YAML file describes it: strict keys, no code. Imports no torch."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from fastdistill import Corpus, Recipe, Student, Task
from fastdistill.parser import Parser


@dataclass(frozen=True)
class Trials:
    """The teacher and its fine-tuning on every task, by `recipes.finetune`.

    Args:
        path: pretrained encoder.
        learning_rates: tried on every task; the best on validation rows teaches.
        epochs: passes over the task's rows.
        tokens_per_batch: most real tokens of a step.
        seed: of all that chance decides, and of the rows that are set aside, for the methods too.
    """

    path: str
    learning_rates: tuple[float, ...]
    epochs: float = 3.0
    tokens_per_batch: int = 1024
    seed: int = 1


@dataclass(frozen=True)
class Budget:
    """What every method may spend, on whatever stages it has.

    Args:
        general_steps: optimiser steps on general text; a method without such stages takes none.
        general_tokens: most real tokens of such a step.
        task_steps: optimiser steps on the task's text, by task.
        task_tokens: most real tokens of such a step.
    """

    general_steps: int
    general_tokens: int
    task_steps: dict[str, int]
    task_tokens: int


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Args:
        recipe: module that holds the recipe as `RECIPE`, such as recipes.ernie_tiny.
        base: another method, of which this one is a variant, instead of a recipe.
        title: what the tables call it, default its key.
        overrides: options of its stages, of the student's initialisation and of the augmentation, nested as in the
            recipe's own YAML.
        shares: of a stage in the budget's steps, relative to the other stages on the same text; 1 where not given.
    """

    recipe: str | None = None
    base: str | None = None
    title: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Methods side by side.

    Args:
        rows: keys of the methods.
        seeds: of initialisation, data order and dropout; every row is run with each.
        against: the row that the others are compared with.
        students: keys of the students, default all.
        tasks: keys of the tasks, default all.
    """

    rows: tuple[str, ...]
    seeds: tuple[int, ...] = (1,)
    against: str = "control"
    students: tuple[str, ...] | None = None
    tasks: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Experiment:
    """A set of runs; all paths lie below the data folder, or are Hub ids.

    Args:
        teacher: the teacher and how it is fine-tuned.
        general: text without labels.
        tasks: labelled texts.
        students: shapes.
        budget: what every method may spend.
        learning_rates: of the last stage of every method, all tried; the one that is best on validation rows counts.
        methods: all that the tables compare.
        tables: which methods, with which seeds.
        common: options of every run: device, precision and the like.
    """

    teacher: Trials
    general: Corpus
    tasks: dict[str, Task]
    students: dict[str, Student]
    budget: Budget
    learning_rates: tuple[float, ...]
    methods: dict[str, Method]
    tables: dict[str, Table]
    common: dict[str, Any] = field(default_factory=dict)


COMMON = {
    "device", "precision", "torch_compile", "cuda_graphs", "teacher_cache", "verify_cache", "logging_steps",
    "save_steps",
}  # fmt: skip
# what may differ beside the stages, and how: all else would make rows unlike in more than their method
VARIED = {"student": {"init", "init_layers", "dropout"}, "task": {"augment"}}
BUDGETED = ("steps", "epochs", "tokens_per_batch", "gradient_accumulation_steps")


def read(path: Path) -> Experiment:
    """The experiment that a YAML file describes; what it does not say, the file beside it that it names as `base` does.

    Raises:
        ValueError: a key that there is not, or a value that it cannot have; names one, and the remedy.
        OSError: the file cannot be read.
    """
    parser = Parser(exit_on_error=False)
    parser.add_class_arguments(Experiment)
    try:
        values = _load(path)
        if (base := values.pop("base", None)) is not None:
            values = _load(path.parent / str(base)) | values
            if "base" in values:
                raise ValueError(f"its base {base} has a base of its own: name the file that has none")
        config = parser.instantiate(parser.parse_object(values))
        experiment = Experiment(**{f.name: getattr(config, f.name) for f in fields(Experiment)})
        _check(experiment)
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    return experiment


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; experiments are in {Path(__file__).parent}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    if not isinstance(values, dict):
        raise ValueError("it holds no options: give teacher, general, tasks, students, budget, methods and tables")
    return values


def recipe_of(method: Method) -> Recipe:
    """The recipe of a method's module.

    Raises:
        ValueError: there is no such module, or it holds no recipe.
    """
    try:
        recipe = import_module(str(method.recipe)).RECIPE
    except (ImportError, AttributeError) as error:
        raise ValueError(f"recipe {method.recipe} cannot be had ({error}): name a module that holds RECIPE") from None
    assert isinstance(recipe, Recipe)
    return recipe


def lineage(experiment: Experiment, key: str) -> list[Method]:
    """A method and what it is a variant of, the root first."""
    found: list[Method] = []
    while key:
        method = experiment.methods[key]
        if method in found:
            raise ValueError(f"method {key} is a variant of itself: give it a recipe")
        found.insert(0, method)
        key = method.base or ""
    return found


def _check(experiment: Experiment) -> None:
    for what in ("tasks", "students", "methods", "tables"):
        if not getattr(experiment, what):
            raise ValueError(f"{what} is empty: name one")
        for key in getattr(experiment, what):
            if not re.fullmatch(r"[\w.]+", key):
                raise ValueError(f"{what} has the key {key!r}: use letters, digits, _ and the full stop")
    for what, rates in (("teacher.", experiment.teacher.learning_rates), ("", experiment.learning_rates)):
        if not rates:
            raise ValueError(f"{what}learning_rates is empty: name one, or several to choose from")
        _once(f"{what}learning_rates", rates)
    positive = {f"teacher.learning_rates[{n}]": rate for n, rate in enumerate(experiment.teacher.learning_rates)} | {
        f"learning_rates[{n}]": rate for n, rate in enumerate(experiment.learning_rates)
    }
    positive |= {f"teacher.{name}": getattr(experiment.teacher, name) for name in ("epochs", "tokens_per_batch")}
    positive |= {f"budget.{name}": getattr(experiment.budget, name) for name in ("general_steps", "general_tokens")}
    positive |= {f"budget.task_steps.{name}": steps for name, steps in experiment.budget.task_steps.items()}
    for name, value in (positive | {"budget.task_tokens": experiment.budget.task_tokens}).items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value}: it must be above 0")
    for key, task in experiment.tasks.items():
        if task.split_seed is not None:
            raise ValueError(f"tasks.{key}.split_seed is {task.split_seed}, but teacher.seed decides: leave it out")
    _known("common", experiment.common, COMMON)
    _known("budget.task_steps", experiment.budget.task_steps, experiment.tasks)
    _known("tasks with steps in budget.task_steps", experiment.tasks, experiment.budget.task_steps)
    for key, table in experiment.tables.items():
        _known(f"tables.{key}.rows", table.rows, experiment.methods)
        _known(f"tables.{key}.against", [table.against], table.rows)
        _known(f"tables.{key}.students", table.students or (), experiment.students)
        _known(f"tables.{key}.tasks", table.tasks or (), experiment.tasks)
        if not table.seeds:
            raise ValueError(f"tables.{key}.seeds is empty: name one")
        _once(f"tables.{key}.seeds", table.seeds)
        _once(f"tables.{key}.rows", table.rows)
    for key, method in experiment.methods.items():
        _check_method(experiment, f"methods.{key}", key, method)


def _check_method(experiment: Experiment, name: str, key: str, method: Method) -> None:
    if (method.recipe is None) == (method.base is None):
        raise ValueError(f"{name} must have a recipe or a base, and not both")
    _known(f"{name}.base", [method.base] if method.base else [], experiment.methods)
    stages = recipe_of(lineage(experiment, key)[0]).stages
    _known(f"{name}.shares", method.shares, stages)
    _known(f"{name}.overrides", method.overrides, {*stages, *VARIED})
    for group, options in method.overrides.items():
        if not isinstance(options, dict):
            raise ValueError(f"{name}.overrides.{group} is {options!r}: it is a group of options")
        if group in VARIED:
            _known(f"{name}.overrides.{group}", options, VARIED[group])
        for option in BUDGETED:
            if option in options:
                raise ValueError(
                    f"{name}.overrides.{group}.{option} is {options[option]}, but the budget decides what a method may "
                    f"spend, the same for all: leave it out, and say by {name}.shares how its stages divide the steps"
                )
    for stage, share in method.shares.items():
        if not 0 < share < float("inf"):
            raise ValueError(f"{name}.shares.{stage} is {share}: it must be above 0")


def _once(name: str, values: Sequence[Any]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{name} has {value} twice: name each once")


def _known(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{name} has {key!r}: choose from {', '.join(sorted(known))}")
