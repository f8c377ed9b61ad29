"""The report: report.json, report.md, the loss curves, and the student folder with its model card."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from fastdistill import __version__
from fastdistill.assistant import FOLDER
from fastdistill.checkpoint import publish
from fastdistill.evaluate import agreement, latency_ms, predict
from fastdistill.inputs import Inputs
from fastdistill.log import Log
from fastdistill.metrics import metrics_of
from fastdistill.models.pretrained import load_plain
from fastdistill.recipe import HeadKind, Recipe
from fastdistill.workspace import Workspace

Report = dict[str, Any]


def write(recipe: Recipe, inputs: Inputs, space: Workspace, log: Log, student: Path, device: torch.device) -> Report:
    """Measure teacher, student and control, and write what the run leaves behind; passed over where it is there."""
    path = space.root / "report.json"
    if not (path.exists() and space.student.exists()):
        report = measure(recipe, inputs, space, student, device)
        publish(space.student, lambda to: _export(student, to, model_card(report)))
        ran = ["finetune", *(stage["name"] for stage in report["stages"]), "control"]
        figure = loss_curves([r for r in records(space.log) if r["stage"] in ran])
        figure.savefig(space.root / "losses.png", dpi=110)
        (space.root / "report.md").write_text(to_markdown(report))
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(report, indent=1))
        temporary.replace(path)
    report = json.loads(path.read_text())
    log.say(
        f"\n{summary(report)}\n\nstudent  {space.student}, a Hugging Face folder\nreport   {space.root / 'report.md'}"
    )
    return report


def records(log: Path) -> list[dict[str, Any]]:
    """Everything logged."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def first_and_last(log: Path, stage: str) -> dict[str, list[float]]:
    """Each term's mean over the first and the last logged interval of `stage`."""
    steps = [r["losses"] for r in records(log) if r["event"] == "step" and r["stage"] == stage]
    return {term: [steps[0][term], steps[-1][term]] for term in steps[0]}


def results(recipe: Recipe, space: Workspace) -> list[dict[str, Any]]:
    """The results of the distillation stages that ran, in order."""
    paths = [space.stage(name) / "result.json" for name, stage in recipe.stages.items() if not stage.skip]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def measure(recipe: Recipe, inputs: Inputs, space: Workspace, student: Path, device: torch.device) -> Report:
    """All figures of the report; scores are of the held-out rows, latencies taken side by side on the CPU in fp32."""
    task = inputs.task
    folders: dict[str, str | Path] = {
        "teacher": recipe.teacher.finetuned or space.teacher,
        "student": student,
        "control": space.control,
    }
    if task is None or not (space.teacher / "result.json").exists():
        folders["teacher"] = recipe.teacher.path or str(recipe.teacher.finetuned)
    if not space.control.exists():
        del folders["control"]
    stages = results(recipe, space)
    heads: dict[str, HeadKind | None] = {
        "teacher": inputs.kind if (space.teacher / "result.json").exists() else None,
        "student": stages[-1]["head"],
        "control": inputs.kind,
    }
    headed = {name: task is not None and kind == inputs.kind for name, kind in heads.items()}
    plain = {name: load_plain(path, heads[name]) for name, path in folders.items()}
    length = min(64, inputs.student.max_length)
    latency = latency_ms(plain, batch_size=8, length=length)
    models: Report = {}
    comparable = headed["teacher"] and inputs.kind != "regression" and not recipe.task.group
    predictions: dict[str, Any] = {}
    for name, path in folders.items():
        result = Path(path) / "result.json" if name != "teacher" else space.teacher / "result.json"
        found = json.loads(result.read_text()) if result.exists() else {}
        scored = found.get("score")
        models[name] = {
            "score": scored,
            "metric": metrics_of(recipe.task)[0] if scored is not None else None,
            "scores": found.get("scores", {}),
            "probe": scored is not None and not headed[name],
            "parameters": plain[name].num_parameters(),
            "latency_ms": round(latency[name], 3),
        }
        if task is not None and headed[name] and comparable:
            predictions[name] = predict(inputs.load_headed(path).to(device), task.test, device)
    for name in ("student", "control"):
        if name in predictions:
            models[name]["agreement"] = agreement(predictions[name], predictions["teacher"])
    teacher, small = models["teacher"], models["student"]
    return {
        **models,
        **_original_teacher(recipe, space),
        "retention": small["score"] / teacher["score"] if headed["student"] and (teacher["score"] or 0) > 0 else None,
        "compression": teacher["parameters"] / small["parameters"],
        "speedup": teacher["latency_ms"] / small["latency_ms"],
        "stages": stages,
        "data": inputs.data_counts(),
        "latency": {"batch_size": 8, "length": length, "threads": torch.get_num_threads(), "cpu": cpu_name()},
        "seed": recipe.seed,
        "versions": versions(),
        "recipe": dataclasses.asdict(recipe),
    }


