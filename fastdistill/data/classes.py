"""Classes of a task: which there are, by its definition, the data set's own declaration or what occurs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mode
from typing import Any

import numpy as np

from fastdistill.data.source import Source
from fastdistill.recipe import Task
from fastdistill.tasks import TASKS

MISSING = ("", "na", "n/a", "nan", "null", "none")  # a missing label, as tables spell it


@dataclass(frozen=True)
class Classes:
    """What labels may be.

    Args:
        names: by index; None where there are no classes.
        vectors: labels are lists of a 0 or 1 for each class.
        found: the names are those that occur in train, so that numbers tell no place among them.
        declared: the names that train's own file declares, in the order of its numbers; None where it declares none.
    """

    names: tuple[str, ...] | None = None
    vectors: bool = False
    found: bool = False
    declared: tuple[str, ...] | None = None

    @cached_property
    def index(self) -> dict[str, int]:
        """Where each label stands, by its name; by its number too where somebody gave the order, and no name is one."""
        places = {as_text(name): index for index, name in enumerate(self.names or ())}
        if not self.found and not any(map(_is_whole, places)):
            places |= {str(index): index for index in range(len(places))}
        return places

    def ranks(self, written: Sequence[str]) -> np.ndarray:
        """``(C,)``: the place of each class in `written`, the data's own order, which none of ours moves."""
        ranks = np.zeros(len(self.names or ()), np.int64)
        for rank, name in enumerate(written):
            if as_text(name) in self.index:
                ranks[self.index[as_text(name)]] = rank
        return ranks

    def __str__(self) -> str:
        names = self.names or ()
        return f"{len(names)} classes ({', '.join(names[:10])}{f' and {len(names) - 10} more' * (len(names) > 10)})"


def as_text(label: Any) -> str:
    """One spelling per class: whole numbers lose their fraction, for tables turn whole columns into floats."""
    text = str(label).strip()
    return text.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", text) else text


def distinct_names(labels: Sequence[Any]) -> tuple[str, ...]:
    """The class names that occur, in order: by value where all are whole numbers, otherwise by alphabet.

    Missing labels, fractions and lists are no names: `class_indices` then reports their rows. Nor is, beside whole
    numbers, what tables write for a missing one.
    """
    names = {as_text(label) for label in labels if isinstance(label, str | int | float)}
    names = {name for name in names if not re.fullmatch(r"|nan|-?\d+\.\d+", name)}
    if numbers := {name for name in names if _is_whole(name)}:
        told = {name for name in names if name.casefold() not in MISSING}
        names = numbers if told == numbers else names
    return tuple(sorted(names, key=int if all(map(_is_whole, names)) else str))


def width_of_vectors(labels: Sequence[Any], classes: int | None = None) -> int | None:
    """How many entries most lists have, where lists hold a 0 or 1 for each class; None where they name classes.

    Lists of 0 and 1 are vectors where most of them have one entry for each class, or one entry twice: nobody names a
    class twice. `classes` is their number where it is known, otherwise that of the entries that most lists have.
    """
    lists = [label for label in labels if isinstance(label, list)]
    if not lists or not all(map(is_binary, lists)):
        return None
    width = mode(map(len, lists))
    classes = classes or width
    alike = sum(len(label) == classes > 1 or len(set(label)) < len(label) for label in lists)
    return width if 2 * alike > len(lists) else None


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
        return Classes(names, vectors=width is not None, declared=declared)
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
    """The classes, spelt as the task does, in the order that the data declares; None where it declares none.

    Raises:
        ValueError: it declares others than train.
    """
    assert task.label is not None
    names, declared = classes.names, source.class_names(task.label)
    if not (names and declared):
        return None
    if _same(declared, names):
        spelt = {name.casefold(): name for name in names}
        return [name if name in names else spelt[name.casefold()] for name in declared]
    if set(declared) <= set(names):
        return list(declared)
    if declared == classes.declared:  # renamed by the task, in the data's order
        return list(names)
    if classes.found or all(map(str.isdigit, declared)):
        return None
    raise ValueError(
        f"{source.where} declares the classes {', '.join(declared)}, train has {', '.join(classes.declared or names)}: "
        "numbers mean other classes in each; declare the same in all splits"
    )


def by_name(label: Any, names: Sequence[str]) -> Any:
    if isinstance(label, list):
        return [by_name(x, names) for x in label]
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else label


def is_binary(label: list[Any]) -> bool:
    return all(isinstance(x, int | float) and x in (0, 1) for x in label)


def _is_whole(name: str) -> bool:
    return re.fullmatch(r"-?\d+", name) is not None
