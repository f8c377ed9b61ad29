"""From the finished jobs of an experiment to its results: means, spreads, retention, verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from bench.quality.config import Experiment, Table
from bench.quality.jobs import Job, all_jobs, told
from bench.quality.verdict import judge, over_seeds, resampled_scores
from bench.quality.work import Result, Work

Place = tuple[str, str, str, int]
"""Row, student, task, seed."""


def collect(name: str, experiment: Experiment, work: Work) -> dict[str, Any]:
    """All that is known of `experiment`; what has not been run is missing.

    Raises:
        ValueError: nothing has been run, or runs of one task were scored on different rows.
    """
    jobs = all_jobs(experiment)
    runs = {_place(job): (job, result) for job in jobs if job.kind == "run" and (result := work.result(job))}
    teachers = {job.task: result for job in jobs if job.kind == "teacher" and (result := work.result(job))}
    if not runs:
        raise ValueError(f"{work.root} holds no finished run of {name}: run some first")
    resampled: dict[Place, np.ndarray] = {}
    for task in experiment.tasks:
        resampled |= _resampled(work, {place: job for place, (job, _) in runs.items() if place[2] == task})
    results = {place: result for place, (_, result) in runs.items()}
    return {
        "experiment": name,
        "config": told(experiment),
        "machines": sorted({r["machine"] for r in results.values()}),
        "versions": _distinct(r["versions"] for r in results.values()),
        "tasks": {task: _task(task, results, teachers) for task in experiment.tasks},
        "tables": {key: _table(experiment, table, results, resampled) for key, table in experiment.tables.items()},
        "runs": [_run(result) for result in results.values()],
    }


def _place(job: Job) -> Place:
    return job.row, job.student, job.task, job.seed


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _resampled(work: Work, jobs: dict[Place, Job]) -> dict[Place, np.ndarray]:
    """The scores of the runs of one task on resamples of its test rows."""
    if not jobs:
        return {}
    answers = {place: dict(np.load(work.job(job) / "predictions.npz")) for place, job in jobs.items()}
    results = [work.result(job) for job in jobs.values()]
    (first, *others) = (answer["labels"] for answer in answers.values())
    if not all(np.array_equal(first, other) for other in others):
        raise ValueError(
            f"the runs of {next(iter(jobs))[2]} were scored on different rows, so that they cannot be compared: give "
            "the task a validation or test split of its own"
        )
    assert results[0] is not None
    scores = resampled_scores(
        results[0]["metric"], [a["predictions"] for a in answers.values()], first, results[0]["classes"]
    )
    return dict(zip(answers, scores, strict=True))


def _task(task: str, results: dict[Place, Result], teachers: dict[str, Result]) -> dict[str, Any]:
    """What the task is scored by, and its teacher; those that taught, where more than one did."""
    mine = [result for place, result in results.items() if place[2] == task]
    found: dict[str, Any] = {"teacher_scores": sorted({r["teacher_score"] for r in mine})}
    if mine:
        found |= {name: mine[0][name] for name in ("metric", "test", "constant")}
    if task in teachers:
        found["teacher"] = {name: teachers[task][name] for name in ("score", "scores", "learning_rate", "trials")}
    return found


def _run(result: Result) -> dict[str, Any]:
    """A run in short."""
    kept = (
        "row", "student", "task", "seed", "scores", "validation", "teacher_score", "steps", "machine", "learning_rate",
        "trials",
    )  # fmt: skip
    short = {name: result[name] for name in kept}
    stages = {
        stage["name"]: {
            "seconds": stage["seconds"],
            "losses": {term: [round(x, 5) for x in ends] for term, ends in stage["losses"].items()},
        }
        for stage in result["stages"]
    }
    return short | {"stages": stages}


def _table(
    experiment: Experiment, table: Table, results: dict[Place, Result], resampled: dict[Place, np.ndarray]
) -> dict[str, Any]:
    tasks = list(table.tasks or experiment.tasks)
    return {
        "seeds": list(table.seeds),
        "against": table.against,
        "tasks": tasks,
        "students": {
            student: {
                row: _row([_cell(table, row, student, task, results, resampled) for task in tasks], tasks)
                for row in table.rows
            }
            for student in table.students or experiment.students
        },
    }


@dataclass(frozen=True)
class Cell:
    """A method on a task: the runs with each seed, and the resampled differences from the row it is compared with."""

    runs: dict[int, Result]
    difference: float | None
    differences: np.ndarray | None

    @property
    def score(self) -> float:
        return fmean(run["score"] for run in self.runs.values())

    @property
    def teacher(self) -> float:
        return fmean(run["teacher_score"] for run in self.runs.values())


def _cell(
    table: Table, row: str, student: str, task: str, results: dict[Place, Result], resampled: dict[Place, np.ndarray]
) -> Cell:
    places = {seed: (row, student, task, seed) for seed in table.seeds}
    runs = {seed: results[place] for seed, place in places.items() if place in results}
    pairs = [
        (place, other)
        for seed, place in places.items()
        if place in results and (other := (table.against, student, task, seed)) in results
    ]
    if row == table.against or not pairs:
        return Cell(runs, None, None)
    return Cell(
        runs,
        fmean(results[a]["score"] - results[b]["score"] for a, b in pairs),
        over_seeds(np.stack([resampled[a] - resampled[b] for a, b in pairs])),
    )


def _row(cells: list[Cell], tasks: list[str]) -> dict[str, Any]:
    """Every task, and the average where no task lacks."""
    runs = [run for cell in cells for run in cell.runs.values()]
    return {
        "parameters": _distinct(run["parameters"] for run in runs),
        "seconds": fmean(sum(s["seconds"] for s in run["stages"]) for run in runs) if runs else None,
        "steps": _distinct(run["steps"] for run in runs),
        "tasks": {task: _figures([cell]) for task, cell in zip(tasks, cells, strict=True) if cell.runs},
        "average": _figures(cells) if all(cell.runs for cell in cells) else None,
    }


def _figures(cells: list[Cell]) -> dict[str, Any]:
    """The mean over tasks, its standard deviation over the seeds, what is kept of the teacher's, and the verdict."""
    seeds = [seed for seed in cells[0].runs if all(seed in cell.runs for cell in cells)]
    by_seed = [fmean(cell.runs[seed]["score"] for cell in cells) for seed in seeds]
    score, taught = fmean(cell.score for cell in cells), fmean(cell.teacher for cell in cells)
    differences = [cell.differences for cell in cells if cell.differences is not None]
    compared = None
    if len(differences) == len(cells):
        observed = fmean(cell.difference for cell in cells if cell.difference is not None)
        compared = {"difference": observed, **judge(np.mean(differences, axis=0))}
    return {
        "seeds": seeds,
        "rates": min(len(run["trials"]) for cell in cells for run in cell.runs.values()),
        "score": score,
        "sd": stdev(by_seed) if len(by_seed) > 1 else None,
        "retention": score / taught if taught > 0 else None,
        "against": compared,
    }