def versions() -> dict[str, str]:
    """Of what decides the figures."""
    packages = {name: version(name) for name in ("torch", "transformers", "datasets", "numpy")}
    return {"fastdistill": __version__, **packages, "python": platform.python_version()}


def _original_teacher(recipe: Recipe, space: Workspace) -> Report:
    """What an assistant, which is the teacher of the report, was itself distilled from; empty without one."""
    if recipe.assistant is None:
        return {}
    first = json.loads((space.root / FOLDER / "report.json").read_text())
    teacher = first["recipe"]["teacher"]
    name, *others = (Path(path).name for path in (teacher["finetuned"] or teacher["path"], *teacher["others"]))
    return {"original_teacher": {"name": name, "others": others, **first["teacher"]}}


def _export(stage: Path, to: Path, card: str) -> None:
    """The plain Hugging Face folder: the last stage's, without what only fastdistill reads."""
    shutil.copytree(
        stage, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("objective.safetensors", "result.json")
    )
    (to / "README.md").write_text(card)


def _row(name: str, values: dict[str, Any], teacher: dict[str, Any]) -> str:
    scored = "-" if values["score"] is None else f"{100 * values['score']:.1f}" + " (probe)" * values["probe"]
    return (
        f"| {name} | {scored} | {values['parameters'] / 1e6:.1f}M | {values['latency_ms']:.1f} ms | "
        f"{teacher['parameters'] / values['parameters']:.1f}x | {teacher['latency_ms'] / values['latency_ms']:.1f}x |"
    )


def _models(report: Report) -> dict[str, str]:
    """The models of the report, and what to call them."""
    first = "first teacher" if report["recipe"]["teacher"]["others"] else "teacher"
    called = {"teacher": "assistant" if "original_teacher" in report else first}
    return called | {name: name for name in ("student", "control") if name in report}


def table(report: Report) -> str:
    """Teacher, student and control, as a Markdown table."""
    metric = report["teacher"]["metric"] or "score"
    lines = [
        f"| | {metric} (%) | parameters | CPU latency | smaller | faster |",
        "|---|---:|---:|---:|---:|---:|",
        *(_row(called, report[name], report["teacher"]) for name, called in _models(report).items()),
    ]
    return "\n".join(lines)


def summary(report: Report) -> str:
    """The table, and how much of the teacher, or of the assistant in its place, the student keeps."""
    sentences, student, teacher = [], report["student"], _models(report)["teacher"]
    if report["retention"] is not None:
        sentences.append(f"The student keeps {100 * report['retention']:.1f} % of its {teacher}'s score.")
    if "agreement" in student:
        sentences.append(f"It agrees with its {teacher} on {100 * student['agreement']:.1f} % of the rows.")
    if others := report["recipe"]["teacher"]["others"]:
        sentences.append(f"The student learnt from {len(others)} more teachers, which are not scored here.")
    if original := report.get("original_teacher"):
        scored = f"{100 * original['score']:.1f} %, " if original["score"] is not None else ""
        sentences.append(
            f"The assistant was itself distilled from {original['name']} ({scored}"
            f"{original['parameters'] / 1e6:.1f}M parameters)"
            + (f" and {', '.join(original['others'])}, not scored here" if original["others"] else "")
            + "; smaller and faster are relative to the assistant."
        )
    return "\n\n".join([table(report), " ".join(sentences)]).strip()


def all_scores(report: Report) -> str:
    """Every score of teacher, student and control, as a Markdown table; empty where there are none."""
    models = {called: report[name]["scores"] for name, called in _models(report).items()}
    metrics = dict.fromkeys(metric for scores in models.values() for metric in scores)
    if not metrics:
        return ""
    lines = [f"| (%) | {' | '.join(models)} |", f"|---|{'---:|' * len(models)}"]
    for metric in metrics:
        values = (f"{100 * scores[metric]:.1f}" if metric in scores else "-" for scores in models.values())
        lines.append(f"| {metric} | {' | '.join(values)} |")
    return "\n".join(lines)


