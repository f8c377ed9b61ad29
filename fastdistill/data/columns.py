"""A task completed: what its name defines, and what its columns leave no doubt about."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from difflib import get_close_matches
from itertools import combinations
from typing import Any

from fastdistill.data.classes import MISSING
from fastdistill.data.rows import open_splits, splits_named
from fastdistill.data.source import Source, joined, local_files
from fastdistill.recipe import Kind, Task
from fastdistill.tasks import TASKS

PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("text_a", "text_b"),
)
TEXTS = ("text", "sentence", "tokens")
LABELS = ("label", "labels")
TAGS = ("ner_tags", "tags")
SIZES: dict[str, Any] = {"max_length": 128, "validation_size": 500, "test_size": 1000}


def complete(task: Task) -> tuple[Task, str | None]:
    """The task with every option that its text and labels need, and what was found in the data, to be said.

    Options that are given stay as they are; then comes what the definition of the task's name says; then what the
    columns and the values in them tell. A task without path or name stays without columns.

    Raises:
        ValueError: the name is unknown and there is no path; the columns can be read in several ways, or in none; one
            is named twice.
    """
    task = _defined(task)
    task = replace(task, **{option: size for option, size in SIZES.items() if getattr(task, option) is None})
    if task.path is None and task.name is None:
        return replace(task, kind=task.kind or "classification"), None
    said = None
    if task.text is None or task.label is None or task.kind is None:
        train = train_split(task, open_splits(task))
        task = _found(task, train)
        columns = f"{task.text}{f' and {task.pair}' if task.pair else ''}"
        said = f"task: {task.kind}, texts from {columns}, labels from {task.label}, as the columns say"
    if task.kind == "span" and task.pair is None:
        raise ValueError("task.pair is not set: of a span task it names the column of the context")
    names = ("text", "pair", "label")
    given = {name: column for name in names if (column := getattr(task, name)) is not None}
    for one, other in combinations(given, 2):
        if given[one] == given[other]:
            raise ValueError(f"task.{one} and task.{other} are both {given[one]!r}: name the column of each")
    if task.group is not None and task.kind != "classification":
        raise ValueError(f"task.group ranks rows by their class, this task is of kind {task.kind}: leave it out")
    if task.kind == "span":
        assert task.max_length is not None
        task = replace(task, doc_stride=task.max_length // 4 if task.doc_stride is None else task.doc_stride)
    return task, said


def train_split(task: Task, sources: dict[str, Source]) -> Source:
    """What a task is trained on: of its splits train, or all parts of it, such as train_1 and train_2, joined.

    Raises:
        ValueError: there is no split of that name, or its parts have not the same columns.
    """
    found = splits_named(sources, "train")
    if not found:
        raise ValueError(f"{task.path} has no train split, only {', '.join(sources)}; add a file named train")
    return joined(list(found.values()))


def _defined(task: Task) -> Task:
    """With what the definition that `task.name` selects says of the options that are left out."""
    if task.name is None:
        return task
    if task.name not in TASKS:
        if task.path is None or local_files(task.path):
            near = get_close_matches(task.name, TASKS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            otherwise = "leave it out, or " if task.path else "without task.path "
            raise ValueError(f"task.name is {task.name!r}: {otherwise}choose one of {', '.join(TASKS)}{hint}")
        return replace(task, configuration=task.configuration or task.name)
    definition = TASKS[task.name]
    if task.path is not None and task.path != definition.path:
        definition = replace(definition, configuration=None)  # which belongs to its path
    options = [f.name for f in fields(Task) if getattr(task, f.name) is None]
    return replace(task, **{option: getattr(definition, option) for option in options})


def _found(task: Task, source: Source) -> Task:
    """With the columns and the kind that the data says."""
    readings = _readings(task, source.columns)
    if len(readings) != 1:
        raise ValueError(
            f"{source.where} has the columns {', '.join(source.columns)}, and "
            + ("several of them may be" if readings else "none of them is surely")
            + " the text and its label; set task.text, task.label, and task.pair where there is one"
        )
    text, pair, label = readings[0]
    texts, labels = (
        next(source.read(column, option=option))[column]
        for column, option in ((text, "task.text"), (label, "task.label"))
    )
    kind = task.kind or _kind(label, texts, labels, named=task.label_names is not None)
    return replace(task, text=text, pair=pair, label=label, kind=kind)


def _readings(task: Task, columns: list[str]) -> list[tuple[str, str | None, str]]:
    """The ways to read these columns as text, second text and label."""
    here = set(columns)
    if task.text is not None:
        texts: list[tuple[str, str | None]] = [(task.text, task.pair)]
    elif {"question", "context", "answers"} <= here:
        texts = [("question", "context")]
    else:
        texts = [pair for pair in PAIRS if here.issuperset(pair)]
        paired = {column for pair in texts for column in pair}
        texts += [(column, task.pair) for column in TEXTS if column in here - paired]
    readings = []
    for text, pair in texts:
        known = ("answers",) if pair == "context" else (*TAGS, *LABELS) if text == "tokens" else LABELS
        labels = [task.label] if task.label else [column for column in known if column in here]
        readings += [(text, pair, label) for label in labels]
    return readings


def _kind(column: str, texts: list[Any], labels: list[Any], *, named: bool) -> Kind:
    """What labels like these are; decided by their column, the first rows, and whether somebody named classes."""
    kinds = {type(label) for label in labels}
    if dict in kinds or column == "answers":
        return "span"
    if list in kinds:
        return "tagging" if column in TAGS or any(isinstance(text, list) for text in texts) else "multilabel"
    numbers = [_number(label) for label in labels]
    if not named and None not in numbers and any(number % 1 for number in numbers if number is not None):
        return "regression"
    return "classification"


def _number(label: Any) -> float | None:
    """Its value, 0 where the label is missing; None where it is something else."""
    if label is None or str(label).strip().casefold() in MISSING:
        return 0.0
    try:
        return 0.0 if math.isnan(number := float(label)) else number
    except (TypeError, ValueError):
        return None
