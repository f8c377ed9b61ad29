"""Rows: the examples of a task as its files have them, checked, and divided into what is trained, chosen and
reported on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastdistill.data.classes import MISSING, Classes, by_name, declared_order
from fastdistill.data.labels import (
    answers,
    class_indices,
    class_vectors,
    is_hidden,
    regression_targets,
    tag_indices,
)
from fastdistill.data.source import Source, from_files, from_hub, local_files, split_of
from fastdistill.recipe import Task

SOURCE, REPORT = "source_id", "report.json"  # of augmented data: which row a copy comes from, and what was done
_HELD_OUT = r"(?<![a-z])(test(ing)?|dev|val(id(ation)?)?|eval(uation)?)(?![a-z])"
VALIDATION = ("validation", "valid", "val", "dev")  # names of that split, of which the first that there is is used


@dataclass(frozen=True, eq=False)
class Rows:
    """Checked rows of one split.

    Args:
        texts: the texts; lists of words (tagging), questions (span).
        pairs: second texts, where there are any; contexts (span).
        labels: ``(N,)`` int64 classes or float32 targets, ``(N, C)`` float32 of 0 and 1, or a list: for every row the
            int64 tags of its words, or its answers, each with its first character.
        origin: which rows of the data these are, for the report.
        groups: ``(N,)`` which rows compete for a rank.
        skipped: rows of the data that are left out, for they have no words (tagging).
        numbers: ``(N,)`` which rows of the data these are, counted from 0; None where they are all.
    """

    texts: list[Any]
    pairs: list[str] | None
    labels: np.ndarray | list[Any]
    origin: str
    groups: np.ndarray | None = None
    skipped: int = 0
    numbers: np.ndarray | None = None

    def wording(self) -> Iterator[Any]:
        """What the rows say, without their labels, as values that can be looked up."""
        texts = (tuple(text) if isinstance(text, list) else text for text in self.texts)
        return zip(texts, self.pairs, strict=True) if self.pairs else texts

    def take(self, rows: np.ndarray, origin: str) -> Rows:
        """Some of them, under another name."""

        def picked(values: Any) -> Any:
            return values[rows] if isinstance(values, np.ndarray) else values and [values[row] for row in rows]

        numbers = rows if self.numbers is None else self.numbers[rows]
        texts, pairs, labels, groups = map(picked, (self.texts, self.pairs, self.labels, self.groups))
        return Rows(texts, pairs, labels, origin, groups, numbers=numbers)


def open_splits(task: Task) -> dict[str, Source]:
    """The splits of a task's data by name, without `unnamed_files`; a file by itself is train.

    Raises:
        FileNotFoundError: the files are missing, or the Hub data set cannot be reached.
        ValueError: there is no path.
    """
    if task.path is None:
        raise ValueError("task.path is not set; give a folder, file, glob or Hub id of labelled text")
    files = _files_by_split(task.path)
    if not files:
        return from_hub(task.path, task.configuration)
    return {split: from_files(group) for split, group in files.items() if split}


def unnamed_files(path: str) -> list[Path]:
    """Files that tell no split by their names or folders, beside others that do; where none does, all are train."""
    return _files_by_split(path).get(None, [])


def _files_by_split(path: str) -> dict[str | None, list[Path]]:
    splits: dict[str | None, list[Path]] = {}
    files, folder = local_files(path), Path(path).expanduser()
    if len(files) == 1 and not folder.is_dir():
        return {"train": files}
    if files and not folder.is_dir():
        folder = Path(os.path.commonpath([file.parent for file in files]))
    for file in files:
        splits.setdefault(split_of(file, folder), []).append(file)
    if set(splits) != {None}:
        return splits
    if len(files) > 1 and (mistaken := [file.name for file in files if re.search(_HELD_OUT, file.name.lower())]):
        raise ValueError(
            f"{path}: {len(files)} files, of which no name begins with train, validation, dev or test, though "
            f"{mistaken[0]} may be no file to train on: name files or their folders so, or give one file alone"
        )
    return {"train": files}


def splits_named(sources: dict[str, Source], *names: str) -> dict[str, Source]:
    """The splits of the first of these names that there is, by their ending: MNLI has validation_mismatched as well."""
    for name in names:
        found = {key: source for key, source in sources.items() if key == name or key.startswith(f"{name}_")}
        if found:
            return {key.removeprefix(name).lstrip("_"): source for key, source in found.items()}
    return {}


def said_of_splits(task: Task, sources: dict[str, Source]) -> list[str]:
    """Which parts train is joined of, and what splits, files and columns of the data are not used, in sentences."""
    assert task.path is not None
    train = list(splits_named(sources, "train").values())
    used = [*train, *splits_named(sources, *VALIDATION).values(), *splits_named(sources, "test").values()]
    unused = [name for name, source in sources.items() if source not in used]
    known = {REPORT} if SOURCE in train[0].columns else set()
    unused += [file.name for file in unnamed_files(task.path) if file.name not in known]
    said = []
    if len(train) > 1:
        said.append(f"task: train is joined of {', '.join(source.where for source in train)}")
    if unused:
        said.append(
            f"task: not used: {', '.join(unused)}; used are train, validation (else valid, val or dev) and test, or "
            "parts of them such as train_1"
        )
    named = {task.text, task.pair, task.label, task.group, SOURCE}
    if columns := [column for column in train[0].columns if column not in named]:
        said.append(f"task: columns not used: {', '.join(columns)}")
    return said


def read_rows(source: Source, task: Task, labels: list[Any], classes: Classes, origin: str) -> Rows:
    """The rows of a split, of which the labels were read already; without those that have no words (tagging).

    Raises:
        ValueError: a text or a label is not what the task says; the message names the row.
    """
    assert task.text is not None
    assert task.label is not None
    texts = (_read_words if task.kind == "tagging" else read_texts)(source, task.text, "task.text")
    pairs = None if task.pair is None else read_texts(source, task.pair, "task.pair", may_lack=task.kind != "span")
    groups = None if task.group is None else np.array(_read_groups(source, task.group))
    if own := declared_order(source, task, classes):  # numbers are positions in it
        labels = [by_name(label, own) for label in labels]
    found = _read_labels(task, labels, texts, pairs, classes, source.where)
    rows = Rows(texts, pairs, found, origin, groups)
    kept = np.array([bool(text) for text in texts])
    if not kept.any():
        raise ValueError(f"{source.where}: column {task.text!r} is empty in all {len(kept)} rows; correct them")
    return rows if kept.all() else replace(rows.take(np.flatnonzero(kept), origin), skipped=int((~kept).sum()))


def _read_labels(
    task: Task,
    labels: list[Any],
    texts: list[Any],
    pairs: list[str] | None,
    classes: Classes,
    where: str,
) -> np.ndarray | list[Any]:
    if task.kind == "regression":
        return regression_targets(labels, where)
    if task.kind == "span":
        assert pairs is not None, "complete() asks for the context"
        return answers(labels, pairs, where)
    if task.kind == "multilabel":
        return class_vectors(labels, classes, where)
    if task.kind == "tagging":
        return tag_indices(labels, texts, classes, where)
    return class_indices(labels, classes, where)


def labelled_rows(source: Source, task: Task, classes: Classes, origin: str, say: Callable[[str], None]) -> Rows | None:
    """The rows of a split; None where its labels are not published, which `say` takes.

    Raises:
        ValueError: a validation split has no column of labels; rows that are not what the task says.
    """
    assert task.label is not None
    if task.label not in source.columns:
        lacking = f"{source.where} has no column {task.label!r}, only {', '.join(source.columns)}"
        if origin == "validation":
            raise ValueError(f"{lacking}; name its labels as in train, or remove it")
        say(f"task: {lacking}; its rows are not used")
        return None
    labels = read_column(source, task.label, "task.label")
    told = [label for label in labels if label != []] if task.kind == "tagging" else labels  # rows may have no words
    if told and all(map(is_hidden, told)):
        say(f"task: {source.where} has no published labels; its rows are not used")
        return None
    return read_rows(source, task, labels, classes, origin)


def read_column(source: Source, column: str, option: str) -> list[Any]:
    """All values of a column; `option` chose it."""
    return [value for batch in source.read(column, option=option) for value in batch[column]]


def read_texts(source: Source, column: str, option: str, *, may_lack: bool = False) -> list[str]:
    """All texts of a column, which `may_lack` some: second texts of pairs, of which QQP has two that are empty.

    Raises:
        ValueError: one is empty or no text; the message names the row.
    """
    texts = read_column(source, column, option)
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not (may_lack or text.strip()):
            fault = "is empty" if isinstance(text, str) else f"is {text!r:.40}, not text"
            raise ValueError(f"{source.where}, row {row}: column {column!r} {fault}; correct or remove the row")
    return texts


def _read_groups(source: Source, column: str) -> list[str]:
    groups = read_column(source, column, "task.group")
    for row, group in enumerate(groups, start=1):
        if str(group).strip().casefold() in MISSING:
            raise ValueError(f"{source.where}, row {row}: column {column!r} is {group!r}, no group; correct the row")
    return list(map(str, groups))


def _read_words(source: Source, column: str, option: str) -> list[list[str]]:
    texts = read_column(source, column, option)
    for row, words in enumerate(texts, start=1):
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(
                f"{source.where}, row {row}: column {column!r} is {words!r:.40}, not a list of words; correct or "
                "remove the row"
            )
    return texts


def divide(
    train: Rows, validation: Rows | None, test: Rows | None, task: Task, seed: int, ranks: np.ndarray
) -> tuple[Rows, Rows, Rows]:
    """Apply the split rules of `load_task`; `ranks` are those of the classes (`Classes.ranks`).

    Raises:
        ValueError: there are too few rows to set aside.
    """
    assert task.validation_size is not None
    assert task.test_size is not None
    rng = np.random.default_rng(seed)
    if test is None and validation is not None:
        validation, test = None, validation
    sizes = {"task.test_size": task.test_size} if test is None else {}
    sizes |= {"task.validation_size": task.validation_size} if validation is None else {}
    left = total = len(train.texts)
    for size in sizes.values():
        if not 0 < size <= left // 2:
            second = ", then at most half of what is left" if len(sizes) > 1 else ""
            raise ValueError(
                f"{' and '.join(f'{option}={size}' for option, size in sizes.items())} rows cannot be set aside from "
                f"the {total} rows of train: choose from 1 to {total // 2}{second}"
            )
        left -= size
    if test is None:
        train, test = _set_aside(train, task.test_size, "task.test_size", rng, ranks)
    if validation is None:
        train, validation = _set_aside(train, task.validation_size, "task.validation_size", rng, ranks)
    return train, validation, test


def _set_aside(rows: Rows, size: int, option: str, rng: np.random.Generator, ranks: np.ndarray) -> tuple[Rows, Rows]:
    """Take `size` rows at random: ``(rest, taken)``.

    Of every class (or range of targets) its share; of rows that compete for a rank all or none, so that there may be
    some more than `size`. Classes in another order leave them the same rows.
    """
    total = len(rows.texts)
    taken = np.zeros(total, bool)
    if rows.groups is not None:
        names, group = np.unique(rows.groups, return_inverse=True)
        order = rng.permutation(len(names))
        ends = np.cumsum(np.bincount(group)[order])
        taken = np.isin(group, order[: np.searchsorted(ends, size) + 1])
        if taken.all():
            raise ValueError(f"{option}={size} rows leave none to train on, for groups stay together: choose fewer")
    else:
        shuffled = rng.permutation(total)
        strata = rows.labels if isinstance(rows.labels, np.ndarray) and rows.labels.ndim == 1 else np.zeros(total)
        if strata.dtype == np.int64:
            strata = ranks[strata]
        by_label = shuffled[np.argsort(strata[shuffled], kind="stable")]
        every_nth = ((np.arange(size) + rng.random()) * total / size).astype(np.int64)
        taken[by_label[every_nth]] = True
    origin = f"{rows.origin}, {size} rows set aside"
    rest = replace(rows.take(np.flatnonzero(~taken), rows.origin), skipped=rows.skipped)
    return rest, rows.take(np.flatnonzero(taken), origin)
