"""The folder that experiments work in: what is done, what is still to do, how long it may take. Imports no torch.

    jobs/NAME-DIGEST/result.json  predictions.npz  log.jsonl     of a job that is done
    jobs/NAME-DIGEST/model/                                      where other jobs start from it
    runs/NAME-DIGEST/                                            a job that was interrupted, to be resumed
    locks/                                                       who is at work on a job
    cache/                                                       tokenised text

A job that several experiments have is done once. Of a finished experiment all but `result.json` and `predictions.npz`
may be deleted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.quality.jobs import Job, lying_at
from fastdistill.data.source import is_shown

Result = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """Names of everything below `root`."""

    root: Path

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    def job(self, job: Job) -> Path:
        return self.jobs / job.folder

    def run(self, job: Job) -> Path:
        return self.root / "runs" / job.folder

    def result(self, job: Job) -> Result | None:
        """What a finished job came to.

        Raises:
            ValueError: its file is damaged.
        """
        path = self.job(job) / "result.json"
        if not path.exists():
            return None
        if (result := _read(path)) is None:
            raise ValueError(f"{path} is damaged: delete {path.parent}, and the job is done again")
        return result

    def done(self, job: Job, *, with_model: bool = False) -> bool:
        return (self.job(job) / "result.json").exists() and (not with_model or (self.jobs / job.model).exists())

    def state(self, job: Job) -> str:
        return "done" if self.done(job) else "begun" if self.run(job).exists() else "to do"

    def check_data(self, data: Path, jobs: Iterable[Job]) -> None:
        """Refuse to mix results of unlike data: what those of `jobs` that are done had read is compared with `data`.

        Raises:
            ValueError: one of them read something else at a path that there is.
        """
        for job in jobs:
            for path, digest in (self.result(job) or {"data": {}})["data"].items():
                if digest_of(data / path) not in (None, digest):
                    raise ValueError(
                        f"{data / path} is not what {self.job(job)} was made from: give another --work folder, or "
                        "delete there all jobs that read it"
                    )

    @contextmanager
    def lock(self, job: Job) -> Iterator[bool]:
        """Hold a job, so that no other process begins it; false if one is at work on it. A killed one lets go."""
        path = self.root / "locks" / job.folder.replace("/", "_")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def todo(self, jobs: Iterable[Job]) -> list[Job]:
        """Those of `jobs` that are not done, each behind what it needs: results of trials, models of all others."""
        order: dict[str, Job] = {}

        def visit(job: Job, *, with_model: bool) -> None:
            if job.folder not in order and not self.done(job, with_model=with_model):
                for need in job.needs:
                    visit(need, with_model=job.kind != "run")
                order[job.folder] = job

        for job in jobs:
            visit(job, with_model=False)
        return list(order.values())

    def expected_seconds(self, job: Job) -> float:
        """The longest that a job of this kind took, of those most like it; 0 where there is none."""
        results = []
        for folder, below, files in os.walk(self.jobs):  # other processes may publish and delete meanwhile
            below[:] = [name for name in below if not name.startswith(".") and name != "model"]
            if "result.json" in files:
                with suppress(FileNotFoundError):
                    results.append(_read(Path(folder) / "result.json") or {})
        like = [result for result in results if result.get("kind") == job.kind]
        for what in ("row", "student", "task", "steps"):
            like = [r for r in like if r[what] == getattr(job, what)] or like
        return max((r["seconds"] for r in like), default=0.0)


def _read(path: Path) -> Result | None:
    """A result; None where the file is damaged."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return result if isinstance(result, dict) and result.keys() >= {"machine", "versions"} else None


def digest_of(path: Path) -> str | None:
    """Of names and contents of the files at or below what lies at `path`, without hidden ones; None without any."""
    files = {
        file: file.relative_to(found)
        for found in lying_at(path)
        for file in ([found] if found.is_file() else sorted(found.rglob("*")))
        if file.is_file() and is_shown(file, found)
    }
    digest = hashlib.sha256()
    for file, name in files.items():
        state = file.stat()
        digest.update(f"{name} {_content_of(file, state.st_size, state.st_mtime_ns)} ".encode())
    return digest.hexdigest() if files else None


@cache
def _content_of(file: Path, size: int, changed: int) -> str:
    """The digest of a file, read again where size or time of change are others."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
