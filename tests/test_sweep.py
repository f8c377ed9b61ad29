"""A grid of runs, and the table that comes of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fastdistill import Recipe, Student
from fastdistill.sweep import combinations, sweep
from fastdistill.workspace import Workspace
from recipes.kd import RECIPE
from tests.tiny import shorten, tiny_recipe

replace = dataclasses.replace
GRID = {"kd.losses.temperature": [1.0, 4.0], "kd.losses.soft,kd.losses.hard": [[1.0, 0.0], [0.5, 0.5]]}


def small(world: Path, out: Path) -> Recipe:
    return replace(tiny_recipe(world, out), stages={"kd": shorten(RECIPE.stages["kd"], 6)})


def test_every_combination_once() -> None:
    found = combinations(RECIPE, GRID)
    values = [(v["kd.losses.temperature"], v["kd.losses.soft"], v["kd.losses.hard"]) for v, _ in found]
    assert values == [(1.0, 1.0, 0.0), (1.0, 0.5, 0.5), (4.0, 1.0, 0.0), (4.0, 0.5, 0.5)]
    for (temperature, soft, hard), (_, recipe) in zip(values, found, strict=True):
        losses = recipe.stages["kd"].losses
        assert (losses.temperature, losses.soft, losses.hard) == (temperature, soft, hard)
        assert recipe.stages["kd"].optim == RECIPE.stages["kd"].optim


def test_best_on_the_validation_rows_comes_first(world: Path, tmp_path: Path) -> None:
    recipe, out = small(world, tmp_path / "out"), tmp_path / "out"
    rows = sweep(recipe, GRID)
    assert [row["validation"] for row in rows] == sorted((row["validation"] for row in rows), reverse=True)
    reports = {name: json.loads((out / "runs" / name / "report.json").read_text()) for name in ("000", "003")}
    for row in rows:
        if row["run"] in reports:
            assert row["validation"] == reports[row["run"]]["stages"][-1]["validation"]
            assert row["score"] == reports[row["run"]]["student"]["score"]
    best = load_file(out / "runs" / rows[0]["run"] / "student" / "model.safetensors")
    assert all((best[k] == v).all() for k, v in load_file(out / "student" / "model.safetensors").items())
    assert (out / "runs" / "000" / "teacher" / "model.safetensors").exists()
    assert not (out / "runs" / "001" / "teacher" / "model.safetensors").exists()  # that of the first run
    assert ["control" in row for row in sorted(rows, key=lambda row: row["run"])] == [True, False, False, False]
    lines = (out / "sweep.md").read_text().splitlines()
    names = ["run", "kd.losses.temperature", "kd.losses.soft", "kd.losses.hard", "validation (%)", "held out (%)"]
    assert lines[0] == f"| {' | '.join(names)} |"
    assert [line.split(" | ")[0] for line in lines[2:6]] == [f"| {row['run']}" for row in rows]
    times = [(out / "runs" / f"{n:03d}" / "report.json").stat().st_mtime_ns for n in range(4)]
    assert sweep(recipe, GRID, resume=True) == rows
    assert times == [(out / "runs" / f"{n:03d}" / "report.json").stat().st_mtime_ns for n in range(4)]


def test_a_run_that_diverges_has_no_scores_and_the_others_go_on(world: Path, tmp_path: Path) -> None:
    recipe, out = small(world, tmp_path / "out"), tmp_path / "out"
    rows = sweep(recipe, {"kd.optim.learning_rate": [1e38, 1e-4]})
    assert [(row["run"], row["validation"] is None) for row in rows] == [("001", False), ("000", True)]
    assert (rows[1]["score"], "control" in rows[0]) == (None, True)
    told = (out / "sweep.md").read_text()
    assert "| 000 | 1e+38 | diverged | diverged |" in told
    assert "The control of run 001 has" in told
    assert sweep(recipe, {"kd.optim.learning_rate": [1e38, 1e-4]}, resume=True) == rows


def test_a_smaller_grid_leaves_nothing_of_the_larger_one(world: Path, tmp_path: Path) -> None:
    recipe, runs = small(world, tmp_path / "out"), tmp_path / "out" / "runs"
    sweep(recipe, {"kd.losses.temperature": [1.0, 2.0, 4.0]})
    (runs / "notes").mkdir()
    teacher = replace(recipe.teacher, finetuned=str(runs / "002" / "student"))
    with pytest.raises(ValueError, match="002/student lies in what this run would delete"):
        sweep(replace(recipe, teacher=teacher), {"kd.losses.temperature": [1.0, 2.0]}, overwrite=True)
    assert (runs / "002" / "student").exists()
    rows = sweep(recipe, {"kd.losses.temperature": [1.0, 2.0]}, overwrite=True)
    assert sorted(path.name for path in runs.iterdir()) == ["000", "001", "notes"]
    assert len(rows) == 2


def listed(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"
    }


TWO = {"kd.losses.temperature": [1.0, 2.0]}


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_what_is_not_of_a_sweep_stays(flags: dict[str, bool], world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "student").mkdir(parents=True)
    (out / "student" / "essay.txt").write_text("mine")
    before = listed(out)
    with pytest.raises(ValueError, match="out holds files that are not a sweep: choose another --output_dir"):
        sweep(small(world, out), TWO, **flags)
    assert listed(out) == before


def test_a_refused_sweep_loses_nothing(world: Path, tmp_path: Path) -> None:
    recipe, out = small(world, tmp_path / "out"), tmp_path / "out"
    sweep(recipe, {"kd.losses.temperature": [1.0, 2.0, 4.0]})
    before = listed(out)

    def refused(recipe: Recipe, message: str, **flags: bool) -> None:
        with pytest.raises(ValueError, match=message):
            sweep(recipe, TWO, **flags)
        assert listed(out) == before

    refused(recipe, "out is not empty: give --resume, --overwrite")
    refused(replace(recipe, task=replace(recipe.task, test_size=10_000)), "task.test_size=10000", overwrite=True)
    for path in ("runs/000/teacher", "runs/002/student", "student"):
        teacher = replace(recipe.teacher, finetuned=str(out / path))
        refused(replace(recipe, teacher=teacher), f"{path} lies in what this run would delete", overwrite=True)
    with Workspace(out / "runs" / "002").lock():
        refused(recipe, "another run is at work in .*002", overwrite=True)
    with Workspace(out).lock():
        refused(recipe, "another run is at work in .*out", resume=True)
    (out / "runs" / "002" / "recipe.json").write_text("{}")
    before = listed(out)
    refused(recipe, "002/recipe.json is damaged", overwrite=True)
    shutil.rmtree(out / "runs" / "001")
    (out / "runs" / "001").mkdir()
    (out / "runs" / "001" / "essay.txt").write_text("mine")
    before = listed(out)
    refused(recipe, "001 holds files that are not a run", resume=True)


def test_where_all_diverge_the_reason_is_given(world: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="stage kd, step"):
        sweep(small(world, tmp_path / "out"), {"kd.optim.learning_rate": [1e38, 2e38]})
    assert not (tmp_path / "out" / "sweep.md").exists()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "names no values"),
        ({"kd.losses.temperature": 3}, "kd.losses.temperature is 3: give a list"),
        ({"kd.losses.temperature": []}, "give a list"),
        ({"kd.losses.heat": [1]}, "sweep: .*losses.heat.*did you mean kd.losses.hard"),
        ({"tsd.losses.soft": [1]}, "sweep: .*tsd.losses.soft.* is not accepted"),
        ({"kd.losses": [1]}, "sweep: kd.losses is 1: it is a group"),
        ({"kd": [1]}, "sweep: kd is 1: it is a group"),
        ({"kd.losses.temperature.x": [1]}, "sweep: .*kd.losses.temperature"),
        ({"kd.losses.temperature": ["hot"]}, "sweep: .*kd.losses.temperature.*hot"),
        ({"kd.losses.soft,kd.losses.hard": [1]}, "are 2 values, 1 is not as many"),
        ({"kd.losses.soft": [1], "kd.losses.soft,kd.losses.hard": [[1, 0]]}, "kd.losses.soft is named twice"),
        ({"kd.keep": ["worst"]}, "sweep: .*kd.keep.*worst"),
        ({"kd.keep": ["last"]}, "the last stage must keep the best"),
        ({"teacher.path": ["a"]}, "teacher.path cannot vary"),
        ({"seed": [1, 2]}, "seed cannot vary"),
        ({"task.max_length": [8]}, "task.max_length cannot vary"),
        ({"kd.losses.temperature": [1, 0]}, "sweep, kd.losses.temperature 0: kd.losses.temperature is 0"),
        ({"kd.epochs": [1, 0]}, "kd.epochs 0: .*must be above 0"),
        ({"kd.layer_map": ["skip", "1:99"]}, "kd.layer_map 1:99: stage kd: .*99"),
        ({"student.hidden_size": [24, 11]}, "student.hidden_size 11: .*11"),
        ({"student.init_layers": [None]}, "student.init_layers is None: give a value"),
        ({"student.init_layers": ["uniform", "9,9"]}, "student.init_layers 9,9: .*9"),
        ({"kd.tokens_per_batch": [1024, 2]}, "kd.tokens_per_batch 2: stage kd: .* tokens"),
        ({"kd.losses.temperature": [1], "kd.losses": [{"soft": 1}]}, "kd.losses.temperature is a part of kd.losses"),
        ({"kd.losses": [{"soft": 1}], "kd.losses.soft,kd.epochs": [[1, 2]]}, "kd.losses.soft is a part of kd.losses"),
    ],
)
def test_refused_before_the_first_run(grid: dict[str, Any], message: str, world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(small(world, tmp_path / "out"), grid)
    assert not (tmp_path / "out").exists()


def test_a_sweep_has_no_assistants(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a sweep has no assistants: distil the assistant first"):
        sweep(replace(small(world, tmp_path / "out"), assistant=Student(num_hidden_layers=3)), GRID)
    assert not (tmp_path / "out").exists()
