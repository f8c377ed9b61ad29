"""Rows: the examples of a task as its files have them, checked, and divided into what is trained, chosen and
reported on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastdistill.data.labels import (
    Classes,
    answers,
    as_text,
    class_indices,
    class_vectors,
    distinct_names,
    is_hidden,
    regression_targets,
    tag_indices,
    width_of_vectors,
)
from fastdistill.data.source import Source, from_files, from_hub, local_files, split_of
from fastdistill.recipe import Task
from fastdistill.tasks import TASKS

SOURCE = "source_id"  # column of augmented data: which row a copy comes from
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
    """

    texts: list[Any]
    pairs: list[str] | None
    labels: np.ndarray | list[Any]
    origin: str
    groups: np.ndarray | None = None
    skipped: int = 0

    def wording(self) -> Iterator[Any]:
        """What the rows say, without their labels, as values that can be looked up."""
        texts = (tuple(text) if isinstance(text, list) else text for text in self.texts)
        return zip(texts, self.pairs, strict=True) if self.pairs else texts

    def take(self, rows: np.ndarray, origin: str) -> Rows:
        """Some of them, under another name."""

        def picked(values: Any) -> Any:
            return values[rows] if isinstance(values, np.ndarray) else values and [values[row] for row in rows]

        return Rows(picked(self.texts), picked(self.pairs), picked(self.labels), origin, picked(self.groups))


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
    """Files that tell no split by their names, beside others that do; where none does, all are train."""
    return _files_by_split(path).get(None, [])


def _files_by_split(path: str) -> dict[str | None, list[Path]]:
    splits: dict[str | None, list[Path]] = {}
    files = local_files(path)
    for file in files:
        splits.setdefault(split_of(file), []).append(file)
    alone = len(files) == 1 and not Path(path).expanduser().is_dir()
    return {"train": files} if alone or set(splits) == {None} else splits


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
    unused += [file.name for file in unnamed_files(task.path)]
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


def classes_of(source: Source, task: Task, labels: list[Any]) -> Classes:
    """What labels may be, by train, for all splits: the names are those of the task, of the data set, or what occurs.

    Raises:
        ValueError: the task names classes where there are none, or others than the data set declares.
    """
    assert task.label is not None
    given, declared = task.label_names, source.class_names(task.label)
    if task.kind in ("regression", "span"):
        if given:
            raise ValueError(f"task.label_names is {list(given)}, but a {task.kind} task has no classes: leave it out")
        return Classes()
    if given is not None and (len(given) < 2 or len(set(map(as_text, given))) < len(given)):
        raise ValueError(f"task.label_names is {list(given)}: give two or more names, each once, or leave it out")
    if declared and not given and len(set(map(as_text, declared))) < len(declared):
        raise ValueError(f"{source.where} declares classes of one name ({', '.join(declared)}): set task.label_names")
    if given and declared and len(given) != len(declared):
        raise ValueError(
            f"task.label_names has {len(given)} names, {source.where} declares {len(declared)}: {', '.join(declared)}"
        )
    by_definition = task.name in TASKS and given == TASKS[task.name].label_names
    if by_definition and declared and not all(map(str.isdigit, declared)) and not _same(declared, given or ()):
        raise ValueError(
            f"{source.where} declares the classes {', '.join(declared)}, task.name={task.name} has "
            f"{', '.join(given or ())}: set task.label_names in the order of the data's, or leave task.name out"
        )
    width = None
    if task.kind == "multilabel" and not declared:
        width = width_of_vectors(labels, len(given) if given else None)
    if names := given or declared:
        return Classes(names, vectors=width is not None)
    if width is not None:
        return Classes(tuple(map(str, range(width))), vectors=True)
    if task.kind in ("multilabel", "tagging"):
        labels = [x for label in labels if isinstance(label, list) for x in label]
    return Classes(distinct_names(labels), found=True)


def _same(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether they are the same classes, in whatever order; in upper or lower case where that tells none apart."""
    folded, wanted = (sorted(map(str.casefold, names)) for names in (some, others))
    return set(some) == set(others) or (folded == wanted and len(set(folded)) == len(folded))


def declared_order(source: Source, task: Task, classes: Classes) -> list[str] | None:
    """The classes, spelt as the task does, in the order that the data declares; None where it declares no such ones."""
    assert task.label is not None
    names, declared = classes.names, source.class_names(task.label)
    if not (names and declared):
        return None
    if not _same(declared, names):  # renamed, in the data's order
        return list(names) if len(names) == len(declared) and not classes.found else None
    spelt = {name.casefold(): name for name in names}
    return [name if name in names else spelt[name.casefold()] for name in declared]


def read_rows(source: Source, task: Task, labels: list[Any], classes: Classes, origin: str) -> Rows:
    """The rows of a split, of which the labels were read already; without those that have no words (tagging).

    Raises:
        ValueError: a text or a label is not what the task says; the message names the row.
    """
    assert task.text is not None
    assert task.label is not None
    texts = (_read_words if task.kind == "tagging" else read_texts)(source, task.text, "task.text")
    pairs = None if task.pair is None else read_texts(source, task.pair, "task.pair", may_lack=task.kind != "span")
    groups = None if task.group is None else np.array([str(x) for x in read_column(source, task.group, "task.group")])
    if own := declared_order(source, task, classes):  # numbers are positions in it
        labels = [_named(label, own) for label in labels]
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


def _named(label: Any, names: Sequence[str]) -> Any:
    if isinstance(label, list):
        return [_named(x, names) for x in label]
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else label


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
