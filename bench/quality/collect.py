"""From the finished jobs of an experiment to its results: means, spreads, retention, verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from zipfile import BadZipFile

import numpy as np

from bench.quality.config import Experiment, Table
from bench.quality.jobs import Job, all_jobs, told, with_needs
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
    made = [result for job in with_needs(job for job, _ in runs.values()) if (result := work.result(job))]
    return {
        "experiment": name,
        "config": told(experiment),
        "machines": sorted({result["machine"] for result in made}),
        "versions": _distinct(result["versions"] for result in made),
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
    answers = {place: _predictions(work.job(job) / "predictions.npz") for place, job in jobs.items()}
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


def _predictions(path: Path) -> dict[str, np.ndarray]:
    try:
        return dict(np.load(path))
    except (OSError, EOFError, ValueError, BadZipFile):
        raise ValueError(f"{path} is missing or damaged: delete {path.parent}, and the job is done again") from None


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
    """A method on a task: the runs with each seed; of those that the row it is compared with has as well, the seeds,
    and the resampled differences from it."""

    runs: dict[int, Result]
    compared: tuple[int, ...] = ()
    difference: float = 0.0
    differences: np.ndarray | None = None


def _cell(
    table: Table, row: str, student: str, task: str, results: dict[Place, Result], resampled: dict[Place, np.ndarray]
) -> Cell:
    places = {seed: (row, student, task, seed) for seed in table.seeds}
    runs = {seed: results[place] for seed, place in places.items() if place in results}
    pairs = {
        seed: (place, other)
        for seed, place in places.items()
        if place in results and (other := (table.against, student, task, seed)) in results
    }
    if row == table.against or not pairs:
        return Cell(runs)
    return Cell(
        runs,
        tuple(pairs),
        fmean(results[a]["score"] - results[b]["score"] for a, b in pairs.values()),
        over_seeds(np.stack([resampled[a] - resampled[b] for a, b in pairs.values()])),
    )


def _row(cells: list[Cell], tasks: list[str]) -> dict[str, Any]:
    """Every task, and the average over those seeds that no task lacks."""
    runs = [run for cell in cells for run in cell.runs.values()]
    return {
        "parameters": _distinct(run["parameters"] for run in runs),
        "seconds": fmean(sum(s["seconds"] for s in run["stages"]) for run in runs) if runs else None,
        "steps": _distinct(run["steps"] for run in runs),
        "tasks": {task: _figures([cell]) for task, cell in zip(tasks, cells, strict=True) if cell.runs},
        "average": _figures(cells) if set.intersection(*(set(cell.runs) for cell in cells)) else None,
    }


def _figures(cells: list[Cell]) -> dict[str, Any]:
    """The mean over tasks, its standard deviation over the seeds, what is kept of the teacher's, and the verdict."""
    seeds = [seed for seed in cells[0].runs if all(seed in cell.runs for cell in cells)]
    by_seed, taught = (
        [fmean(cell.runs[seed][of] for cell in cells) for seed in seeds] for of in ("score", "teacher_score")
    )
    score, teacher = fmean(by_seed), fmean(taught)
    compared, paired = None, cells[0].compared
    differences = [cell.differences for cell in cells if cell.differences is not None and cell.compared == paired]
    if len(differences) == len(cells):
        observed = fmean(cell.difference for cell in cells)
        compared = {"seeds": list(paired), "difference": observed, **judge(np.mean(differences, axis=0))}
    return {
        "seeds": seeds,
        "rates": min(len(run["trials"]) for cell in cells for run in cell.runs.values()),
        "score": score,
        "sd": stdev(by_seed) if len(by_seed) > 1 else None,
        "retention": score / teacher if teacher > 0 else None,
        "against": compared,
    }
