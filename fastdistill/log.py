"""What a run says while it works: log.jsonl always, a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column


class Log:
    """Appends records to `path` and shows them; without a path it does neither.

    Use as a context manager; `stage` opens the display of a stage, `step` reports an interval of it,
    `end_stage` closes it.
    """

    def __init__(self, path: Path | None) -> None:
        self.console = Console() if path else Console(quiet=True, force_terminal=False)
        self.path = path
        kept = path or Path(os.devnull)
        self.file = kept.open("a", encoding="utf-8")
        text = path.read_text(encoding="utf-8") if path else ""
        if text and not text.endswith("\n"):  # a killed run left half a line
            self._rewrite(text[: text.rfind("\n") + 1])
        self.live: Progress | None = None
        self.task: TaskID | None = None
        self.name, self.total = "", 0

    def __enter__(self) -> Log:
        if self.console.is_terminal:
            whole = Column(no_wrap=True)  # the terms go on in a second line before anything else is cut
            columns = (
                TextColumn("[bold]{task.description}", table_column=whole),
                MofNCompleteColumn(table_column=whole),
                TimeRemainingColumn(table_column=whole),
                TextColumn("{task.fields[detail]}", table_column=Column(overflow="fold")),
            )
            self.live = Progress(*columns, console=self.console)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()
        self.file.close()

    @property
    def offset(self) -> int:
        """Length of the log in bytes, all of it on the disk."""
        self.file.flush()
        if self.path:
            os.fsync(self.file.fileno())
        return self.file.tell()

    def cut(self, offset: int) -> None:
        """Forget what was logged after `offset`."""
        if self.path:
            self.file.flush()
            os.truncate(self.path, min(offset, self.path.stat().st_size))
            self.file.seek(0, os.SEEK_END)

    def forget(self, stage: str) -> None:
        """Drop every record of `stage`: it starts anew."""
        if self.path:
            self.file.flush()
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            self._rewrite("".join(line for line in lines if json.loads(line).get("stage") != stage))

    def _rewrite(self, text: str) -> None:
        assert self.path is not None
        self.file.close()
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path)
        self.file = self.path.open("a", encoding="utf-8")

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def record(self, **values: Any) -> None:
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()

    def stage(self, name: str, steps: int, done: int) -> None:
        self.name, self.total = name, steps
        if self.live:
            self.task = self.live.add_task(name, total=steps, completed=done, detail="")

    def end_stage(self) -> None:
        """Take the finished stage off the live display."""
        if self.live and self.task is not None:
            self.live.remove_task(self.task)
            self.task = None

    def step(self, *, step: int, tokens_per_second: float, losses: dict[str, float], **others: float) -> None:
        """Report an interval that ended after `step` optimiser steps."""
        self.record(
            event="step", stage=self.name, step=step, tokens_per_second=tokens_per_second, losses=losses, **others
        )
        terms = "  ".join(f"{name} {value:.4g}" for name, value in losses.items())
        detail = f"{tokens_per_second:,.0f} tokens/s  {terms}"
        if self.live and self.task is not None:
            self.live.update(self.task, completed=step, detail=detail)
        else:
            left = others["seconds"] / step * (self.total - step)
            self.say(f"{self.name:>8}  step {step}/{self.total}  {detail}  {left:,.0f} s left")
