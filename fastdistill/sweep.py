"""A grid of runs: every combination of some values, the best by the score on the validation rows."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from fastdistill import ranks
from fastdistill.checkpoint import publish
from fastdistill.checks import check_values
from fastdistill.cli import overridden
from fastdistill.data.columns import complete
from fastdistill.recipe import Recipe
from fastdistill.roles import load_models
from fastdistill.runner import run
from fastdistill.workspace import Workspace, refuse_to_delete

Values = dict[str, Any]
# what all runs have in common: they learn from one teacher, and are compared on the same rows
SHARED = ("teacher", "finetune", "control", "task", "seed", "output_dir", "assistant")


def sweep(
    recipe: Recipe, grid: Mapping[str, Sequence[Any]], *, resume: bool = False, overwrite: bool = False
) -> list[Values]:
    """Run `recipe` once for every combination of the values in `grid`, and say which is best on the validation rows.

    Each run lies in a folder of its own under ``output_dir/runs``. The first one fine-tunes the teacher for all, the
    first that comes to an end trains the control; a run whose loss becomes infinite or NaN has no scores, and the
    others go on. ``output_dir`` gets a copy of the best student and sweep.md, one row for each run.

    Args:
        recipe: what is not in the grid.
        grid: lists of values by dotted name, such as ``{"pkd.losses.temperature": [5, 10]}``; names that change
            together are joined by commas, and have lists for values.
        resume, overwrite: as in `run`, of every run.

    Returns:
        Of every run its values, score on the validation rows (`validation`) and score on the held-out rows (`score`),
        best first; None where it diverged.

    Raises:
        ValueError: a name that the recipe has not got, values that no run could use, a recipe whose last stage is not
            scored on validation rows, or an output directory that holds a single run.
        FloatingPointError: every run diverged, or the teacher's fine-tuning did.
        OSError: something could not be read or written.
    """
    root = Path(recipe.output_dir).expanduser()
    names, variants = list(grid), list(combinations(recipe, grid))
    _check(recipe, root, variants)
    if overwrite:
        ranks.agree(lambda: _delete_surplus(root, recipe, len(variants)))
    rows: list[Values] = []
    teacher = recipe.teacher
    for number, (values, variant) in enumerate(variants):
        folder = root / "runs" / f"{number:03d}"
        variant = dataclasses.replace(variant, output_dir=str(folder), teacher=teacher)
        if any("control" in row for row in rows):
            variant = dataclasses.replace(variant, control=dataclasses.replace(variant.control, skip=True))
        there = ranks.agree(folder.exists)
        report: Values = {}
        try:
            report = run(variant, resume=resume and there, overwrite=overwrite and there)
        except FloatingPointError as error:  # with these values; the next ones may do
            ended = FloatingPointError(str(error))  # without the frames that hold the run's models
            print(f"run {folder.name} has no result: {error}")
        if number == 0 and teacher.finetuned is None and _needs_teacher(recipe):
            if not ranks.agree(Workspace(folder).teacher.exists):
                raise ended  # the teacher's own
            teacher = dataclasses.replace(teacher, finetuned=str(Workspace(folder).teacher))
        row = {"run": folder.name, "values": values, "validation": None, "score": None}
        if report:
            row |= {"validation": report["stages"][-1]["validation"], "score": report["student"]["score"]}
        if "control" in report:
            row["control"] = report["control"]["score"]
        rows.append(row)
    if all(row["validation"] is None for row in rows):
        raise ended
    rows.sort(key=lambda row: -math.inf if row["validation"] is None else row["validation"], reverse=True)
    ranks.agree(lambda: _write(root, names, rows))
    return rows


def _delete_surplus(root: Path, recipe: Recipe, count: int) -> None:
    """Delete what a larger grid left behind: its outcome, and its runs from `count` on."""
    old = [path.parent for path in (root / "runs").glob("*/recipe.json") if path.parent.name.isdigit()]
    surplus = [folder for folder in old if int(folder.name) >= count]
    refuse_to_delete(surplus, recipe)
    for name in ("sweep.md", "sweep.json"):
        (root / name).unlink(missing_ok=True)
    for folder in surplus:
        shutil.rmtree(folder)


def combinations(recipe: Recipe, grid: Mapping[str, Sequence[Any]]) -> list[tuple[Values, Recipe]]:
    """The values of every run, and `recipe` with them."""
    if not grid:
        raise ValueError("the sweep names no values: give a grid such as {'tsd.losses.temperature': [1, 2]}")
    for name, listed in grid.items():
        if not isinstance(listed, list | tuple) or not listed:
            raise ValueError(f"sweep: {name} is {listed!r}: give a list of values")
    names = [part.strip() for name in grid for part in name.split(",")]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"sweep: {twice[0]} is named twice: leave one out")
    found = []
    for chosen in product(*grid.values()):
        values: Values = {}
        for name, value in zip(grid, chosen, strict=True):
            parts = [part.strip() for part in name.split(",")]
            many = value if len(parts) > 1 else [value]
            if not isinstance(many, list | tuple) or len(many) != len(parts):
                raise ValueError(f"sweep: {name} are {len(parts)} values, {value!r} is not as many")
            values |= dict(zip(parts, many, strict=True))
        try:
            found.append((values, overridden(recipe, _nested(values))))
        except ValueError as error:
            raise ValueError(f"sweep: {' '.join(str(error).split())}") from None
    return found


def _nested(values: Values) -> Values:
    """``{"a.b": 1, "a.c": 2}`` as ``{"a": {"b": 1, "c": 2}}``."""
    tree: Values = {}
    for name, value in values.items():
        *groups, last = name.split(".")
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return tree


def _needs_teacher(recipe: Recipe) -> bool:
    return (recipe.task.path or recipe.task.name) is not None and not recipe.finetune.skip


def _check(recipe: Recipe, root: Path, variants: list[tuple[Values, Recipe]]) -> None:
    """Refuse, before the first run, what some run could not use."""
    for values, variant in variants:
        check_values(variant)
        if touched := [name for name in values if name.split(".")[0] in SHARED]:
            raise ValueError(f"sweep: {touched[0]} cannot vary, for the runs share it")
        if variant.assistant is not None:
            raise ValueError("a sweep has no assistants: distil the assistant first, and name it as the teacher")
        last = [stage for stage in variant.stages.values() if not stage.skip][-1:]
        if not last or last[0].keep != "best":
            raise ValueError("a sweep chooses by the score on the validation rows: the last stage must keep the best")
    task, _ = complete(recipe.task)
    for values, variant in variants:
        try:
            load_models(dataclasses.replace(variant, task=task))
        except ValueError as error:
            combination = ", ".join(f"{name} {value}" for name, value in values.items())
            raise ValueError(f"sweep, {combination}: {error}") from None
    if (root / "recipe.json").exists():
        raise ValueError(f"{root} holds a single run: choose another --output_dir for the sweep")


def _write(root: Path, names: list[str], rows: list[Values]) -> None:
    """sweep.json, sweep.md and the best student."""
    columns = [part.strip() for name in names for part in name.split(",")]
    control = next((row for row in rows if "control" in row), None)
    lines = [
        f"| run | {' | '.join(columns)} | validation (%) | held out (%) |",
        "|---|" + "---:|" * (len(columns) + 2),
        *(
            f"| {row['run']} | {' | '.join(str(row['values'][name]) for name in columns)} | "
            + " | ".join("diverged" if row[x] is None else f"{100 * row[x]:.2f}" for x in ("validation", "score"))
            + " |"
            for row in rows
        ),
    ]
    said = ""
    if control is not None:
        said = f" The control of run {control['run']} has {100 * control['control']:.2f} % on the held-out rows."
    best = root / "runs" / rows[0]["run"] / "student"
    text = "\n".join([*lines, "", f"Best on the validation rows first; its student is {root / 'student'}.{said}", ""])

    def copy(to: Path) -> None:
        shutil.copytree(best, to, dirs_exist_ok=True)

    publish(root / "student", copy)
    (root / "sweep.md").write_text(text)
    (root / "sweep.json").write_text(json.dumps(rows, indent=1))
    print(f"\n{text}")
