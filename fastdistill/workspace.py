"""The output directory of a run: what lies where, and when an existing one may be used."""

from __future__ import annotations

import dataclasses
import difflib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastdistill.checkpoint import publish_file
from fastdistill.recipe import Recipe

# what the end of a run makes from its stages, and the rest; deleted in this order, a log after what it tells of
OUTCOME = ("report.json", "control", "checkpoints", "student", "report.md", "losses.png")
SOURCES = ("stages", "teacher", "log.jsonl")
# values that decide no result: data and teacher are compared by their content, wherever they lie
INDIFFERENT = (
    "output_dir",
    "cache_dir",
    "teacher.path",
    "general.path",
    "task.path",
    "task.augment.model",
    "task.augment.vectors",
    "task.augment.tokens_per_batch",
    "verify_cache",
    "logging_steps",
    "save_steps",
)


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

    @classmethod
    def of(cls, recipe: Recipe) -> Workspace:
        return cls(Path(recipe.output_dir).expanduser())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory, so that no second run works in it; a killed run lets go of it.

        Raises:
            ValueError: another run holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another run is at work in {self.root}: choose another --output_dir") from None
            yield

    def stage(self, name: str) -> Path:
        return self.root / "stages" / name


def check_workspace(
    recipe: Recipe, *, resume: bool, overwrite: bool, from_stage: str | None, reads: Recipe | None = None
) -> None:
    """Refuse, before any work, an output directory that this run must not use; changes nothing.

    What `reads` names, default `recipe`, must not lie in what is deleted.

    Raises:
        ValueError: the directory holds something and none of resume, overwrite, from_stage says what to do; it holds
            another recipe's run; two of the three are given; the stage or the one before it is not there.
        OSError: the directory cannot be written.
    """
    space = Workspace.of(recipe)
    if resume + overwrite + (from_stage is not None) > 1:
        raise ValueError("--resume, --overwrite and --from_stage exclude each other: give one")
    check_writable(space.root)
    occupied = space.root.exists() and any(
        p.suffix != ".tmp" and p.name not in (".lock", "assistant") for p in space.root.iterdir()
    )
    if occupied and not (resume or overwrite or from_stage):
        raise ValueError(f"output_dir {space.root} is not empty: give --resume, --overwrite or another --output_dir")
    if occupied and not space.recipe.exists():
        raise ValueError(
            f"output_dir {space.root} holds files that are not a run of fastdistill: choose another --output_dir"
        )
    if occupied:
        _saved(space)  # refuses a recipe.json that is none of ours
    if from_stage is not None:
        stages = [name for name, stage in recipe.stages.items() if not stage.skip]
        if from_stage not in stages:
            close = difflib.get_close_matches(from_stage, stages, n=1)
            raise ValueError(
                f"from_stage is {from_stage!r}, the stages of this recipe are {', '.join(stages)}"
                + (f"; did you mean {close[0]}?" if close else "")
            )
        before = ["init", *stages][stages.index(from_stage)]
        if not all((space.stage(before) / file).exists() for file in ("model.safetensors", "result.json")):
            raise FileNotFoundError(
                f"stage {from_stage} starts from {space.stage(before)}, which does not exist: run {before} first"
            )

    if occupied and not overwrite:
        old, new = _saved(space)["recipe"], _to_json(recipe)
        changed = [name for name in _differences(old, new) if not _may_change(name, space, recipe, from_stage)]
        if [name for name in recipe.stages if name in old.get("stages", ())] != list(old.get("stages", ())):
            changed.append("the order of stages")
        if changed:
            raise ValueError(
                f"{space.root} was made with other values of {', '.join(changed)}: use the same, start again with "
                "--overwrite, or change only what has not run yet"
            )

    refuse_to_delete(_doomed(space, recipe, overwrite=overwrite, from_stage=from_stage), reads or recipe)


