"""Rows of a task as a data set again: the columns that the task names, with labels as `datasets` declares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Features, Value

from fastdistill.data.rows import SOURCE, Rows
from fastdistill.recipe import Task


def text_columns(task: Task, rows: Rows) -> dict[str, list[str]]:
    """The texts, or both texts of the pairs, by column."""
    assert task.text is not None, "the task is complete"
    columns = {task.text: rows.texts}
    if rows.pairs is not None:
        assert task.pair is not None, "the task is complete"
        columns[task.pair] = rows.pairs
    return columns


def other_columns(task: Task, rows: Rows) -> dict[str, list[Any]]:
    """Labels, and groups where there are any: numbers, places of classes, lists of those (multilabel)."""
    assert task.label is not None, "the task is complete"
    assert isinstance(rows.labels, np.ndarray), "check_augment refuses labels of single words"
    labels = [np.flatnonzero(has).tolist() for has in rows.labels] if rows.labels.ndim > 1 else rows.labels.tolist()
    groups = {} if rows.groups is None or task.group is None else {task.group: rows.groups.tolist()}
    return {task.label: labels} | groups


def features(task: Task, rows: Rows, label_names: tuple[str, ...] | None) -> Features:
    """Of the columns of both."""
    assert task.label is not None, "the task is complete"
    label = ClassLabel(names=list(label_names)) if label_names else Value("float32")
    names = (*text_columns(task, rows), *other_columns(task, rows))
    texts = {name: Value("string") for name in names if name != task.label}
    return Features(texts | {task.label: [label] if np.ndim(rows.labels) > 1 else label})


def write_rows(path: Path, task: Task, rows: Rows, label_names: tuple[str, ...] | None) -> None:
    """A parquet file of `rows`.

    Raises:
        OSError: it cannot be written.
    """
    declared = features(task, rows, label_names)
    table = text_columns(task, rows) | other_columns(task, rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pydict(table, schema=declared.arrow_schema), path)


def write_renumbered(shard: Path, to: Path, numbers: np.ndarray | None) -> None:
    """A copy of a parquet file of augmented rows, whose sources are called by their `numbers` in the data.

    Raises:
        OSError: it cannot be written.
    """
    table = pyarrow.parquet.read_table(shard)
    if numbers is not None:
        column = table.column_names.index(SOURCE)
        table = table.set_column(column, table.field(column), [numbers[table[SOURCE]]])
    pyarrow.parquet.write_table(table, to)