def cpu_name() -> str:
    """What the machine calls its processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def to_markdown(report: Report) -> str:
    """The report as a page."""
    stages = [
        "| stage | teacher | data | steps | tokens | seconds | tokens/s | score (%) | "
        + "terms, first -> last logged interval |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for s in report["stages"]:
        terms = ", ".join(f"{term} {first:.4g} -> {last:.4g}" for term, (first, last) in s["losses"].items())
        probed = "" if s["head"] == report["recipe"]["task"]["kind"] else " (probe)"
        scored = "-" if s["score"] is None else f"{100 * s['score']:.1f}{probed}"
        stages.append(
            f"| {s['name']} | {s['teacher']} | {s['data']} | {s['steps']} | {s['tokens']:,} | {s['seconds']:.0f} | "
            f"{s['tokens_per_second']:,.0f} | {scored} | {terms} |"
        )
    data, latency = report["data"], report["latency"]
    rows = {name: data[name]["examples"] if name in data else 0 for name in ("validation", "test")}
    read = []
    for name, counts in data.items():
        found = ", ".join(f"{count:,} {what}" for what, count in counts.items() if what != "origin")
        read.append(f"| {name} | {found} | {counts['origin']} |")
    held_out = control = ""
    if rows["test"]:
        held_out = (
            f"Scores are of {rows['test']:,} held-out rows that no choice was made on, {data['test']['in train']:,} of "
            f"them\nin train word for word; every choice was made on {rows['validation']:,} validation rows. "
        )
    if "control" in report:
        control = (
            "The control is the same student, from the same initial weights, trained on gold labels alone for as many\n"
            "steps as the stages on task data took.\n"
        )
    return f"""# Distillation report

{summary(report)}

{all_scores(report)}

{held_out}Latency is the median of a forward pass of {latency["batch_size"]} sequences
of {latency["length"]} tokens in fp32 on {latency["threads"]} threads of {latency["cpu"]}, the models taking turns.
{control}

## Stages

{chr(10).join(stages)}

A probe is a linear model fitted to the last states ([CLS], or the labelled tokens) of a student that has no head yet.

![loss curves](losses.png)

## Data

| part | what was read | from |
|---|---|---|
{chr(10).join(read)}

## Run

Seed {report["seed"]}; {", ".join(f"{name} {number}" for name, number in report["versions"].items())}.
"""


def model_card(report: Report) -> str:
    """The README of the student folder."""
    recipe, latency = report["recipe"], report["latency"]
    teacher = f"`{Path(recipe['teacher']['finetuned'] or recipe['teacher']['path']).name}`"
    if recipe["assistant"] is not None:
        teacher = "its teacher's assistant"
    if others := recipe["teacher"]["others"]:
        teacher += f" and {len(others)} more (its scores here are the first one's)"
    task = recipe["task"]["name"] or Path(recipe["task"]["path"] or "").name
    return f"""---
library_name: transformers
tags: [distillation, fastdistill]
---

# Distilled student

A student of {teacher}, distilled with fastdistill
{f"on `{task}`" if task else "on general text"} through the stages {", ".join(s["name"] for s in report["stages"])}.

{summary(report)}

{"Scores are of held-out rows." if task else ""}
Latency is of {latency["batch_size"]} sequences of {latency["length"]} tokens in fp32 on {latency["threads"]} threads of
{latency["cpu"]}.
"""


def loss_curves(log: list[dict[str, Any]]) -> Figure:
    """One panel for each stage: every term against the step, on a logarithmic scale."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for r in log:
        if r["event"] == "step":
            for term, value in r["losses"].items():
                curves[r["stage"]][term].append((r["step"], value))
    figure = Figure(figsize=(3.6 * max(1, len(curves)), 3.4), layout="constrained")
    panels = figure.subplots(1, max(1, len(curves)), squeeze=False)[0]
    for panel, (stage, terms) in zip(panels, curves.items(), strict=False):
        for term, points in terms.items():
            panel.plot(*zip(*points, strict=True), label=term, marker=".", markersize=3)
        panel.set(title=stage, xlabel="step", yscale="log")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    panels[0].set_ylabel("loss term")
    return figure
