"""A second run in the directory of a first: resumed, from a stage on, or over it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from fastdistill import Student, run
from fastdistill.inputs import load_inputs
from fastdistill.workspace import Workspace
from tests.tiny import make_teacher, only, tiny_recipe

replace = dataclasses.replace


def copy(done: Path, to: Path) -> Path:
    subprocess.run(["cp", "-r", str(done), str(to)], check=True)
    return to


def test_finished_run_is_not_run_again(done: Path, world: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in done.rglob("*") if p.is_file() and p.name != "recipe.json"}
    run(tiny_recipe(world, done), resume=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_stage_alone_repeats_what_it_did_in_the_whole_run(done: Path, world: Path, tmp_path: Path) -> None:
    out = copy(done, tmp_path / "out")
    gd = (out / "stages" / "gd" / "model.safetensors").stat().st_mtime_ns
    run(tiny_recipe(world, out), from_stage="tad")
    assert (out / "stages" / "gd" / "model.safetensors").stat().st_mtime_ns == gd
    for part in ("stages/tad", "stages/tsd", "student"):
        assert (out / part / "model.safetensors").read_bytes() == (done / part / "model.safetensors").read_bytes()
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    tads = [r for r in log if r["stage"] == "tad" and r["event"] == "step"]
    assert [r["step"] for r in tads] == sorted({r["step"] for r in tads}), (
        "the first run of the stage is still in the log"
    )


def test_from_stage_takes_changed_values_but_resume_does_not(done: Path, world: Path, tmp_path: Path) -> None:
    out = copy(done, tmp_path / "out")
    recipe = tiny_recipe(world, out)
    changed = replace(recipe, stages=recipe.stages | {"tsd": replace(recipe.stages["tsd"], steps=3)})
    with pytest.raises(ValueError, match=r"other values of tsd\.steps"):
        run(changed, resume=True)
    assert run(changed, from_stage="tsd")["stages"][-1]["steps"] == 3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 9}, "seed"),
        ({"student": Student(num_hidden_layers=2, hidden_size=8)}, r"student\.hidden_size"),
        ({"stages.gd": {"steps": 99}}, r"gd\.steps"),
        ({"stages.gd": {"skip": True}}, r"gd\.skip"),
        ({"precision": "bf16"}, "precision"),
    ],
)
def test_from_stage_refuses_what_finished_stages_were_made_with(
    done: Path, world: Path, changes: dict[str, Any], named: str
) -> None:
    recipe = tiny_recipe(world, done)
    for name, value in changes.items():
        if name.startswith("stages."):
            stage = name.removeprefix("stages.")
            changed = {**recipe.stages, stage: replace(recipe.stages[stage], **value)}
            recipe = replace(recipe, stages=changed)
        else:
            recipe = replace(recipe, **{name: value})
    before = sorted(done.rglob("*"))
    with pytest.raises(ValueError, match=f"other values of {named}"):
        run(recipe, from_stage="tad")
    assert sorted(done.rglob("*")) == before


def test_stages_in_another_order_are_another_run(done: Path, world: Path) -> None:
    recipe = tiny_recipe(world, done)
    turned = replace(recipe, stages=dict(reversed(recipe.stages.items())))
    for how in ({"resume": True}, {"from_stage": "gd"}):
        with pytest.raises(ValueError, match="other values of the order of stages"):
            run(turned, **how)  # type: ignore[arg-type]


def test_stage_skipped_the_second_time_is_not_reported(done: Path, world: Path, tmp_path: Path) -> None:
    out = copy(done, tmp_path / "out")
    recipe = tiny_recipe(world, out)
    recipe = replace(recipe, stages=recipe.stages | {"tad": replace(recipe.stages["tad"], skip=True)})
    report = run(recipe, from_stage="ged")
    assert [s["name"] for s in report["stages"]] == ["gd", "ged", "tsd"]
    assert json.loads((out / "control" / "result.json").read_text())["steps"] == 6


@pytest.mark.parametrize("change", ["a row less", "another label"])
def test_other_data_cannot_be_resumed(done: Path, world: Path, tmp_path: Path, change: str) -> None:
    out = copy(done, tmp_path / "out")
    rows = (world / "task.csv").read_text().splitlines()
    last, label = rows.pop().split(",")
    if change == "another label":
        rows.append(f"{last},{'negative' if label == 'positive' else 'positive'}")
    recipe = tiny_recipe(world, out)
    (tmp_path / "task.csv").write_text("\n".join(rows) + "\n")
    recipe = replace(recipe, task=replace(recipe.task, path=str(tmp_path / "task.csv")))
    for how in ({"resume": True}, {"from_stage": "tsd"}):
        with pytest.raises(ValueError, match="made from other data"):
            run(recipe, **how)  # type: ignore[arg-type]
    assert (out / "report.json").exists()


def test_moved_teacher_can_be_resumed_but_not_another_one(done: Path, world: Path, tmp_path: Path) -> None:
    out = copy(done, tmp_path / "out")
    recipe = tiny_recipe(world, out)
    moved = make_teacher(tmp_path / "teacher")
    recipe = replace(recipe, teacher=replace(recipe.teacher, path=str(moved)))
    run(recipe, resume=True)
    weights = load_file(moved / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][3] += 1e-3
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="another teacher"):
        run(recipe, resume=True)


def test_one_other_label_is_other_data(world: Path, tmp_path: Path) -> None:
    """With splits of its own, lest the label move rows from one split to another."""
    rows = (world / "task.csv").read_text().splitlines()[1:]
    recipe = only(tiny_recipe(world, tmp_path / "out"), "tsd")
    recipe = replace(recipe, task=replace(recipe.task, path=str(tmp_path / "task")))
    (tmp_path / "task").mkdir()
    fingerprints = []
    for label in ("negative", "positive"):
        parts = {"train": rows[:40], "validation": rows[40:60], "test": [*rows[60:80], f"the end,{label}"]}
        for name, part in parts.items():
            (tmp_path / "task" / f"{name}.csv").write_text("text,label\n" + "\n".join(part) + "\n")
        fingerprints.append(load_inputs(recipe).fingerprint)
    assert fingerprints[0] != fingerprints[1]


def test_a_finished_run_can_be_resumed_with_more(world: Path, tmp_path: Path) -> None:
    whole = tiny_recipe(world, tmp_path / "out")
    part = only(whole, "gd", "ged", "tad")
    run(replace(part, control=replace(part.control, skip=True)))
    report = run(whole, resume=True)
    assert [s["name"] for s in report["stages"]] == ["gd", "ged", "tad", "tsd"]
    assert report["control"]["score"] is not None
    assert AutoConfig.from_pretrained(tmp_path / "out" / "student").architectures == ["BertForSequenceClassification"]


def test_a_stage_cannot_be_put_in_before_one_that_ran(world: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world, tmp_path / "out")
    run(only(recipe, "gd", "tsd"))
    with pytest.raises(ValueError, match=r"other values of ged\.skip, tad\.skip"):
        run(recipe, resume=True)


def test_a_lost_student_folder_is_made_again(done: Path, world: Path, tmp_path: Path) -> None:
    out = copy(done, tmp_path / "out")
    shutil.rmtree(out / "student")
    run(tiny_recipe(world, out), resume=True)
    assert (out / "student" / "model.safetensors").read_bytes() == (done / "student" / "model.safetensors").read_bytes()


def test_a_folder_with_some_recipe_json_is_not_ours(world: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "student").mkdir(parents=True)
    (tmp_path / "out" / "student" / "my.txt").write_text("mine")
    (tmp_path / "out" / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="not of a run"):
        run(tiny_recipe(world, tmp_path / "out"), overwrite=True)
    assert (tmp_path / "out" / "student" / "my.txt").exists()


def test_moved_data_can_be_resumed(done: Path, world: Path, tmp_path: Path) -> None:
    out = copy(done, tmp_path / "out")
    (tmp_path / "moved.csv").write_bytes((world / "task.csv").read_bytes())
    recipe = tiny_recipe(world, out)
    assert run(replace(recipe, task=replace(recipe.task, path=str(tmp_path / "moved.csv"))), resume=True)


@pytest.mark.parametrize("how", [{"overwrite": True}, {"from_stage": "tsd"}])
def test_a_run_does_not_delete_its_own_inputs(done: Path, world: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    out = copy(done, tmp_path / "out")
    recipe = tiny_recipe(world, out)
    recipe = replace(recipe, teacher=replace(recipe.teacher, path=str(out / "student")))
    before = sorted(out.rglob("*"))
    with pytest.raises(ValueError, match="student lies in what this run would delete"):
        run(recipe, **how)
    assert sorted(out.rglob("*")) == before


def test_two_runs_do_not_share_a_directory(done: Path, world: Path) -> None:
    with Workspace(done).lock(), pytest.raises(ValueError, match="another run is at work"):
        run(tiny_recipe(world, done), resume=True)


@pytest.mark.parametrize(("stage", "message"), [("tadd", "did you mean tad"), ("ged", "gd.*does not exist")])
def test_from_stage_names_what_is_missing(world: Path, tmp_path: Path, stage: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(tiny_recipe(world, tmp_path / "out"), from_stage=stage)


def test_overwrite_starts_again_and_leaves_other_files(done: Path, world: Path, tmp_path: Path) -> None:
    out = copy(done, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    recipe = only(tiny_recipe(world, out), "tsd")
    report = run(recipe, overwrite=True)
    assert [s["name"] for s in report["stages"]] == ["tsd"]
    assert {p.name for p in (out / "stages").iterdir()} == {"init", "tsd"}
    assert (out / "notes.txt").exists()
