"""A model between teacher and student."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fastdistill import Student, Teacher, run
from fastdistill.assistant import split
from fastdistill.recipe import Losses
from tests.bad_files import other_vocabulary
from tests.tiny import make_teacher, miniature, tiny_recipe

replace = dataclasses.replace


def test_assistant_is_distilled_first_and_teaches(world: Path, tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(world, tmp_path / "out"), assistant=Student(num_hidden_layers=3, hidden_size=16))
    report = run(recipe)
    assistant = json.loads((tmp_path / "out" / "assistant" / "report.json").read_text())
    assert "control" not in assistant
    assert report["teacher"]["parameters"] == assistant["student"]["parameters"]
    assert report["teacher"]["score"] == assistant["student"]["score"]
    assert report["original_teacher"] == {"name": "teacher", "others": [], **assistant["teacher"]}
    said = (tmp_path / "out" / "report.md").read_text()
    for part in ("\n| assistant | ", "% of its assistant's score", "The assistant was itself distilled from teacher ("):
        assert part in said, part
    assert "\n| teacher | " not in said
    assert run(recipe, resume=True) == report


def test_below_an_assistant_the_student_starts_from_weights_that_do_not_know_the_task(
    world: Path, tmp_path: Path
) -> None:
    recipe = miniature("kd", world, tmp_path / "out")  # no stage has the pretrained teacher
    run(replace(recipe, student=Student(num_hidden_layers=2), assistant=Student(num_hidden_layers=3)))
    folders = (world / "teacher", *(tmp_path / "out" / path for path in ("stages/init", "assistant/student")))
    teacher, initial, taught = (load_file(folder / "model.safetensors") for folder in folders)
    name = "embeddings.word_embeddings.weight"
    assert (initial[name] == teacher[name]).all()
    assert (initial[name] != taught[f"bert.{name}"]).any()
    random = Student(num_hidden_layers=3, init="random")
    with pytest.raises(ValueError, match=r"assistant.init is random and .* leave assistant.init out"):
        run(replace(recipe, assistant=random, output_dir=str(tmp_path / "other")))


def test_assistant_needs_a_head(world: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world, tmp_path / "out")
    stages = {name: replace(stage, skip=name == "tsd") for name, stage in recipe.stages.items()}
    with pytest.raises(ValueError, match="an assistant teaches with a head"):
        run(replace(recipe, stages=stages, assistant=Student(num_hidden_layers=3)))


def test_assistant_has_no_head_for_masked_words(world: Path, tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(world, tmp_path / "out"), assistant=Student(num_hidden_layers=3))
    tsd = recipe.stages["tsd"]
    masked = replace(tsd, teacher="pretrained", data="masked", keep="last")
    with pytest.raises(ValueError, match="no head for masked words, to teach them"):
        run(replace(recipe, stages={"mlm": masked, "tsd": tsd}))
    assert not (tmp_path / "out").exists()


def test_text_is_augmented_alike_for_assistant_and_student(world: Path, tmp_path: Path) -> None:
    recipe = miniature("tinybert", world, tmp_path / "out")
    report = run(replace(recipe, assistant=Student(num_hidden_layers=2)))
    assistant = json.loads((tmp_path / "out" / "assistant" / "report.json").read_text())
    assert report["data"]["augmented"] == assistant["data"]["augmented"]
    assert report["data"]["augmented"]["replaced by the model"] > 0
    assert "masked_lm" in report["data"]["augmented"]["origin"]
    for run_of in split(replace(recipe, teacher=Teacher(path=str(world / "teacher"))), Student()):
        assert run_of.task.augment.model is None  # the teacher has no head for masked words


def test_assistant_is_checked_before_it_is_trained(world: Path, tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(world, tmp_path / "out"), assistant=Student(num_hidden_layers=3, hidden_size=8))
    with pytest.raises(ValueError, match="hidden_size 12 is larger than the teacher's 8"):
        run(recipe)
    narrow = replace(recipe, assistant=Student(num_hidden_layers=3))
    tad = replace(narrow.stages["tad"], layer_map="1:4")
    with pytest.raises(ValueError, match="pairs 1:4, but the student has 2 layers and the teacher 3"):
        run(replace(narrow, stages=narrow.stages | {"tad": tad}))
    assert not (tmp_path / "out").exists()
    tad, control = recipe.stages["tad"], recipe.control
    heads = replace(recipe.student, num_attention_heads=3)
    for changed, message in (
        ({"student": heads, "stages": recipe.stages | {"tad": replace(tad, losses=Losses(attention=1.0))}}, "heads"),
        ({"control": replace(control, optim=replace(control.optim, learning_rate=-1.0))}, "learning_rate is -1.0"),
        ({"control": replace(control, tokens_per_batch=4)}, "stage control: .*tokens"),
        (
            {"student": Student(path=other_vocabulary(tmp_path / "words", 27))},
            "different vocabularies.*take models of one",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(replace(recipe, assistant=Student(num_hidden_layers=3), **changed))
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        run(narrow)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_an_assistant_of_another_recipe_is_not_taken(world: Path, tmp_path: Path) -> None:
    """Nor one of the same without --resume, where the student's run has not begun."""
    recipe = replace(tiny_recipe(world, tmp_path / "out"), assistant=Student(num_hidden_layers=3, hidden_size=16))
    before, _ = split(recipe, Student(num_hidden_layers=3, hidden_size=16))
    run(before)
    with pytest.raises(ValueError, match="assistant is not empty: give --resume"):
        run(recipe)
    with pytest.raises(ValueError, match="assistant was made with other values of student.num_hidden_layers"):
        run(replace(recipe, assistant=Student(num_hidden_layers=2, hidden_size=16)), resume=True)
    assert not (tmp_path / "out" / "recipe.json").exists()
    assert run(recipe, resume=True)["teacher"]["parameters"] > 0


