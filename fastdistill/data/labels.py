"""Labels of a task: from what the files hold to class indices or regression targets."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

# GLUE and others publish their test texts with this label.
HIDDEN = "-1"


def is_hidden(label: Any) -> bool:
    """True for the label of an example whose label is not published."""
    return label is None or _as_text(label) in ("", HIDDEN)


def distinct_names(labels: Sequence[Any]) -> tuple[str, ...]:
    """The class names that occur, in order: by value where all are whole numbers, otherwise by alphabet.

    Missing labels, fractions and lists are no names: `class_indices` then reports their rows.
    """
    names = {_as_text(label) for label in labels if isinstance(label, str | int | float)}
    names = {name for name in names if not re.fullmatch(r"|nan|-?\d+\.\d+", name)}
    return tuple(sorted(names, key=int if all(map(_is_whole, names)) else str))


def class_indices(labels: Sequence[Any], names: Sequence[str], where: str) -> np.ndarray:
    """``(N,)`` int64 positions in `names` of labels that are class names or positions themselves.

    Numbers are positions only where no class has a number for its name.

    Raises:
        ValueError: a label is missing or is none of the names.
    """
    indices = {name: index for index, name in enumerate(names)}
    if not any(map(_is_whole, names)):
        indices |= {str(index): index for index in range(len(names))}
    for row, label in enumerate(labels, start=1):
        if label is None or _as_text(label) not in indices:
            shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            raise ValueError(
                f"{where}, row {row}: label {label!r} is none of the {len(names)} classes ({shown}); "
                "correct the row, or set task.label_names (for numbers to predict, set task.kind to regression)"
            )
    return np.array([indices[_as_text(label)] for label in labels], np.int64)


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


def _as_text(label: Any) -> str:
    """One spelling per class: whole numbers lose their fraction, for tables turn whole columns into floats."""
    text = str(label).strip()
    return text.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", text) else text


def _is_whole(name: str) -> bool:
    return re.fullmatch(r"-?\d+", name) is not None
