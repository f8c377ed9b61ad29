"""A grid of runs: every combination of some values, the best by the score on the validation rows."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from fastdistill import ranks
from fastdistill.checkpoint import publish
from fastdistill.checks import check_values
from fastdistill.cli import overridden
from fastdistill.data.columns import complete
from fastdistill.inputs import load_inputs
from fastdistill.recipe import Recipe
from fastdistill.roles import load_models
from fastdistill.runner import opened
from fastdistill.workspace import Workspace, check_workspace, delete, refuse_to_delete

Values = dict[str, Any]
# what all runs have in common: they learn from one teacher, and are compared on the same rows
SHARED = ("teacher", "finetune", "control", "task", "seed", "output_dir", "assistant")
OUTCOME = ("sweep.md", "sweep.json", "student")


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
            scored on validation rows, or an output directory that holds something else.
        FloatingPointError: every run diverged, or the teacher's fine-tuning did.
        OSError: something could not be read or written.
    """
    root = Path(recipe.output_dir).expanduser()
    variants = list(combinations(recipe, grid))
    _check(recipe, variants)
    runs = _placed(root, recipe, [variant for _, variant in variants])
    ranks.agree(lambda: _check_folders(root, runs, resume=resume, overwrite=overwrite))
    rows: list[Values] = []
    with ExitStack() as held:
        ranks.agree(lambda: held.enter_context(Workspace(root).lock()))
        for variant, (values, _) in zip(runs, variants, strict=True):
            folder = Path(variant.output_dir)
            if any("control" in row for row in rows):
                variant = dataclasses.replace(variant, control=dataclasses.replace(variant.control, skip=True))
            there = ranks.agree(folder.exists)
            report: Values = {}
            try:
                with opened(variant, resume=resume and there, overwrite=overwrite and there) as runner:
                    if not rows:  # what all runs read has been checked
                        ranks.agree(lambda: _begin(root, runs, overwrite=overwrite))
                    report = runner.run()
            except FloatingPointError as error:  # with these values; the next ones may do
                ended = FloatingPointError(str(error))  # without the frames that hold the run's models
                print(f"run {folder.name} has no result: {error}")
                if not rows and _makes_teacher(recipe) and not ranks.agree(Workspace(folder).teacher.exists):
                    raise ended from None  # the teacher's own
            row = {"run": folder.name, "values": values, "validation": None, "score": None}
            if report:
                row |= {"validation": report["stages"][-1]["validation"], "score": report["student"]["score"]}
            if "control" in report:
                row["control"] = report["control"]["score"]
            rows.append(row)
        if all(row["validation"] is None for row in rows):
            raise ended
        rows.sort(key=lambda row: -math.inf if row["validation"] is None else row["validation"], reverse=True)
        ranks.agree(lambda: _write(root, rows))
    return rows


def _placed(root: Path, recipe: Recipe, variants: list[Recipe]) -> list[Recipe]:
    """The runs, each in its folder, all but the first with the teacher that the first one makes, if it does."""
    folders = [root / "runs" / f"{number:03d}" for number in range(len(variants))]
    made = str(Workspace(folders[0]).teacher) if _makes_teacher(recipe) else recipe.teacher.finetuned
    later = dataclasses.replace(recipe.teacher, finetuned=made)
    return [
        dataclasses.replace(variant, output_dir=str(folder), teacher=later if number else recipe.teacher)
        for number, (folder, variant) in enumerate(zip(folders, variants, strict=True))
    ]


def _check_folders(root: Path, runs: list[Recipe], *, resume: bool, overwrite: bool) -> None:
    """Refuse, before any work, folders that this sweep must not use; changes nothing.

    Raises:
        ValueError: see `check_workspace`, which this calls for every run; or the directory holds something else than
            a sweep, or is not empty and neither resume nor overwrite is given.
        OSError: it cannot be written.
    """
    occupied = root.is_dir() and any(path.name != ".lock" for path in root.iterdir())
    if occupied and not (root / "sweep.json").exists():
        raise ValueError(f"output_dir {root} holds files that are not a sweep: choose another --output_dir")
    if occupied and not (resume or overwrite):
        raise ValueError(f"output_dir {root} is not empty: give --resume, --overwrite or another --output_dir")
    doomed = _surplus(root, len(runs)) if overwrite else []
    for recipe in (*runs, *(dataclasses.replace(runs[0], output_dir=str(folder)) for folder in doomed)):
        there = Path(recipe.output_dir).exists()
        check_workspace(recipe, resume=resume and there, overwrite=overwrite and there, from_stage=None)
        refuse_to_delete([*(root / name for name in OUTCOME), *doomed], recipe)
        if there:  # and not in use
            with Workspace.of(recipe).lock():
                pass


def _surplus(root: Path, count: int) -> list[Path]:
    """Runs that a larger grid left behind: those from `count` on."""
    old = [path.parent for path in (root / "runs").glob("*/recipe.json")]
    return [folder for folder in old if folder.name.isdigit() and int(folder.name) >= count]


def _begin(root: Path, runs: list[Recipe], *, overwrite: bool) -> None:
    """Mark the directory as a sweep's; with overwrite, delete the outcome of the old one, and its surplus runs."""
    for folder in _surplus(root, len(runs)) if overwrite else ():
        with Workspace(folder).lock():
            shutil.rmtree(folder)
    for name in OUTCOME if overwrite else ():
        delete(root / name)
    if not (root / "sweep.json").exists():
        (root / "sweep.json").write_text("[]")


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
    if nested := [(name, group) for group in names for name in names if name.startswith(f"{group}.")]:
        raise ValueError(f"sweep: {' is a part of '.join(nested[0])}: leave one out")
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


def _makes_teacher(recipe: Recipe) -> bool:
    """Whether the first run fine-tunes the teacher of all."""
    named = (recipe.task.path or recipe.task.name) is not None
    return named and recipe.teacher.finetuned is None and not recipe.finetune.skip


def _read_by(recipe: Recipe) -> tuple[Any, ...]:
    """What decides, beside what all runs share and the models, whether a run can read its data."""
    return recipe.general, *((x.data, x.tokens_per_batch) for x in recipe.stages.values() if not x.skip)


def _check(recipe: Recipe, variants: list[tuple[Values, Recipe]]) -> None:
    """Refuse, before the first run, what some run could not use; the first one checks its inputs itself."""
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
    checked = [_read_by(variants[0][1])]
    for values, variant in variants:
        try:
            load_models(dataclasses.replace(variant, task=task))
            if (read := _read_by(variant)) not in checked:
                checked.append(read)
                ranks.first(partial(load_inputs, variant))
        except ValueError as error:
            combination = ", ".join(f"{name} {value}" for name, value in values.items())
            raise ValueError(f"sweep, {combination}: {error}") from None


def _write(root: Path, rows: list[Values]) -> None:
    """sweep.json, sweep.md and the best student."""
    columns = list(rows[0]["values"])
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
