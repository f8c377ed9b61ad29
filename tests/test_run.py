"""The whole job in miniature: what is trained on what, and what comes out."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from fastdistill import Stage, Student, Teacher, run, runner
from fastdistill.data.tasks import load_task
from fastdistill.evaluate import predict
from fastdistill.inputs import load_inputs
from fastdistill.machine import Portion
from fastdistill.models.encoder import Encoder
from tests.tiny import make_teacher, make_texts, only, tiny_recipe

replace = dataclasses.replace


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
    assert report["data"]["test"]["in train"] == 0
    assert ", 0 of them\nin train word for word" in (done / "report.md").read_text()


def test_what_is_found_in_the_rows_is_said_before_training_and_counted(world: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world, tmp_path)
    assert recipe.task.path is not None
    rows = Path(recipe.task.path).read_text().splitlines(keepends=True)
    for name, split in {"train": rows, "test": rows[:6], "notes": ["none"]}.items():
        (tmp_path / f"{name}.csv").write_text("".join(split))
    inputs = load_inputs(replace(recipe, task=replace(recipe.task, path=str(tmp_path))))
    assert [line[:40] for line in inputs.said[1:]] == [
        "task: not used: notes.csv; used are trai",
        "task: 5 of 5 rows of test are in train w",
        "task: 2 classes (negative, positive), f1",
    ]
    assert inputs.data_counts()["test"]["in train"] == 5


def test_terms_are_reported_as_they_were_logged_and_the_latent_ones_fall(done: Path) -> None:
    stages = json.loads((done / "report.json").read_text())["stages"]
    log = [json.loads(line) for line in (done / "log.jsonl").read_text().splitlines()]
    for stage in stages:
        steps = {r["step"]: r["losses"] for r in log if r["stage"] == stage["name"] and r["event"] == "step"}
        assert stage["losses"] == {term: [steps[3][term], steps[6][term]] for term in steps[6]}
    for term in ("attention", "hidden"):  # that of the embeddings moves by no more than the batches differ in
        first, last = stages[0]["losses"][term]
        assert last < 0.85 * first


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
    student, teacher = (Encoder.load(done / name, head="finetuned") for name in ("student", "teacher"))
    both = [predict(encoder, data, torch.device("cpu")) for encoder in (student, teacher)]
    assert report["student"]["agreement"] == pytest.approx((both[0] == both[1]).mean())


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


def test_every_stage_starts_and_learns_where_the_recipe_says(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was loaded for each job, what it trained on and what it was scored on."""
    loaded: list[tuple[str, str]] = []
    scored: list[str] = []
    trained: list[tuple[str, int, str]] = []
    portions: list[Portion] = []
    load, train, predict, probe = runner.Encoder.load, runner.train, runner.predict, runner.probe
    out = tmp_path / "out"

    def spy_load(path: Any, **kwargs: Any) -> Any:
        if str(path).startswith(str(out)):
            loaded.append((str(Path(path).relative_to(out)), kwargs.get("head", "none")))
        return load(path, **kwargs)

    def spy_train(name: str, *args: Any, **kwargs: Any) -> Any:
        trained.append((name, args[5], str(len(args[4].sequences))))
        return train(name, *args, **kwargs)

    def spy_predict(encoder: Any, data: Any, *rest: Any) -> Any:
        scored.append(f"predict {len(data)}")
        portions.append(rest[-1])
        return predict(encoder, data, *rest)

    def spy_probe(encoder: Any, fit: Any, test: Any, *rest: Any) -> Any:
        scored.append(f"probe {len(fit)} {len(test)}")
        portions.append(rest[-1])
        return probe(encoder, fit, test, *rest)

    monkeypatch.setattr(runner.Encoder, "load", spy_load)
    monkeypatch.setattr(runner, "train", spy_train)
    monkeypatch.setattr(runner, "predict", spy_predict)
    monkeypatch.setattr(runner, "probe", spy_probe)
    monkeypatch.setattr(runner.report, "write", lambda *_, **__: {})
    run(tiny_recipe(world, out))
    assert loaded == [
        ("stages/init", "none"),
        ("teacher", "none"),
        ("stages/gd", "none"),
        ("teacher", "none"),
        ("stages/ged", "none"),
        ("teacher", "finetuned"),
        ("stages/tad", "fresh"),
        ("stages/init", "fresh"),
    ]
    assert trained == [
        ("finetune", 40, "100"),
        ("gd", 6, "120"),
        ("ged", 6, "120"),
        ("tad", 6, "100"),
        ("tsd", 6, "100"),
        ("control", 12, "100"),
    ]
    # 20 rows are for validation, 40 are held out, 100 train
    assert [s for s in scored if "probe" in s] == ["probe 100 40"] * 3
    assert scored.count("predict 40") == 3
    assert set(scored) == {"probe 100 40", "predict 40", "predict 20"}
    portions[0].tokens = 7  # what memory once had no room for is not tried again
    assert {portion.tokens for portion in portions} == {7}


