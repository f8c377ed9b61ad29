"""Labels of a task: from what the files hold to class indices, targets, vectors, tags or answers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mode
from typing import Any

import numpy as np

# GLUE and others publish their test texts with this label.
HIDDEN = "-1"
Answers = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Classes:
    """What labels may be.

    Args:
        names: by index; None where there are no classes.
        vectors: labels are lists of a 0 or 1 for each class.
        found: the names are those that occur in train, so that numbers tell no place among them.
    """

    names: tuple[str, ...] | None = None
    vectors: bool = False
    found: bool = False

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


def is_hidden(label: Any) -> bool:
    """True for the label of an example whose label is not published; lists and answers that say nothing are none."""
    if isinstance(label, dict) and "text" in label:
        label = label["text"]
    if isinstance(label, list):
        return all(map(is_hidden, label))
    return label is None or as_text(label) in ("", HIDDEN)


def as_text(label: Any) -> str:
    """One spelling per class: whole numbers lose their fraction, for tables turn whole columns into floats."""
    text = str(label).strip()
    return text.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", text) else text


def distinct_names(labels: Sequence[Any]) -> tuple[str, ...]:
    """The class names that occur, in order: by value where all are whole numbers, otherwise by alphabet.

    Missing labels, fractions and lists are no names: `class_indices` then reports their rows.
    """
    names = {as_text(label) for label in labels if isinstance(label, str | int | float)}
    names = {name for name in names if not re.fullmatch(r"|nan|-?\d+\.\d+", name)}
    return tuple(sorted(names, key=int if all(map(_is_whole, names)) else str))


def class_indices(labels: Sequence[Any], classes: Classes, where: str) -> np.ndarray:
    """``(N,)`` int64 places of labels among the classes.

    Raises:
        ValueError: a label is missing or is none of the classes.
    """
    for row, label in enumerate(labels, start=1):
        if label is None or as_text(label) not in classes.index:
            raise ValueError(
                f"{where}, row {row}: label {label!r} is none of the {classes}; correct the row, or set "
                "task.label_names, in the order of their numbers (for numbers to predict, set task.kind to regression)"
            )
    return np.array([classes.index[as_text(label)] for label in labels], np.int64)


def width_of_vectors(labels: Sequence[Any], classes: int | None = None) -> int | None:
    """How many entries most lists have, where lists hold a 0 or 1 for each class; None where they name classes.

    Lists of 0 and 1 are vectors where most of them have one entry for each class, or one entry twice: nobody names a
    class twice. `classes` is their number where it is known, otherwise that of the entries that most lists have.
    """
    lists = [label for label in labels if isinstance(label, list)]
    if not lists or not all(map(_is_binary, lists)):
        return None
    width = mode(map(len, lists))
    classes = classes or width
    alike = sum(len(label) == classes > 1 or len(set(label)) < len(label) for label in lists)
    return width if 2 * alike > len(lists) else None


def class_vectors(labels: Sequence[Any], classes: Classes, where: str) -> np.ndarray:
    """``(N, C)`` float32, 1 where a text has the class, of lists of classes or of a 0 or 1 for each.

    Raises:
        ValueError: a label is no list, names a class that there is not or twice, or is a vector of another length or
            not of 0 and 1.
    """
    width, index = len(classes.names or ()), classes.index
    has = np.zeros((len(labels), width), np.float32)
    for row, label in enumerate(labels, start=1):
        at = f"{where}, row {row}: label {label!r:.60}"
        if not isinstance(label, list):
            raise ValueError(f"{at} is no list of classes; correct the row, or set task.kind to classification")
        if classes.vectors and len(label) != width:
            raise ValueError(f"{at} has {len(label)} entries for {classes}; give a 0 or 1 for each")
        if classes.vectors and not _is_binary(label):
            raise ValueError(f"{at} is no list of 0 and 1, as labels of train are; correct the row")
        if classes.vectors:
            found = [place for place, x in enumerate(label) if x]
        else:
            found = [index.get(as_text(x), -1) for x in label]
        if -1 in found or len(set(found)) < len(found):
            raise ValueError(
                f"{at} must name each class once, of the {classes}; correct the row, or set task.label_names"
            )
        has[row - 1, found] = 1.0
    return has


def tag_indices(
    labels: Sequence[Any], words: Sequence[Sequence[str]], classes: Classes, where: str
) -> list[np.ndarray]:
    """For every row the int64 places of its tags among the classes, one for each word.

    Raises:
        ValueError: a row has another number of tags than of words, or a tag that is none of the classes.
    """
    found = []
    for row, (tags, own) in enumerate(zip(labels, words, strict=True), start=1):
        if not isinstance(tags, list) or len(tags) != len(own):
            count = (
                f"has {len(tags)} tags" if isinstance(tags, list) else f"has the label {tags!r:.40}, no list of tags,"
            )
            raise ValueError(f"{where}, row {row} {count} for {len(own)} words; give one tag for each word")
        for number, tag in enumerate(tags, start=1):
            if tag is None or as_text(tag) not in classes.index:
                raise ValueError(
                    f"{where}, row {row}: tag {number} is {tag!r}, none of the {classes}; correct the row, or set "
                    "task.label_names"
                )
        found.append(np.array([classes.index[as_text(tag)] for tag in tags], np.int64))
    return found


def answers(labels: Sequence[Any], contexts: Sequence[str], where: str) -> list[Answers]:
    """For every row the first character and the text of each right answer, of what SQuAD calls answers.

    Raises:
        ValueError: a label is not of that form, or an answer does not stand where it says in its context.
    """
    found = []
    for row, (label, context) in enumerate(zip(labels, contexts, strict=True), start=1):
        try:
            own = tuple(zip(map(int, label["answer_start"]), map(str, label["text"]), strict=True))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{where}, row {row}: label {label!r:.60} is no answer; give the texts and the characters at which "
                'they begin, as {"text": ["..."], "answer_start": [0]}, with empty lists where there is no answer'
            ) from None
        for start, text in own:
            if not text.strip() or start < 0 or context[start : start + len(text)] != text:
                raise ValueError(
                    f"{where}, row {row}: the answer {text!r:.60} does not stand at character {start} of its context "
                    f"of {len(context)}; correct or remove the row"
                )
        found.append(own)
    return found


def regression_targets(labels: Sequence[Any], where: str) -> np.ndarray:
    """``(N,)`` float32 targets.

    Raises:
        ValueError: a label is missing, not a number, NaN or infinite.
    """
    targets = np.empty(len(labels), np.float32)
    for row, label in enumerate(labels, start=1):
        try:
            targets[row - 1] = label
        except (TypeError, ValueError):
            targets[row - 1] = math.nan
        if not math.isfinite(targets[row - 1]) or label is None:
            raise ValueError(
                f"{where}, row {row}: label {label!r} is not a finite number; "
                "correct the row (for classes, set task.kind to classification)"
            )
    return targets


def _is_binary(label: list[Any]) -> bool:
    return all(isinstance(x, int | float) and x in (0, 1) for x in label)


def _is_whole(name: str) -> bool:
    return re.fullmatch(r"-?\d+", name) is not None
