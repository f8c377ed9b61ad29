"""The output directory of a run: what lies where, and when an existing one may be used."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import shutil
from pathlib import Path

from fastdistill.recipe import Recipe

# what the end of a run makes from its stages (the report first: without it a run is not finished), and the rest
OUTCOME = ("report.json", "control", "checkpoints", "student", "report.md", "losses.png")
SOURCES = ("log.jsonl", "teacher", "stages")


class Workspace:
    """Names of everything under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "log.jsonl"
        self.teacher = root / "teacher"
        self.control = root / "control"
        self.student = root / "student"
        self.checkpoints = root / "checkpoints"
        self.recipe = root / "recipe.json"

    def stage(self, name: str) -> Path:
        return self.root / "stages" / name


def check_workspace(recipe: Recipe, *, resume: bool, overwrite: bool, from_stage: str | None) -> None:
    """Refuse, before any work, an output directory that this run must not use; changes nothing.

    Raises:
        ValueError: the directory holds something and none of resume, overwrite, from_stage says what to do; it holds
            another recipe's run; two of the three are given; the stage or the one before it is not there.
        OSError: the directory cannot be written.
    """
    space = Workspace(Path(recipe.output_dir).expanduser())
    if resume + overwrite + (from_stage is not None) > 1:
        raise ValueError("--resume, --overwrite and --from_stage exclude each other: give one")
    parent = next(p for p in (space.root, *space.root.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise PermissionError(f"output_dir {space.root} cannot be written ({parent}): choose another --output_dir")
    occupied = space.root.exists() and any(path.suffix != ".tmp" for path in space.root.iterdir())
    if occupied and not (resume or overwrite or from_stage):
        raise ValueError(f"output_dir {space.root} is not empty: give --resume, --overwrite or another --output_dir")
    if occupied and not space.recipe.exists():
        raise ValueError(
            f"output_dir {space.root} holds files that are not a run of fastdistill: choose another --output_dir"
        )
    if from_stage is not None:
        stages = [name for name, stage in recipe.stages.items() if not stage.skip]
        if from_stage not in stages:
            close = difflib.get_close_matches(from_stage, stages, n=1)
            raise ValueError(
                f"from_stage is {from_stage!r}, the stages of this recipe are {', '.join(stages)}"
                + (f"; did you mean {close[0]}?" if close else "")
            )
        before = ["init", *stages][stages.index(from_stage)]
        if not space.stage(before).exists():
            raise FileNotFoundError(
                f"stage {from_stage} starts from {space.stage(before)}, which does not exist: run {before} first"
            )

    if occupied and not overwrite:
        old, new = json.loads(space.recipe.read_text())["recipe"], _to_json(recipe)
        changed = [name for name in _differences(old, new) if not _may_change(name, space, recipe, from_stage)]
        if changed:
            raise ValueError(
                f"{space.root} was made with other values of {', '.join(changed)}: use the same, start again with "
                "--overwrite, or change only what has not run yet"
            )


def _may_change(name: str, space: Workspace, recipe: Recipe, from_stage: str | None) -> bool:
    """Whether the value called `name` may differ from those that the directory's run began with.

    Stages that have not begun may change, of the one that stopped half way the optimiser alone. Where data lies may
    change, for its content is compared; so may what decides no result.
    """
    part, _, option = name.partition(".")
    if name in ("output_dir", "cache_dir", "general.path", "task.path", "logging_steps", "save_steps"):
        return True
    if part in recipe.stages and from_stage is not None:
        return list(recipe.stages).index(part) >= list(recipe.stages).index(from_stage)
    folders = {"finetune": space.teacher, "control": space.control} | {n: space.stage(n) for n in recipe.stages}
    if part not in folders or (folders[part].exists() and not (part == "control" and from_stage)):
        return False
    begun = from_stage is None and any(space.checkpoints.glob(f"{part}-*"))
    return option.startswith("optim.") or not begun


def open_workspace(recipe: Recipe, fingerprint: str, *, overwrite: bool, from_stage: str | None) -> Workspace:
    """Make the output directory ready, after `check_workspace` passed: delete what this run makes again.

    Raises:
        ValueError: the directory's run read other data; `fingerprint` tells.
    """
    space = Workspace(Path(recipe.output_dir).expanduser())
    if space.recipe.exists() and not overwrite and json.loads(space.recipe.read_text())["data"] != fingerprint:
        raise ValueError(f"{space.root} was made from other data or another split: start again with --overwrite")
    if overwrite:
        for name in OUTCOME + SOURCES:
            _delete(space.root / name)
    if from_stage is not None:
        names = list(recipe.stages)
        again = [space.stage(name) for name in names[names.index(from_stage) :]]
        for path in (*(space.root / name for name in OUTCOME), *again):
            _delete(path)
    space.root.mkdir(parents=True, exist_ok=True)
    temporary = space.recipe.with_suffix(".tmp")
    temporary.write_text(json.dumps({"recipe": _to_json(recipe), "data": fingerprint}, indent=1))
    temporary.replace(space.recipe)  # never missing beside other files: it marks the directory as a run's
    space.checkpoints.mkdir(exist_ok=True)
    return space


def _delete(path: Path) -> None:
    if path.is_dir():  # renamed first: a folder half deleted must not be taken for a finished one
        trash = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(trash, ignore_errors=True)
        path = path.rename(trash)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _to_json(recipe: Recipe) -> dict[str, object]:
    values: dict[str, object] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return values


def _differences(old: object, new: object, name: str = "") -> list[str]:
    """Dotted names of the values that differ, but for where the files lie."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{name}.{k}".lstrip("."))]
    return [] if old == new else [name.removeprefix("stages.")]
