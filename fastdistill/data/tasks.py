"""Labelled text of a task: its splits, tokenised, and where each of them came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from fastdistill.data.labels import class_indices, distinct_names, is_hidden, regression_targets
from fastdistill.data.packing import Sequences
from fastdistill.data.source import Source, from_files, from_hub, local_files, split_of
from fastdistill.data.tokenise import check_tokenizer, truncate_examples
from fastdistill.recipe import Task


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task, ready to train on.

    Args:
        train: what the models learn from.
        validation: what choices are made on.
        test: what the reported figures come from; never the rows that choices were made on.
        label_names: class names by index; None for regression.
        origins: for train, validation and test the split of the data that it was taken from, for the report.
        rows: the text of train.
    """

    train: Sequences
    validation: Sequences
    test: Sequences
    label_names: tuple[str, ...] | None
    origins: Mapping[str, str]
    rows: Rows


@dataclass(frozen=True, eq=False)
class Rows:
    """Checked rows of one split: texts, second texts where there are any, and labels."""

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray
    origin: str

    def take(self, rows: np.ndarray, origin: str) -> Rows:
        """The rows `rows`, in that order, which come from `origin`."""
        pairs = None if self.pairs is None else [self.pairs[row] for row in rows]
        return Rows([self.texts[row] for row in rows], pairs, self.labels[rows], origin)


def load_task(task: Task, tokenizer: PreTrainedTokenizerBase, seed: int) -> TaskData:
    """Read, check, split and tokenise a task.

    The figures come from the data's test split where its labels are published, otherwise from its validation split.
    Choices are made on the validation split where the figures leave it free, otherwise on rows set aside from train.
    Of data with nothing but a train split, rows for both are set aside. `seed` decides which.

    Raises:
        FileNotFoundError: the files are missing, or the Hub data set cannot be reached.
        ValueError: a column, text or label is not what the task says, or there are too few rows.
    """
    check_tokenizer(tokenizer, task.max_length, pair=task.pair is not None)
    given = task.label_names
    if given is not None and (len(given) < 2 or len(set(given)) < len(given)):
        raise ValueError(f"task.label_names is {list(given)}: give two or more names, each once, or leave it out")
    sources = _sources(task)
    train_source = _split(sources, "train")
    if train_source is None:
        raise ValueError(f"{task.path} has no train split, only {', '.join(sources)}; add a file named train")
    train_labels = _column(train_source, task.label, "task.label")
    names = None
    if task.kind == "classification":
        declared = train_source.class_names(task.label)
        if given and declared and len(given) != len(declared):
            raise ValueError(
                f"task.label_names has {len(given)} names, {train_source.where} declares {len(declared)}: "
                f"{', '.join(declared)}"
            )
        names = given or declared or distinct_names(train_labels)

    train, validation, test = _divide(
        _rows(train_source, task, train_labels, names, "train"),
        _labelled_rows(_split(sources, "validation", "valid", "val", "dev"), task, names, "validation"),
        _labelled_rows(_split(sources, "test"), task, names, "test"),
        task,
        seed,
    )
    if names is None and np.ptp(train.labels) == 0:
        raise ValueError(f"{train_source.where}: every row left to train on has the value {train.labels[0]}")
    if names is not None and len(np.unique(train.labels)) < 2:
        raise ValueError(
            f"{train_source.where}: every row left to train on has the label {names[train.labels[0]]!r}; "
            "give data with two classes or more"
        )
    train_data, validation_data, test_data = (
        truncate_examples(tokenizer, rows.texts, rows.pairs, task.max_length, rows.labels)
        for rows in (train, validation, test)
    )
    origins = {"train": train.origin, "validation": validation.origin, "test": test.origin}
    return TaskData(train_data, validation_data, test_data, names, origins, train)


def _sources(task: Task) -> dict[str, Source]:
    """The splits by name; files that name no split are all train."""
    if task.path is None:
        raise ValueError("task.path is not set; give a folder, file, glob or Hub id of labelled text")
    files = local_files(task.path)
    if not files:
        return from_hub(task.path, task.name)
    splits: dict[str | None, list[Path]] = {}
    for file in files:
        splits.setdefault(split_of(file), []).append(file)
    named = {split: from_files(group) for split, group in splits.items() if split}
    is_folder = Path(task.path).expanduser().is_dir()
    return named if named and (len(files) > 1 or is_folder) else {"train": from_files(files)}


def _split(sources: dict[str, Source], *names: str) -> Source | None:
    """The first split of these names, also with an ending: MNLI has a validation_matched."""
    matches = [key for name in names for key in sources if key == name or key.startswith(f"{name}_")]
    return sources[matches[0]] if matches else None


def _labelled_rows(source: Source | None, task: Task, names: tuple[str, ...] | None, origin: str) -> Rows | None:
    """The rows of a split, None where there is no such split or its labels are not published."""
    if source is None or task.label not in source.columns:
        return None
    labels = _column(source, task.label, "task.label")
    return None if all(map(is_hidden, labels)) else _rows(source, task, labels, names, origin)


def _rows(source: Source, task: Task, labels: list[Any], names: tuple[str, ...] | None, origin: str) -> Rows:
    texts = _texts(source, task.text, "task.text")
    pairs = None if task.pair is None else _texts(source, task.pair, "task.pair")
    if names is None:
        return Rows(texts, pairs, regression_targets(labels, source.where), origin)
    declared = source.class_names(task.label)
    if declared and set(declared) == set(names):  # numbers are positions in the data's own order
        labels = [declared[x] if isinstance(x, int) and 0 <= x < len(declared) else x for x in labels]
    return Rows(texts, pairs, class_indices(labels, names, source.where), origin)


def _column(source: Source, column: str, option: str) -> list[Any]:
    return [value for batch in source.read(column, option=option) for value in batch[column]]


def _texts(source: Source, column: str, option: str) -> list[str]:
    texts = _column(source, column, option)
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            fault = "is empty" if isinstance(text, str) else f"is {text!r:.40}, not text"
            raise ValueError(f"{source.where}, row {row}: column {column!r} {fault}; correct or remove the row")
    return texts


def _divide(train: Rows, validation: Rows | None, test: Rows | None, task: Task, seed: int) -> tuple[Rows, Rows, Rows]:
    """Apply the split rules of `load_task`."""
    rng = np.random.default_rng(seed)
    if test is None and validation is not None:
        validation, test = None, validation
    if test is None:
        train, test = _set_aside(train, task.test_size, "task.test_size", rng)
    if validation is None:
        train, validation = _set_aside(train, task.validation_size, "task.validation_size", rng)
    return train, validation, test


def _set_aside(rows: Rows, size: int, option: str, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Take `size` rows at random, but of every class (or range of targets) its share: ``(rest, taken)``."""
    total = len(rows.texts)
    if not 0 < size <= total // 2:
        raise ValueError(
            f"{option}={size} rows cannot be set aside from the {total} rows of train: choose from 1 to {total // 2}"
        )
    shuffled = rng.permutation(total)
    by_label = shuffled[np.argsort(rows.labels[shuffled], kind="stable")]
    every_nth = ((np.arange(size) + rng.random()) * total / size).astype(np.int64)
    taken = np.zeros(total, bool)
    taken[by_label[every_nth]] = True
    origin = f"{rows.origin}, {size} rows set aside"
    return rows.take(np.flatnonzero(~taken), rows.origin), rows.take(np.flatnonzero(taken), origin)