def check_writable(output_dir: Path) -> None:
    """Refuse a directory that cannot be made or written.

    Raises:
        PermissionError: it cannot.
    """
    parent = next(p for p in (output_dir, *output_dir.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise PermissionError(f"output_dir {output_dir} cannot be written ({parent}): choose another --output_dir")


def refuse_to_delete(doomed: list[Path], recipe: Recipe) -> None:
    """Refuse to delete folders that hold what `recipe` reads.

    Raises:
        ValueError: one does.
    """
    teacher, augment = recipe.teacher, recipe.task.augment
    teachers = (
        teacher.path,
        teacher.finetuned,
        *teacher.others,
        augment.model,
        recipe.assistant and recipe.assistant.path,
    )
    for path in (*teachers, recipe.student.path, recipe.general.path, recipe.task.path, augment.vectors):
        if path and any(Path(path).expanduser().resolve().is_relative_to(folder.resolve()) for folder in doomed):
            raise ValueError(
                f"{path} lies in what this run would delete: copy it elsewhere, or choose another --output_dir"
            )


def _doomed(space: Workspace, recipe: Recipe, *, overwrite: bool, from_stage: str | None) -> list[Path]:
    """What the run deletes before it starts, in this order; a run without its report is not finished."""
    names = list(recipe.stages)
    again = [] if from_stage is None else [space.stage(name) for name in reversed(names[names.index(from_stage) :])]
    # a finished run that is resumed with a stage or a control that it did not have
    longer = (
        space.recipe.exists()
        and not overwrite
        and (space.root / "report.json").exists()
        and bool(changed_values(space, recipe))
    )
    outcome = [space.root / name for name in OUTCOME] if overwrite or again or longer else []
    return outcome + again + ([space.root / name for name in SOURCES] if overwrite else [])


def _may_change(name: str, space: Workspace, recipe: Recipe, from_stage: str | None) -> bool:
    """Whether the value called `name` may differ from those that the directory's run began with.

    Stages that have not begun may change, of the one that stopped half way the optimiser alone; and what decides no
    result.
    """
    part, _, option = name.partition(".")
    if name in INDIFFERENT:
        return True
    if part in recipe.stages and from_stage is not None:
        return list(recipe.stages).index(part) >= list(recipe.stages).index(from_stage)
    if part in recipe.stages and any(space.stage(later).exists() for later in _after(part, recipe)):
        return False
    folders = {"finetune": space.teacher, "control": space.control} | {n: space.stage(n) for n in recipe.stages}
    if part not in folders or (folders[part].exists() and not (part == "control" and from_stage)):
        return False
    begun = from_stage is None and any(space.checkpoints.glob(f"{part}-*"))
    return option.startswith("optim.") or not begun


def open_workspace(
    space: Workspace, recipe: Recipe, fingerprint: str, *, overwrite: bool, from_stage: str | None
) -> None:
    """Make the output directory ready, after `check_workspace` passed: delete what this run makes again.

    Raises:
        ValueError: the directory's run read other data or another teacher; `fingerprint` tells.
    """
    if space.recipe.exists() and not overwrite:
        check_read(space, fingerprint)
    for path in _doomed(space, recipe, overwrite=overwrite, from_stage=from_stage):
        delete(path)
    for path in space.root.glob("**/.*.tmp"):  # left by a kill
        delete(path)
    text = json.dumps({"recipe": _to_json(recipe), "data": fingerprint}, indent=1)
    # never missing beside other files: it marks the directory as a run's
    publish_file(space.recipe, partial(Path.write_text, data=text))
    space.checkpoints.mkdir(exist_ok=True)


def changed_values(space: Workspace, recipe: Recipe) -> list[str]:
    """Dotted names of what the directory's run was made with other values of, that decide results."""
    return [name for name in _differences(_saved(space)["recipe"], _to_json(recipe)) if name not in INDIFFERENT]


def check_read(space: Workspace, fingerprint: str) -> None:
    """Refuse to go on with what was made from other data than `fingerprint` tells.

    Raises:
        ValueError: the directory's run read other data or another teacher.
    """
    if _saved(space)["data"] != fingerprint:
        raise ValueError(
            f"{space.root} was made from other data, another split or another teacher: start again with --overwrite"
        )


def delete(path: Path) -> None:
    """Delete a file or folder, where there is one."""
    if path.is_dir():  # renamed first: a folder half deleted must not be taken for a finished one
        trash = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(trash, ignore_errors=True)
        path = path.rename(trash)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _saved(space: Workspace) -> dict[str, Any]:
    """The recipe and the data that the directory's run began with."""
    try:
        saved = json.loads(space.recipe.read_text())
        return {"recipe": saved["recipe"], "data": saved["data"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{space.recipe} is damaged, or not of a run ({error!r}): choose another --output_dir, or delete this one"
        ) from None


def _after(stage: str, recipe: Recipe) -> list[str]:
    """The stages of the recipe behind `stage`."""
    names = list(recipe.stages)
    return names[names.index(stage) + 1 :]


def _to_json(recipe: Recipe) -> dict[str, object]:
    values: dict[str, object] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return values


def _differences(old: object, new: object, name: str = "") -> list[str]:
    """Dotted names of the values that differ, but for where the files lie."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{name}.{k}".lstrip("."))]
    return [] if old == new else [name.removeprefix("stages.")]
