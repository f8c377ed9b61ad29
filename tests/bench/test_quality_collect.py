"""From results to means, spreads, retention and verdicts: on predictions made by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.quality.collect import collect
from bench.quality.config import Experiment, read
from bench.quality.jobs import all_jobs
from bench.quality.work import Work
from fastdistill.data.gold import Gold
from fastdistill.metrics import score

CONFIG = """
teacher: {path: teacher, learning_rates: [1e-4]}
learning_rates: [1e-4]
general: {path: general.txt}
tasks: {one: {path: one}, two: {path: two, metric: matthews}}
students: {2x12: {num_hidden_layers: 2}}
budget: {general_steps: 4, general_tokens: 96, task_steps: {one: 6, two: 5}, task_tokens: 64}
methods:
  control: {recipe: recipes.finetune}
  good: {recipe: recipes.ernie_tiny}
  late: {base: good, overrides: {gd: {skip: true}}}
tables:
  methods: {rows: [control, good, late], seeds: [1, 2, 3]}
"""
RIGHT = {"control": 0.6, "good": 0.9, "late": 0.6}
LABELS = {task: np.random.default_rng(seed).integers(0, 2, 300) for task, seed in (("one", 1), ("two", 2))}
MISSING = ("late/2x12/two/1", "late/2x12/two/2", "late/2x12/two/3", "late/2x12/one/3")
TEACHER = {"one": 0.9, "two": 0.8}


def answers(row: str, task: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, *row.encode()])
    return np.where(rng.random(300) < RIGHT[row], LABELS[task], 1 - LABELS[task])


def metric_of(task: str) -> str:
    return "accuracy" if task == "one" else "matthews"


def scored(row: str, task: str, seed: int) -> float:
    gold = Gold("classification", LABELS[task], ("no", "yes"))
    return score(metric_of(task), answers(row, task, seed), gold)  # type: ignore[arg-type]


@pytest.fixture
def work(tmp_path: Path) -> tuple[Experiment, Work]:
    """An experiment of which all but `MISSING` has been run."""
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    experiment, work = read(tmp_path / "tiny.yaml"), Work(tmp_path / "work")
    for job in all_jobs(experiment):
        if job.kind == "run" and job.name not in MISSING:
            write(work.job(job), {
                "row": job.row, "student": job.student, "task": job.task, "seed": job.seed, "steps": job.steps,
                "score": scored(job.row, job.task, job.seed), "metric": metric_of(job.task), "classes": 2, "scores": {},
                "teacher_score": TEACHER[job.task], "test": {"rows": 300, "origin": "validation"}, "constant": 0.5,
                "parameters": {"teacher": 9, "student": 7}, "learning_rate": 1e-4, "trials": [1e-4],
                "validation": None, "seconds": 1.0, "machine": "CPU", "versions": {"torch": "2"}, "stages": [],
            }, answers(job.row, job.task, job.seed), LABELS[job.task])  # fmt: skip
    return experiment, work


def write(folder: Path, result: dict[str, Any], predictions: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    np.savez(folder / "predictions.npz", predictions=predictions, labels=labels)


def test_means_spreads_and_retention(work: tuple[Experiment, Work]) -> None:
    rows = collect("tiny", *work)["tables"]["methods"]["students"]["2x12"]
    by_seed = {task: [scored("good", task, seed) for seed in (1, 2, 3)] for task in ("one", "two")}
    for task, scores in by_seed.items():
        cell = rows["good"]["tasks"][task]
        assert cell["seeds"] == [1, 2, 3]
        assert cell["score"] == pytest.approx(np.mean(scores))
        assert cell["sd"] == pytest.approx(np.std(scores, ddof=1))
        assert cell["retention"] == pytest.approx(np.mean(scores) / TEACHER[task])
    average, over_tasks = rows["good"]["average"], np.mean(list(by_seed.values()), axis=0)
    assert average["score"] == pytest.approx(over_tasks.mean())
    assert average["sd"] == pytest.approx(np.std(over_tasks, ddof=1))
    assert average["retention"] == pytest.approx(over_tasks.mean() / 0.85)
    assert rows["good"]["steps"] == [{"general": 4, "task": 6}, {"general": 4, "task": 5}]
    assert rows["control"]["steps"][0]["general"] == 0


def test_machines_and_versions_are_of_all_that_was_trained(work: tuple[Experiment, Work]) -> None:
    experiment, folder = work
    assert collect("tiny", *work)["machines"] == ["CPU"]
    (part,) = {
        p.folder: p for j in all_jobs(experiment) if j.name == "good/2x12/one/1" for p in j.needs[0].parts
    }.values()
    assert part.kind == "part"
    folder.job(part).mkdir(parents=True)
    (folder.job(part) / "result.json").write_text(json.dumps({"machine": "GPU", "versions": {"torch": "3"}}))
    found = collect("tiny", *work)
    assert found["machines"] == ["CPU", "GPU"]
    assert {"torch": "3"} in found["versions"]


def test_verdicts_are_of_the_means_over_seeds(work: tuple[Experiment, Work]) -> None:
    rows = collect("tiny", *work)["tables"]["methods"]["students"]["2x12"]
    for task in ("one", "two"):
        against = rows["good"]["tasks"][task]["against"]
        apart = np.mean([scored("good", task, s) - scored("control", task, s) for s in (1, 2, 3)])
        assert against["difference"] == pytest.approx(apart)
        assert against["low"] < apart < against["high"]
        assert against["verdict"] == "BEATS"
    right = [
        (answers("good", "one", s) == LABELS["one"]).astype(float) - (answers("control", "one", s) == LABELS["one"])
        for s in (1, 2, 3)
    ]
    of_rows = np.mean(right, axis=0).std() / 300**0.5  # rows, not rows times seeds, are what was drawn
    of_seeds = np.mean(right, axis=1).std() / 3**0.5
    found = rows["good"]["tasks"]["one"]["against"]
    assert found["high"] - found["low"] > 2 * 1.96 * of_rows
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * np.hypot(of_rows, of_seeds), rel=0.2)
    assert rows["good"]["average"]["against"]["verdict"] == "BEATS"
    assert rows["control"]["tasks"]["one"]["against"] is None


def test_what_has_not_been_run_is_missing_and_pairs_have_the_same_seed(work: tuple[Experiment, Work]) -> None:
    late = collect("tiny", *work)["tables"]["methods"]["students"]["2x12"]["late"]
    assert late["tasks"].keys() == {"one"}
    assert late["average"] is None
    cell = late["tasks"]["one"]
    assert (cell["seeds"], cell["against"]["verdict"]) == ([1, 2], "INCONCLUSIVE")
    apart = [scored("late", "one", seed) - scored("control", "one", seed) for seed in (1, 2)]
    assert cell["against"]["difference"] == pytest.approx(np.mean(apart))
    assert cell["against"]["seeds"] == [1, 2]


def test_averages_are_of_the_seeds_that_no_task_lacks(work: tuple[Experiment, Work]) -> None:
    experiment, folder = work
    done = {job.name: folder.job(job) for job in all_jobs(experiment)}
    shutil.rmtree(done["good/2x12/two/2"])
    shutil.rmtree(done["control/2x12/one/3"])
    good = collect("tiny", experiment, folder)["tables"]["methods"]["students"]["2x12"]["good"]
    both = [[scored("good", task, seed) for task in ("one", "two")] for seed in (1, 3)]
    assert good["average"]["seeds"] == [1, 3]
    assert good["average"]["score"] == pytest.approx(np.mean(both))
    assert good["tasks"]["one"]["seeds"] == [1, 2, 3]
    assert [good["tasks"][task]["against"]["seeds"] for task in ("one", "two")] == [[1, 2], [1, 3]]
    assert good["average"]["against"] is None, "differences of unlike seeds"
    for lacking in ("good/2x12/one/1", "good/2x12/one/3"):
        shutil.rmtree(done[lacking])
    good = collect("tiny", experiment, folder)["tables"]["methods"]["students"]["2x12"]["good"]
    assert [good["tasks"][task]["seeds"] for task in ("one", "two")] == [[2], [1, 3]]
    assert good["average"] is None


@pytest.mark.parametrize("name", ["result.json", "predictions.npz"])
@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", None])
def test_damaged_results_are_named(name: str, content: str | None, work: tuple[Experiment, Work]) -> None:
    experiment, folder = work
    job = next(job for job in all_jobs(experiment) if job.kind == "run" and job.name not in MISSING)
    file = folder.job(job) / name
    file.unlink() if content is None else file.write_text(content)
    if (name, content) == ("result.json", None):  # then it has not been run
        assert collect("tiny", *work)["runs"]
        return
    with pytest.raises(ValueError, match=rf"{file} is .*damaged: delete {file.parent}, and the job is done again"):
        collect("tiny", *work)
    folder.expected_seconds(job)  # other jobs go on


def test_runs_scored_on_other_rows_are_refused(work: tuple[Experiment, Work]) -> None:
    experiment, folder = work
    (job,) = (job for job in all_jobs(experiment) if job.name == "good/2x12/two/2")
    np.savez(folder.job(job) / "predictions.npz", predictions=LABELS["two"], labels=1 - LABELS["two"])
    with pytest.raises(ValueError, match="the runs of two were scored on different rows"):
        collect("tiny", experiment, folder)


def test_teachers_are_listed_where_more_than_one_taught(work: tuple[Experiment, Work]) -> None:
    experiment, folder = work
    (job,) = (job for job in all_jobs(experiment) if job.name == "good/2x12/two/2")
    path = folder.job(job) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"teacher_score": 0.7}))
    found = collect("tiny", experiment, folder)
    assert found["tasks"]["two"]["teacher_scores"] == [0.7, 0.8]
    assert found["tasks"]["one"]["teacher_scores"] == [0.9]


def test_the_fewest_rates_that_a_run_chose_from_are_told(work: tuple[Experiment, Work]) -> None:
    experiment, folder = work
    (job,) = (job for job in all_jobs(experiment) if job.name == "good/2x12/two/2")
    path = folder.job(job) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trials": [1e-4, 2e-4]}))
    good = collect("tiny", experiment, folder)["tables"]["methods"]["students"]["2x12"]["good"]
    assert [good["tasks"][task]["rates"] for task in ("one", "two")] == [1, 1]
