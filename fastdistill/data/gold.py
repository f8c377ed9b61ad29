"""Gold: what the predictions about a labelled text are compared with, row by row of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastdistill.recipe import Kind


@dataclass(frozen=True, eq=False)
class Windows:
    """How windows of tokens belong to the contexts that they were cut from.

    Shapes:
        rows: ``(N,)`` the row of the data that each window is of; a row's windows are neighbours.
        characters: ``(T, 2)`` int32 first character of each token in its context and one past its last; -1 for tokens
            that belong to no context.
        contexts: one for each row.
    """

    rows: np.ndarray
    characters: np.ndarray
    contexts: list[str]


@dataclass(frozen=True, eq=False)
class Gold:
    """What is right.

    Args:
        kind: of the labels.
        rows: for every row its class, its value, its 0 or 1 for each class, its tags by name, or the texts that are
            right answers (none where there is no answer).
        names: class names by index.
        groups: ``(N,)`` which rows compete for a rank; None where none do.
        words: for every row which of its words have a token; tagging alone.
        windows: span alone.
        may_lack: whether a question may have no answer; span alone.
    """

    kind: Kind
    rows: Sequence[Any] | np.ndarray
    names: tuple[str, ...] | None = None
    groups: np.ndarray | None = None
    words: list[np.ndarray] | None = None
    windows: Windows | None = None
    may_lack: bool = False

    def take(self, rows: np.ndarray) -> Gold:
        """Of these rows alone, to score some of the predictions, or some of them several times."""
        taken = self.rows[rows] if isinstance(self.rows, np.ndarray) else [self.rows[row] for row in rows]
        groups = None if self.groups is None else self.groups[rows]
        return replace(self, rows=taken, groups=groups, words=None, windows=None)