def test_projections_go_on_from_stage_to_stage(world: Path, tmp_path: Path) -> None:
    """Stages whose learning rate is next to nothing hand on the projections that they were handed."""
    recipe = tiny_recipe(world, tmp_path / "out")
    still = {n: replace(s, steps=1, optim=replace(s.optim, learning_rate=1e-12)) for n, s in recipe.stages.items()}
    recipe = replace(recipe, stages=recipe.stages | {"ged": still["ged"], "tad": still["tad"]})
    run(recipe)
    folders = [tmp_path / "out" / "stages" / name / "objective.safetensors" for name in ("init", "gd", "ged", "tad")]
    init, gd, ged, tad = (load_file(folder)["projections.shared.weight"] for folder in folders)
    torch.testing.assert_close(init.T @ init, torch.eye(12), atol=1e-5, rtol=0)
    assert not torch.allclose(init, gd, atol=1e-4)
    torch.testing.assert_close(ged, gd, atol=1e-6, rtol=0)
    torch.testing.assert_close(tad, gd, atol=1e-6, rtol=0)


def test_control_and_last_stage_start_with_the_same_head(world: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world, tmp_path / "out")
    still = {
        name: replace(stage, steps=steps, optim=replace(stage.optim, learning_rate=1e-12))
        for name, stage, steps in (
            ("tad", recipe.stages["tad"], 1),
            ("tsd", recipe.stages["tsd"], 1),
            ("control", recipe.control, None),
        )
    }
    control = still.pop("control")
    run(replace(recipe, stages=still, control=control))
    a, b = (load_file(tmp_path / "out" / p / "model.safetensors") for p in ("stages/tsd", "control"))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_teacher_with_few_positions_is_measured_at_its_own_length(world: Path, tmp_path: Path) -> None:
    make_teacher(tmp_path / "short", max_position_embeddings=20)
    recipe = replace(only(tiny_recipe(world, tmp_path / "out"), "tsd"), teacher=Teacher(path=str(tmp_path / "short")))
    assert run(recipe)["latency"]["length"] == 20


def test_student_that_ends_without_a_head_claims_no_retention(world: Path, tmp_path: Path) -> None:
    report = run(only(tiny_recipe(world, tmp_path / "out"), "gd"))
    assert report["retention"] is None
    assert report["student"]["probe"]
    assert "(probe)" in (tmp_path / "out" / "report.md").read_text().partition("## Stages")[0]


def test_general_distillation_alone_needs_no_task(world: Path, tmp_path: Path) -> None:
    recipe = only(tiny_recipe(world, tmp_path / "out"), "gd")
    report = run(replace(recipe, task=replace(recipe.task, path=None)))
    assert report["student"]["score"] is None
    assert "control" not in report
    assert AutoModel.from_pretrained(tmp_path / "out" / "student").config.hidden_size == 12


def test_finetuned_teacher_is_taken_as_it_is(done: Path, world: Path, tmp_path: Path) -> None:
    recipe = only(tiny_recipe(world, tmp_path / "out"), "tsd")
    recipe = replace(recipe, teacher=replace(recipe.teacher, path=None, finetuned=str(done / "teacher")))
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


