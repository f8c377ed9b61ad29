"""The whole job in miniature: what comes out, and how stages are skipped, run alone and resumed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from fastdistill import Recipe, Stage, Student, run
from fastdistill.data.tasks import load_task
from tests.tiny import make_texts, tiny_recipe

replace = dataclasses.replace


@pytest.fixture(scope="module")
def done(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of a finished run."""
    out = tmp_path_factory.mktemp("done") / "out"
    run(tiny_recipe(world, out))
    return out


def copy(done: Path, to: Path) -> Path:
    subprocess.run(["cp", "-r", str(done), str(to)], check=True)
    return to


def test_everything_promised_lies_in_the_output_directory(done: Path) -> None:
    names = {
        "report.json",
        "report.md",
        "log.jsonl",
        "losses.png",
        "teacher",
        "student",
        "stages",
        "control",
        "recipe.json",
    }
    assert names <= {p.name for p in done.iterdir()}
    assert {p.name for p in (done / "stages").iterdir()} == {"init", "gd", "ged", "tad", "tsd"}
    assert not (done / "checkpoints").exists()
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= {
        p.name for p in (done / "student").iterdir()
    }
    assert not (done / "student" / "objective.safetensors").exists()


def test_report_holds_what_it_must(done: Path) -> None:
    report = json.loads((done / "report.json").read_text())
    for model in ("teacher", "student", "control"):
        assert report[model]["metric"] == "accuracy"
        assert 0 <= report[model]["score"] <= 1
        assert report[model]["latency_ms"] > 0
    assert 0 <= report["student"]["agreement"] <= 1
    assert report["retention"] == pytest.approx(report["student"]["score"] / report["teacher"]["score"])
    assert report["compression"] == pytest.approx(report["teacher"]["parameters"] / report["student"]["parameters"])
    assert report["speedup"] == pytest.approx(report["teacher"]["latency_ms"] / report["student"]["latency_ms"])
    assert [s["name"] for s in report["stages"]] == ["gd", "ged", "tad", "tsd"]
    assert [set(s["losses"]) for s in report["stages"]] == [{"attention", "hidden", "embedding"}] * 3 + [
        {"attention", "hidden", "embedding", "soft", "hard"}
    ]
    assert [s["teacher"] for s in report["stages"]] == ["pretrained", "finetuned", "finetuned", "finetuned"]
    assert [s["data"] for s in report["stages"]] == ["general", "general", "task", "task"]
    for s in report["stages"]:
        assert (s["steps"], s["seconds"] > 0, s["tokens"] > 0, s["tokens_per_second"] > 0) == (6, True, True, True)
        assert 0 <= s["score"] <= 1
    assert {"seed", "versions", "recipe"} <= report.keys()
    assert {name: report["data"][name]["examples"] for name in ("train", "validation", "test")} == {
        "train": 100,
        "validation": 20,
        "test": 40,
    }
    assert report["data"]["general"]["documents"] == 120


def test_latent_terms_fall(done: Path) -> None:
    stages = json.loads((done / "report.json").read_text())["stages"]
    assert all(first > last for first, last in stages[0]["losses"].values())


def test_control_takes_the_steps_of_the_task_stages_from_the_same_start(done: Path) -> None:
    assert json.loads((done / "control" / "result.json").read_text())["steps"] == 12


