"""docs/results.md from the committed results; `python -m bench.table` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.record import RESULTS

EXPERIMENTS = Path(__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "results.md"
NOT_RUN = "not run"
METRICS = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "entity_f1": "entity F1",
}
INTRODUCTION = """\
# Results

Scores are of rows that no choice was made on, in %, and in brackets what that is of the teacher's score; over several
seeds the mean and the standard deviation. Choices were made on other rows, the same for teachers and all methods: those
of the data's validation split where test rows are scored, otherwise rows set aside from train. They are the learning
rate of the teacher and that of each method's last stage, out of those that are listed, and the best epoch of a stage
with labels. Learning rates of earlier stages, temperatures and weights were set by hand. Variants of a method were
thought of after results of others, some of them on these very rows (`bench/NOTES.md` says which): what those reach
here may be more than they reach elsewhere.
Every student of a table begins with the same layers of its teacher, if its line does not say otherwise, and takes the
same optimiser steps of the same number of tokens; methods without a stage on general text take none there. What always
gives the same answer scores as the line of that name says.

A verdict is a paired bootstrap of 10,000 resamples of the test rows and of the seeds: the difference from the row that
is compared with, and its 95 % interval. BEATS: the interval lies above 0. DOES NOT: it ends at 0 or below.
INCONCLUSIVE: 0 lies inside. With one seed the interval does not hold what another seed would change. Intervals are not
widened for their number.
"""


def render() -> str:
    """The page; one section for every experiment of every machine."""
    paths = sorted(RESULTS.glob("*/quality_*.json"))
    found = [json.loads(path.read_text()) for path in paths]
    lacking = sorted({path.stem for path in EXPERIMENTS.glob("*.yaml")} - {one["experiment"] for one in found})
    lines = [f"Experiments of `bench/quality/` that were not run: {', '.join(lacking)}.\n"] if lacking else []
    return "\n".join([INTRODUCTION, *lines, *map(section, found)])


def section(found: dict[str, Any]) -> str:
    """One experiment: its setting, and for every table and student the scores and the verdicts.

    Tables without a run but of what the others are compared with are named alone.
    """
    config = found["config"]
    budget = config["budget"]
    taught = [
        f"{task} {_percent(values['teacher']['score'])} ({values['teacher']['learning_rate']:g})"
        for task, values in found["tasks"].items()
        if "teacher" in values
    ]
    scored = [
        f"{task} {values['test']['rows']:,} of {values['test']['origin']}"
        + (f", {n:,} of them in train word for word" if (n := values["test"].get("in train")) else "")
        for task, values in found["tasks"].items()
        if "test" in values
    ]
    again = [task for task, values in found["tasks"].items() if len(values["teacher_scores"]) > 1]
    versions = [f"torch {v.get('torch')}, transformers {v.get('transformers')}" for v in found["versions"]]
    general = "; steps"
    if path := config["general"].get("path"):
        general = (
            f", general text {Path(path).name}; {budget['general_steps']:,} steps of {budget['general_tokens']:,} "
            "tokens on general text,"
        )
    lines = [
        f"## {found['experiment']}\n",
        f"{', '.join(found['machines'])}; {'; '.join(dict.fromkeys(versions))}. "
        f"Teacher {Path(config['teacher']['path']).name}{general} on the tasks "
        f"{', '.join(f'{task} {steps:,}' for task, steps in budget['task_steps'].items())} of "
        f"{budget['task_tokens']:,} tokens.\n",
        f"Learning rates tried: {_rates(config['teacher']['learning_rates'])} for teachers, "
        f"{_rates(config['learning_rates'])} for last stages. Teachers (and the rate chosen): "
        f"{', '.join(taught) or NOT_RUN}.\n",
        f"Scored rows: {', '.join(scored) or NOT_RUN}.\n",
    ]
    if again:
        lines.append(
            f"The teacher of {', '.join(again)} was fine-tuned more than once: what a method keeps is of its own one.\n"
        )
    nothing = []
    for key, table in found["tables"].items():
        for student, rows in table["students"].items():
            run, tasks = _ran(table, rows)
            if not run:
                nothing.append(f"{key} with {student}")
                continue
            lines += [f"### {key}, student {student}\n", _sizes(table, run), scores(found, table, tasks, run), ""]
            if table["against"] in run:
                lines += [verdicts(found, table, tasks, run), ""]
            lines += _ends(found, table, student, run)
            lacking = [task for task in table["tasks"] if task not in tasks]
            if lacking := lacking + [_title(found, row) for row in rows if row not in run]:
                lines.append(f"Not run: {'; '.join(lacking)}.\n")
    if nothing:
        lines.append(f"Tables not run: {'; '.join(nothing)}.\n")
    return "\n".join(lines)


def methods(found: dict[str, Any]) -> str:
    """The scores of its table of methods, for every student that has some."""
    table, parts = found["tables"]["methods"], []
    for student, rows in table["students"].items():
        run, tasks = _ran(table, rows)
        if run:
            parts.append(f"Student {student}. {_sizes(table, run)}\n{scores(found, table, tasks, run)}")
    return "\n\n".join(parts)


def _ran(table: dict[str, Any], rows: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The rows that were run and their tasks; none if that is but the one that the others are compared with."""
    run = {key: row for key, row in rows.items() if row["tasks"]}
    if not run.keys() - {table["against"]}:
        return {}, []
    return run, [task for task in table["tasks"] if any(task in row["tasks"] for row in run.values())]


