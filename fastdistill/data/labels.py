"""Labels of a task: from what the files hold to class indices, targets, vectors, tags or answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdistill.data.classes import Classes, as_text, is_binary

# GLUE and others publish their test texts with this label.
HIDDEN = "-1"
Answers = tuple[tuple[int, str], ...]


def is_hidden(label: Any) -> bool:
    """True for the label of an example whose label is not published; lists and answers that say nothing are none."""
    if isinstance(label, dict) and "text" in label:
        label = label["text"]
    if isinstance(label, list):
        return all(map(is_hidden, label))
    return label is None or as_text(label) in ("", HIDDEN)


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
            raise ValueError(
                f"{at} is no list of classes; give one (JSON lines and parquet can), or set task.kind to classification"
            )
        if classes.vectors and len(label) != width:
            raise ValueError(f"{at} has {len(label)} entries for {classes}; give a 0 or 1 for each")
        if classes.vectors and not is_binary(label):
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
            with np.errstate(over="ignore"):
                targets[row - 1] = label
        except (TypeError, ValueError):
            targets[row - 1] = math.nan
        if not math.isfinite(targets[row - 1]) or label is None:
            raise ValueError(
                f"{where}, row {row}: label {label!r} is not a finite number; "
                "correct the row (for classes, set task.kind to classification)"
            )
    return targets