def test_scores_can_be_had_again_from_the_folders(done: Path, world: Path) -> None:
    """The reported score is that of the student folder on the held-out rows, computed here with transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(done / "student")
    data = load_task(tiny_recipe(world, done).task, tokenizer, seed=0).test
    model = AutoModelForSequenceClassification.from_pretrained(done / "student")
    right = 0
    for n in range(len(data)):
        ids = torch.from_numpy(np.asarray(data.input_ids[data.offsets[n] : data.offsets[n + 1]], dtype=np.int64))[None]
        right += int(model(ids).logits.argmax() == data.labels[n])
    report = json.loads((done / "report.json").read_text())
    assert report["student"]["score"] == pytest.approx(right / len(data))


def test_student_loads_where_fastdistill_is_not_installed(done: Path) -> None:
    program = (
        "import sys\nfrom transformers import pipeline\n"
        "assert not any('fastdistill' in m for m in sys.modules)\n"
        f"answer = pipeline('text-classification', {str(done / 'student')!r})('a good film')[0]\n"
        "assert answer['label'] in ('negative', 'positive'), answer"
    )
    subprocess.run([sys.executable, "-I", "-c", program], check=True, cwd="/")


def test_intermediate_stages_are_plain_folders(done: Path) -> None:
    model = AutoModel.from_pretrained(done / "stages" / "tad")
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.num_attention_heads) == (2, 12, 2)
    assert set(load_file(done / "stages" / "tad" / "objective.safetensors")) == {
        "projections.shared.weight",
        "projections.shared.bias",
    }


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


def only(recipe: Recipe, *names: str) -> Recipe:
    return replace(recipe, stages={n: replace(s, skip=n not in names) for n, s in recipe.stages.items()})


def test_general_distillation_alone_needs_no_task(world: Path, tmp_path: Path) -> None:
    recipe = only(tiny_recipe(world, tmp_path / "out"), "gd")
    report = run(replace(recipe, task=replace(recipe.task, path=None)))
    assert report["student"]["score"] is None
    assert "control" not in report
    assert AutoModel.from_pretrained(tmp_path / "out" / "student").config.hidden_size == 12


def test_finetuned_teacher_is_taken_as_it_is(done: Path, world: Path, tmp_path: Path) -> None:
    recipe = only(tiny_recipe(world, tmp_path / "out"), "tsd")
    recipe = replace(recipe, teacher=replace(recipe.teacher, path="", finetuned=str(done / "teacher")))
    report = run(recipe)
    assert report["teacher"]["score"] == json.loads((done / "report.json").read_text())["teacher"]["score"]
    assert not (tmp_path / "out" / "teacher" / "model.safetensors").exists()


def test_student_of_ones_own(done: Path, world: Path, tmp_path: Path) -> None:
    recipe = only(tiny_recipe(world, tmp_path / "out"), "tsd")
    recipe = replace(recipe, student=Student(path=str(done / "stages" / "ged")))
    run(recipe)
    start, given = (
        load_file(p / "model.safetensors") for p in (tmp_path / "out" / "stages" / "init", done / "stages" / "ged")
    )
    assert all(torch.equal(start[name], given[name]) for name in given)


def test_regression(world: Path, tmp_path: Path) -> None:
    rows = [f"{text},{3.5 if label == 'positive' else 1.25}\n" for text, label in make_texts(120, 5)]
    (tmp_path / "scores.csv").write_text("text,label\n" + "".join(rows))
    recipe = tiny_recipe(world, tmp_path / "out")
    task = replace(recipe.task, path=str(tmp_path / "scores.csv"), kind="regression", metric="spearman")
    report = run(replace(recipe, task=task))
    assert report["teacher"]["metric"] == "spearman"
    assert "agreement" not in report["student"]
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "student").config.num_labels == 1


def test_relation_losses_take_other_head_counts_and_patience_maps(world: Path, tmp_path: Path) -> None:
    recipe = only(tiny_recipe(world, tmp_path / "out"), "gd")
    losses = replace(recipe.stages["gd"].losses, attention=0.0, relation=1.0, relation_heads=3)
    gd: Stage = replace(recipe.stages["gd"], losses=losses, layer_map="1:3,2:4")
    recipe = replace(recipe, stages={"gd": gd}, student=replace(recipe.student, num_attention_heads=3, init="random"))
    report = run(replace(recipe, task=replace(recipe.task, path=None)))
    assert set(report["stages"][0]["losses"]) == {"relation", "hidden", "embedding"}
