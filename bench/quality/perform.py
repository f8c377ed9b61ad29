"""Doing one job: run its recipe, ask the student about the test rows, keep what is needed."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.quality.jobs import Job, placed, read_by, told
from bench.quality.verdict import check_metric, constant_score
from bench.quality.work import Result, Work, digest_of
from bench.timing import device_name
from fastdistill.checkpoint import publish
from fastdistill.data.columns import complete
from fastdistill.data.gold import Gold
from fastdistill.evaluate import predict
from fastdistill.metrics import classes, entities, metrics_of, scores
from fastdistill.report import results, versions
from fastdistill.runner import Runner, opened


def perform(job: Job, work: Work, data: Path) -> Result:
    """Do `job`, from where it was interrupted; its folder appears whole.

    Raises:
        ValueError: the data or a model is not what the recipe needs.
        FloatingPointError: a loss became NaN or infinite.
        OSError: something could not be read or written.
    """
    if job.recipe is None:
        return choose(job, work)
    before = [stage for part in job.parts for stage in (work.result(part) or {})["stages"]]
    recipe = placed(job.recipe, data=data, models=work.jobs, output_dir=work.run(job), cache_dir=work.root / "cache")
    if job.kind == "trial":
        completed, _ = complete(recipe.task)
        check_metric(str(completed.kind), metrics_of(completed)[0])
    read = {path: digest for path in sorted(read_by([job])) if (digest := digest_of(data / path))}
    start = time.perf_counter()
    with opened(recipe, resume=True) as runner:
        student = runner.train_student()
    stages = results(recipe, runner.space)
    result: Result = {
        **about(job),
        "steps": job.steps,
        "stages": [*before, *stages],
        "recipe": told(job.recipe),
        "data": read,
        "versions": versions(),
        "machine": device_name(runner.runtime.device.type),
        "command": f"python -m bench.quality {' '.join(sys.argv[1:])}",
    }
    answers: dict[str, np.ndarray] = {}
    if job.kind == "trial":
        answers, scored = examined(runner, student)
        result |= scored | {"validation": stages[-1]["validation"]}
        for taught_by in (work.result(need) for need in job.needs if need.kind == "teacher"):
            assert taught_by is not None, "needs are done first"
            result["parameters"]["teacher"] = taught_by["parameters"]["student"]
            result["teacher_score"] = taught_by["score"]
    trained = sum(stage["seconds"] for stage in stages)
    result["seconds"] = round(max(time.perf_counter() - start, trained), 1)  # less of one that was resumed

    def write(to: Path) -> None:
        # with the projections, which the student's own folder lacks
        shutil.copytree(student, to / "model", ignore=shutil.ignore_patterns("result.json"))
        if answers:
            np.savez_compressed(to / "predictions.npz", **answers)  # type: ignore[arg-type]
        shutil.copy(runner.space.log, to / "log.jsonl")
        (to / "result.json").write_text(json.dumps(result, indent=1))

    publish(work.job(job), write)
    shutil.rmtree(work.run(job))
    return result


def choose(job: Job, work: Work) -> Result:
    """Of the trials that came to an end the one with the best score on the validation rows."""
    ended = {trial: result for trial in job.needs if (result := work.result(trial)) is not None}
    best = max(ended, key=lambda trial: ended[trial]["validation"])
    chosen: Result = {
        **ended[best],
        **about(job),
        "learning_rate": best.learning_rate,
        "trials": [
            {"learning_rate": trial.learning_rate, **{n: r[n] for n in ("validation", "score", "seconds")}}
            for trial, r in ended.items()
        ],
        "seconds": 0.0,
    }
    if job.kind == "teacher" and not (work.jobs / best.model).exists():
        raise ValueError(f"the model of the best trial is lost: delete {work.job(best)}, and it is made again")
    left = shutil.ignore_patterns("model") if job.kind == "run" else None  # nothing starts from a run

    def write(to: Path) -> None:
        shutil.copytree(work.job(best), to, ignore=left, dirs_exist_ok=True)
        (to / "result.json").write_text(json.dumps(chosen, indent=1))

    publish(work.job(job), write)
    for trial in job.needs:
        shutil.rmtree(work.jobs / trial.model, ignore_errors=True)
    return chosen


def about(job: Job) -> Result:
    """What a result is of."""
    return {name: getattr(job, name) for name in ("name", "kind", "row", "student", "task", "seed")}


def examined(runner: Runner, student: Path) -> tuple[dict[str, np.ndarray], Result]:
    """Predictions and gold labels of the test rows, and the scores that they give."""
    task = runner.inputs.task
    assert task is not None, "a trial's last stage learns one"
    gold, device = task.test.gold, runner.runtime.device
    assert gold is not None, "the test rows of a task have labels"
    encoder = runner.inputs.load_headed(student).to(device)
    predictions = predict(encoder, task.test, device)
    metrics = metrics_of(runner.recipe.task)
    check_metric(gold.kind, metrics[0])  # tags are known only now
    scored = scores(metrics, predictions, gold)
    answers, num_classes = compact(predictions, gold), len(gold.names) if gold.names else 1
    return answers, {
        "parameters": {"student": encoder.model.num_parameters()},
        "metric": metrics[0],
        "score": scored[metrics[0]],
        "scores": scored,
        "constant": constant_score(metrics[0], answers["labels"], num_classes),
        "classes": num_classes,
        "test": {"rows": len(gold.rows), "origin": task.origins["test"], "in train": task.test.counts["in train"]},
    }


def compact(predictions: Any, gold: Gold) -> dict[str, np.ndarray]:
    """Predictions and labels, row by row, as `verdict` reads them; of tags the entities of each row: how many are
    right, were predicted, and are there.
    """
    if gold.kind == "tagging":
        pairs = [(entities(p), entities(g)) for p, g in zip(predictions, gold.rows, strict=True)]
        counts = np.array([(len(p & g), len(p), len(g)) for p, g in pairs], np.int16)
        return {"predictions": counts, "labels": counts[:, 2]}
    small = np.float32 if gold.kind == "regression" else np.int16
    return {"predictions": classes(predictions, gold).astype(small), "labels": np.asarray(gold.rows).astype(small)}