def test_a_run_goes_on_below_the_assistant_of_its_own_teacher(world: Path, tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(world, tmp_path / "out"), assistant=Student(num_hidden_layers=3, hidden_size=16))
    run(recipe)
    shutil.rmtree(tmp_path / "out" / "stages" / "tsd")  # as a kill before its end leaves it
    (tmp_path / "out" / "report.json").unlink()
    (tmp_path / "out" / "checkpoints").mkdir(exist_ok=True)
    other = replace(recipe, teacher=Teacher(path=str(make_teacher(tmp_path / "other", intermediate_size=40))))
    with pytest.raises(ValueError, match="assistant was made from .*another teacher"):
        run(other, resume=True)
    assert run(recipe, resume=True)["teacher"]["parameters"] > 0


def test_a_stage_may_be_run_again_below_a_finished_assistant(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(tiny_recipe(world, tmp_path / "out"), assistant=Student(num_hidden_layers=3, hidden_size=16))
    run(recipe)
    made = (tmp_path / "out" / "assistant" / "report.json").stat().st_mtime_ns
    hotter = replace(recipe.stages["tsd"], losses=replace(recipe.stages["tsd"].losses, temperature=4.0))
    report = run(replace(recipe, stages=recipe.stages | {"tsd": hotter}), from_stage="tsd")
    assert report["recipe"]["stages"]["tsd"]["losses"]["temperature"] == 4.0
    said = "the assistant was distilled with other values of tsd.losses.temperature, and is as it was"
    assert capsys.readouterr().out.count(said) == 1
    assert (tmp_path / "out" / "assistant" / "report.json").stat().st_mtime_ns == made


def test_what_made_a_finished_assistant_may_not_change(world: Path, tmp_path: Path) -> None:
    recipe = replace(miniature("kd", world, tmp_path / "out"), assistant=Student(num_hidden_layers=3))
    others = tuple(str(make_teacher(tmp_path / name, head=True)) for name in ("b", "c"))
    several = replace(recipe, teacher=replace(recipe.teacher, others=others, weights=(1.0, 1.0, 2.0)))
    report = run(several)
    told = "parameters) and b, c, not scored here; smaller and faster are relative"
    for page in ("report.md", "student/README.md"):
        assert told in (tmp_path / "out" / page).read_text()
    assert report["original_teacher"]["others"] == ["b", "c"]
    heavier = replace(several, teacher=replace(several.teacher, weights=(2.0, 1.0, 1.0)))
    for flags in ({"resume": True}, {"from_stage": "kd"}):
        with pytest.raises(ValueError, match="assistant was made with other values of teacher.weights: use the same"):
            run(heavier, **flags)
    assert run(several, resume=True) == report
    slower = replace(several.control, optim=replace(several.control.optim, learning_rate=1e-6))
    shutil.rmtree(tmp_path / "out" / "control")
    assert run(replace(several, control=slower), resume=True)["student"]["score"] is not None  # it has none


@pytest.mark.parametrize(
    ("named", "path"),
    [
        (lambda path: {"teacher": Teacher(finetuned=path)}, "teacher"),
        (lambda path: {"teacher": Teacher(path=path, others=(path,))}, "teacher"),
        (lambda path: {"teacher": Teacher(path=path)}, "assistant/student"),
        (lambda path: {"assistant": Student(path=path)}, "stages/kd"),
        (lambda path: {"student": Student(path=path)}, "assistant/stages/kd"),
    ],
)
def test_overwriting_deletes_nothing_that_is_read(
    named: Callable[[str], dict[str, Any]], path: str, world: Path, tmp_path: Path
) -> None:
    recipe, out = miniature("kd", world, tmp_path / "out"), tmp_path / "out"
    recipe = replace(recipe, assistant=Student(num_hidden_layers=3))
    run(recipe)
    before = {file: file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}
    with pytest.raises(ValueError, match=f"{path} lies in what this run would delete"):
        run(replace(recipe, **named(str(out / path))), overwrite=True)
    assert {file: file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()} == before


def test_it_is_said_where_even_the_first_weights_know_the_task(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(miniature("kd", world, tmp_path / "out"), assistant=Student(num_hidden_layers=3))
    run(replace(recipe, teacher=Teacher(finetuned=str(make_teacher(tmp_path / "known", head=True)))))
    assert "assistant's first weights, which come from those of" in " ".join(capsys.readouterr().out.split())
    run(replace(recipe, output_dir=str(tmp_path / "other")))
    assert "assistant's first weights" not in capsys.readouterr().out