def test_student_of_ones_own_goes_on_with_the_projections_of_its_stage(done: Path, world: Path, tmp_path: Path) -> None:
    """So that stages of a second run are what they would have been in the first."""
    recipe = only(tiny_recipe(world, tmp_path / "out"), "tad", "tsd")
    teacher = replace(recipe.teacher, finetuned=str(done / "teacher"))
    run(replace(recipe, teacher=teacher, student=Student(path=str(done / "stages" / "ged"))))
    for name in ("model.safetensors", "objective.safetensors"):
        assert (tmp_path / "out" / "stages" / "tsd" / name).read_bytes() == (
            done / "stages" / "tsd" / name
        ).read_bytes()


def test_a_head_once_trained_is_kept(world: Path, tmp_path: Path) -> None:
    """Also by a stage whose losses do not use it."""
    recipe = tiny_recipe(world, tmp_path / "out")
    tad = replace(recipe.stages["tad"], losses=replace(recipe.stages["tad"].losses, hard=1.0))
    tsd = replace(recipe.stages["tsd"], losses=recipe.stages["ged"].losses, keep="last")
    report = run(replace(recipe, stages={"tad": tad, "tsd": tsd}))
    assert report["retention"] is not None
    tad_weights, weights = (load_file(tmp_path / "out" / p / "model.safetensors") for p in ("stages/tad", "student"))
    assert torch.equal(tad_weights["classifier.weight"], weights["classifier.weight"])


def test_paths_may_be_paths(world: Path, tmp_path: Path) -> None:
    recipe = only(tiny_recipe(world, tmp_path / "out"), "gd")
    recipe = replace(
        recipe,
        teacher=Teacher(path=world / "teacher"),  # type: ignore[arg-type]
        general=replace(recipe.general, path=world / "general.txt"),
        task=replace(recipe.task, path=None),
        output_dir=tmp_path / "out",  # type: ignore[arg-type]
    )
    assert run(recipe)["recipe"]["output_dir"] == str(tmp_path / "out")


def test_the_saved_tokenizer_cuts_nothing(done: Path) -> None:
    """A tokenizer.json is read by programs that know nothing of the length it was trained with."""
    for folder in ("student", "teacher", "stages/gd"):
        assert json.loads((done / folder / "tokenizer.json").read_text())["truncation"] is None


def test_report_without_a_task_says_nothing_of_one(world: Path, tmp_path: Path) -> None:
    recipe = only(tiny_recipe(world, tmp_path / "out"), "gd")
    run(replace(recipe, task=replace(recipe.task, path=None)))
    for path in ("report.md", "student/README.md"):
        text = (tmp_path / "out" / path).read_text()
        assert "held-out" not in text
        assert "control" not in text


def test_regression(world: Path, tmp_path: Path) -> None:
    rows = [f"{text},{3.5 if label == 'positive' else 1.25}\n" for text, label in make_texts(120, 5)]
    (tmp_path / "scores.csv").write_text("text,label\n" + "".join(rows))
    recipe = tiny_recipe(world, tmp_path / "out")
    task = replace(recipe.task, path=str(tmp_path / "scores.csv"), kind="regression", metric="spearman")
    report = run(replace(recipe, task=task))
    assert report["teacher"]["metric"] == "spearman"
    assert "agreement" not in report["student"]
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "student").config
    assert (config.num_labels, config.problem_type) == (1, "regression")


def test_relation_losses_take_other_head_counts_and_patience_maps(world: Path, tmp_path: Path) -> None:
    recipe = only(tiny_recipe(world, tmp_path / "out"), "gd")
    losses = replace(recipe.stages["gd"].losses, attention=0.0, relation=1.0, relation_heads=3)
    gd: Stage = replace(recipe.stages["gd"], losses=losses, layer_map="1:3,2:4")
    recipe = replace(recipe, stages={"gd": gd}, student=replace(recipe.student, num_attention_heads=3, init="random"))
    report = run(replace(recipe, task=replace(recipe.task, path=None)))
    assert set(report["stages"][0]["losses"]) == {"relation", "hidden", "embedding"}