def scores(found: dict[str, Any], table: dict[str, Any], tasks: list[str], rows: dict[str, Any]) -> str:
    """The teacher, then a line for every method: steps, and the scores with what they are of the teacher's.

    An average has a column where there are several tasks and none of them lacks.
    """
    average, rates = len(tasks) > 1 and tasks == table["tasks"], len(found["config"]["learning_rates"])
    names = [f"{task}, {METRICS.get(m := found['tasks'][task].get('metric', ''), m)}".strip(", ") for task in tasks]
    fixed = {
        "teacher": [fmean(found["tasks"][task]["teacher_scores"]) for task in tasks],
        "always the same answer": [found["tasks"][task]["constant"] for task in tasks],
    }
    lines = [
        f"| | general steps | {' | '.join(names)} |{' average |' * average}",
        f"|---|---:|{'---:|' * (len(tasks) + average)}",
    ]
    for name, values in fixed.items():
        values = [*values, fmean(values)] if average else values
        lines.append(f"| {name} | | {' | '.join(map(_percent, values))} |")
    for key, row in rows.items():
        cells = [_cell(row["tasks"].get(task), table["seeds"], rates) for task in tasks]
        steps = ", ".join(f"{n:,}" for n in sorted({step["general"] for step in row["steps"]}))
        cells += [_cell(row["average"], table["seeds"], rates)] if average else []
        lines.append(f"| {_title(found, key)} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _sizes(table: dict[str, Any], rows: dict[str, Any]) -> str:
    """With how many seeds, and what the student has of its teacher's parameters; the heads of tasks differ a little."""
    seeds = len(table["seeds"])
    sizes = [size for row in rows.values() for size in row["parameters"]]
    small, large = (max(size[name] for size in sizes) / 1e6 for name in ("student", "teacher"))
    return f"{'One seed' if seeds == 1 else f'{seeds} seeds'}; {small:.1f}M parameters, the teacher has {large:.1f}M.\n"


def _rates(rates: list[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def verdicts(found: dict[str, Any], table: dict[str, Any], tasks: list[str], rows: dict[str, Any]) -> str:
    """A line for every method but the one that the others are compared with."""
    average = len(tasks) > 1 and tasks == table["tasks"]
    lines = [
        f"| against {_title(found, table['against'])} | {' | '.join(tasks)} |{' average |' * average}",
        f"|---|{'---|' * (len(tasks) + average)}",
    ]
    for key, row in rows.items():
        if key != table["against"]:
            cells = [_verdict(row["tasks"].get(task), table["seeds"]) for task in tasks]
            cells += [_verdict(row["average"], table["seeds"])] if average else []
            lines.append(f"| {_title(found, key)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ends(found: dict[str, Any], table: dict[str, Any], student: str, rows: dict[str, Any]) -> list[str]:
    """Which runs of a table did best with the highest or the lowest rate that was tried."""
    rates, said = found["config"]["learning_rates"], []
    for end, rate in {"highest": max(rates), "lowest": min(rates)}.items():
        chosen = {
            (run["row"], run["task"])
            for run in found["runs"]
            if run["student"] == student
            and run["seed"] in table["seeds"]
            and run["learning_rate"] == rate
            and [trial["validation"] for trial in run["trials"]].count(run["validation"]) == 1
        }
        mine = {row: [task for task in table["tasks"] if (row, task) in chosen] for row in rows}
        names = [f"{_title(found, row)} ({', '.join(tasks)})" for row, tasks in mine.items() if tasks]
        said += [f"the {end} in {'; '.join(names)}"] if names else []
    if not said or len(rates) == 1:
        return []
    return [
        f"Of the rates tried, on the validation rows the best was {', and '.join(said)}: one beyond might do better.\n"
    ]


def _title(found: dict[str, Any], key: str) -> str:
    return str(found["config"]["methods"][key].get("title", key))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _cell(cell: dict[str, Any] | None, seeds: list[int], rates: int) -> str:
    if cell is None:
        return NOT_RUN
    spread = "" if cell["sd"] is None else f" ± {100 * cell['sd']:.1f}"
    kept = [] if cell["retention"] is None else [f"{_percent(cell['retention'])} %"]
    lacking = [f"{len(cell['seeds'])} of {len(seeds)} seeds"] if len(cell["seeds"]) < len(seeds) else []
    lacking += [f"{rates - cell['rates']} of {rates} rates diverged"] if cell["rates"] < rates else []
    remarks = f" ({'; '.join(kept + lacking)})" if kept + lacking else ""
    return f"{_percent(cell['score'])}{spread}{remarks}"


def _verdict(cell: dict[str, Any] | None, seeds: list[int]) -> str:
    if cell is None or cell["against"] is None:
        return NOT_RUN
    found = cell["against"]
    paired = f"; {len(found['seeds'])} of {len(seeds)} seeds" if len(found["seeds"]) < len(seeds) else ""
    low, high = (f"{100 * found[end]:+.1f}" for end in ("low", "high"))
    return f"{found['verdict']} {100 * found['difference']:+.1f} ({low} to {high}{paired})"
