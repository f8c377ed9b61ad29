"""Doing one job: run its recipe, ask the student about the test rows, keep what is needed."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from bench.quality.jobs import Job, placed, told
from bench.quality.work import Result, Work
from bench.timing import device_name
from fastdistill import Encoder, Recipe, run
from fastdistill.checkpoint import publish
from fastdistill.data.tasks import load_task
from fastdistill.evaluate import metric_of, predict, score
from fastdistill.models.pretrained import load_tokenizer
from fastdistill.step import Runtime
from fastdistill.workspace import Workspace

METRICS = {"classification": ("accuracy", "f1", "matthews"), "regression": ("pearson", "spearman")}


def perform(job: Job, work: Work, data: Path) -> Result:
    """Do `job`, from where it was interrupted; its folder appears whole.

    Raises:
        ValueError: the data or a model is not what the recipe needs.
        FloatingPointError: a loss became NaN or infinite.
        OSError: something could not be read or written.
    """
    if job.recipe is None:
        return choose(job, work)
    recipe = placed(job.recipe, data=data, models=work.jobs, output_dir=work.run(job), cache_dir=work.root / "cache")
    start = time.perf_counter()
    report = run(recipe, resume=True)
    space = Workspace.of(recipe)
    result: Result = {
        **about(job),
        "steps": job.steps,
        "stages": report["stages"],
        "parameters": report["student"]["parameters"],
        "latency_ms": report["student"]["latency_ms"],
        "recipe": told(job.recipe),
        "versions": report["versions"],
        "machine": device_name(Runtime.of(recipe).device.type),
        "command": f"python -m bench.quality {' '.join(sys.argv[1:])}",
    }
    answers: dict[str, np.ndarray] = {}
    if job.kind != "general":
        answers, scored = examined(recipe, space)
        validation = report["stages"][-1]["validation"]
        result |= scored | {"validation": validation, "teacher_score": report["teacher"]["score"]}
    trained = sum(stage["seconds"] for stage in report["stages"])
    result["seconds"] = round(max(time.perf_counter() - start, trained), 1)  # less of one that was resumed
    (*_, last) = job.recipe.stages

    def write(to: Path) -> None:
        if job.kind != "run":  # with the projections, which the student's own folder lacks
            shutil.copytree(space.stage(last), to / "model", ignore=shutil.ignore_patterns("result.json"))
        if answers:
            np.savez_compressed(to / "predictions.npz", **answers)  # type: ignore[arg-type]
        shutil.copy(space.log, to / "log.jsonl")
        (to / "result.json").write_text(json.dumps(result, indent=1))

    publish(work.job(job), write)
    shutil.rmtree(work.run(job))
    return result


def choose(job: Job, work: Work) -> Result:
    """The teacher of a task: of its trials the one with the best score on the validation rows."""
    trials = {trial.row: work.result(trial) for trial in job.needs}
    results = {rate: result for rate, result in trials.items() if result is not None}
    best = max(job.needs, key=lambda trial: results[trial.row]["validation"])
    result: Result = {
        **results[best.row],
        **about(job),
        "learning_rate": float(best.row),
        "trials": {rate: {"validation": r["validation"], "seconds": r["seconds"]} for rate, r in results.items()},
        "seconds": 0.0,
    }

    def write(to: Path) -> None:
        shutil.copytree(work.job(best), to, dirs_exist_ok=True)
        (to / "result.json").write_text(json.dumps(result, indent=1))

    publish(work.job(job), write)
    for trial in job.needs:
        shutil.rmtree(work.jobs / trial.model)
    return result


def about(job: Job) -> Result:
    """What a result is of."""
    return {name: getattr(job, name) for name in ("name", "kind", "row", "student", "task", "seed")}


def examined(recipe: Recipe, space: Workspace) -> tuple[dict[str, np.ndarray], Result]:
    """Predictions and gold labels of the test rows, and the scores that they give."""
    task = load_task(recipe.task, load_tokenizer(space.student), recipe.seed)
    device = Runtime.of(recipe).device
    predictions = predict(Encoder.load(space.student, head="finetuned").to(device), task.test, device)
    labels = task.test.labels
    assert labels is not None, "the test rows of a task have labels"
    classes = len(task.label_names) if task.label_names else 1
    scores = {name: score(name, predictions, labels, classes) for name in METRICS[recipe.task.kind]}
    metric = metric_of(recipe.task)
    small = np.float32 if classes == 1 else np.int16
    return {"predictions": predictions.astype(small), "labels": labels.astype(small)}, {
        "metric": metric,
        "score": scores[metric],
        "scores": scores,
        "classes": classes,
        "test": {"rows": len(labels), "origin": task.origins["test"]},
    }
