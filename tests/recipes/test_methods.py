"""Every method is a recipe that the one engine runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fastdistill import Teacher, run
from fastdistill.recipe import Losses
from tests.tiny import make_teacher, miniature, tiny_recipe

replace = dataclasses.replace
INNER = {"attention", "hidden", "patience"}  # losses over all mapped layers


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("kd", [{"soft", "hard"}]),
        ("patient_kd", [{"soft", "hard", "patience"}]),
        ("minilm", [{"relation"}, {"hard"}]),
        ("minilm_v2", [{"relation"}, {"hard"}]),
        ("distilbert", [{"soft", "hard", "cosine"}, {"hard"}]),
        ("tinybert", [{"attention", "hidden", "embedding"}, {"attention", "hidden", "embedding"}, {"soft"}]),
    ],
)
def test_terms_of_every_stage(
    name: str, terms: list[set[str]], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(miniature(name, world, tmp_path / "out"))
    said = capsys.readouterr().out
    for stage in report["stages"]:  # only layers that a loss compares are shown
        lines = said.partition(f"{stage['name']}: student layer (of 2) <- ")[2].splitlines()[1:3]
        inner, last = (bool(stage["losses"].keys() & some) for some in (INNER, {*INNER, "relation", "cosine"}))
        expected = [not inner, name == "patient_kd"] if last else []  # whose map leaves the last layer out
        assert [line.endswith("-") for line in lines] == expected, stage["name"]
    assert [set(stage["losses"]) for stage in report["stages"]] == terms
    assert report["student"]["score"] is not None
    assert report["control"]["score"] is not None


def test_student_of_patient_kd_starts_from_the_first_layers(world: Path, tmp_path: Path) -> None:
    recipe = miniature("patient_kd", world, tmp_path / "out")
    run(replace(recipe, student=replace(recipe.student, hidden_size=None)))
    initial, teacher = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "out" / "stages" / "init", world / "teacher")
    )
    name = "encoder.layer.{}.attention.self.query.weight"
    assert all((initial[name.format(n)] == teacher[name.format(n)]).all() for n in range(2))


def finetuned(world: Path, folder: Path, **shape: int) -> str:
    """A classifier of the tiny task, hardly trained."""
    return str(make_teacher(folder, head=True, **shape))


def test_several_teachers(world: Path, done: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world, tmp_path / "out")
    recipe = replace(recipe, stages={"tsd": recipe.stages["tsd"]}, logging_steps=1)
    one = run(replace(recipe, teacher=Teacher(finetuned=str(done / "teacher"))))
    several = Teacher(
        finetuned=str(done / "teacher"), others=(finetuned(world, tmp_path / "other"),), weights=(1.0, 3.0)
    )
    two = run(replace(recipe, teacher=several, output_dir=str(tmp_path / "two")))
    first, second = (report["stages"][0]["losses"] for report in (one, two))
    assert first["attention"][0] == pytest.approx(second["attention"][0], rel=1e-4)  # the first teacher's
    assert first["soft"][0] != pytest.approx(second["soft"][0], rel=1e-3)
    assert first["hidden"][0] != pytest.approx(second["hidden"][0], rel=1e-3)
    for text in (tmp_path / "two" / name for name in ("report.md", "student/README.md")):
        for part in (
            "\n| first teacher | ",
            "% of its first teacher's score",
            "The student learnt from 1 more teachers",
        ):
            assert part in text.read_text(), part
    assert "\n| teacher | " in (tmp_path / "out" / "report.md").read_text()
    alike = replace(several, weights=None)
    three = run(replace(recipe, teacher=alike, output_dir=str(tmp_path / "three")))
    assert second["soft"][0] != pytest.approx(three["stages"][0]["losses"]["soft"][0], rel=1e-3)


def test_dropout_of_a_teacher(world: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As drawn by every batch anew, so that what the teacher says is never kept on disk."""
    recipe = replace(tiny_recipe(world, tmp_path / "one"), teacher=Teacher(finetuned=str(done / "teacher")))
    quiet = replace(recipe.stages["tad"], steps=None, epochs=2.0)
    noisy = replace(quiet, teacher_dropout=True)
    recipe = replace(recipe, teacher_cache=True, cache_dir=str(tmp_path / "cache"), logging_steps=1)
    one = run(replace(recipe, stages={"tad": noisy}))
    assert not (tmp_path / "cache" / "teacher").exists()
    assert "tad: no teacher cache, for the teacher's dropout is on" in capsys.readouterr().out
    two = run(replace(recipe, stages={"tad": quiet}, output_dir=str(tmp_path / "two")))
    assert (tmp_path / "cache" / "teacher").exists()
    first, second = (report["stages"][0]["losses"]["hidden"][0] for report in (one, two))
    assert first != pytest.approx(second, rel=1e-3)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (Teacher(others=("x",), weights=(1.0,)), r"teacher.weights is \[1.0\]: give 2 numbers above 0"),
        (Teacher(weights=(0.0,)), r"teacher.weights is \[0.0\]: give 1 numbers above 0"),
        (Teacher(others=("x",), weights=(1e308, 1e308)), r"give 2 numbers above 0, and 1e\+06 at most"),
    ],
)
def test_weights_of_teachers_are_checked(teacher: Teacher, message: str, world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(replace(tiny_recipe(world, tmp_path / "out"), teacher=replace(teacher, path=str(world / "teacher"))))


@pytest.mark.parametrize("given", [Teacher(others=("x",)), Teacher(weights=(1.0,))], ids=["others", "weights"])
def test_several_teachers_that_none_asks_are_refused(given: Teacher, world: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world, tmp_path / "out")
    stages = {name: replace(stage, skip=stage.teacher == "finetuned") for name, stage in recipe.stages.items()}
    teacher = replace(given, path=str(world / "teacher"))
    with pytest.raises(ValueError, match=r"teacher\.(others|weights) is given, but no stage has teacher: finetuned"):
        run(replace(recipe, stages=stages, teacher=teacher))


def test_all_teachers_must_take_the_text(world: Path, done: Path, tmp_path: Path) -> None:
    short = finetuned(world, tmp_path / "short", max_position_embeddings=8)
    for teacher in (Teacher(finetuned=str(done / "teacher"), others=(short,)), Teacher(finetuned=short)):
        with pytest.raises(ValueError, match="max_length is 16, but teacher and student take 8 tokens at most"):
            run(replace(tiny_recipe(world, tmp_path / "out"), teacher=replace(teacher, path=str(world / "teacher"))))
    assert not (tmp_path / "out").exists()


def test_teachers_of_unlike_shapes_are_refused(world: Path, done: Path, tmp_path: Path) -> None:
    other = finetuned(world, tmp_path / "other", num_hidden_layers=3)
    teacher = Teacher(path=str(world / "teacher"), finetuned=str(done / "teacher"), others=(other,))
    recipe = replace(tiny_recipe(world, tmp_path / "out"), teacher=teacher)
    with pytest.raises(
        ValueError, match=r"one num_hidden_layers, but .*other has 3, the first 4: .* weights of embedding, hidden to 0"
    ):
        run(recipe)
    soft = replace(recipe.stages["tsd"], losses=Losses(attention=1.0, soft=1.0))
    report = run(replace(recipe, stages={"tsd": soft}))  # of logits there is a mean whatever the shapes
    alone = replace(recipe, teacher=replace(teacher, others=()), stages={"tsd": soft}, output_dir=str(tmp_path / "one"))
    assert run(alone)["stages"][0]["losses"]["soft"] != report["stages"][0]["losses"]["soft"]


def test_pooler_outlives_a_stage_on_masked_words(world: Path, tmp_path: Path) -> None:
    """A model with a head over tokens is saved without it."""
    recipe = miniature("distilbert", world, tmp_path / "out")
    tune = recipe.stages["tune"]
    still = replace(tune, optim=replace(tune.optim, learning_rate=1e-12))
    run(replace(recipe, stages=recipe.stages | {"tune": still}))
    before, after = (
        load_file(tmp_path / "out" / folder / "model.safetensors") for folder in ("stages/init", "student")
    )
    assert (before["pooler.dense.weight"] - after["bert.pooler.dense.weight"]).abs().max() < 1e-6
    word = "embeddings.word_embeddings.weight"
    assert (before[word] - after[f"bert.{word}"]).abs().max() > 1e-4


def test_classes_of_several_teachers_are_put_into_one_order(world: Path, done: Path, tmp_path: Path) -> None:
    """A teacher with its classes turned round says the same as before."""
    model = AutoModelForSequenceClassification.from_pretrained(done / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(done / "teacher")
    for parameter in model.classifier.parameters():
        parameter.data = parameter.data.flip(0)
    names = [model.config.id2label[i] for i in (1, 0)]
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "turned")
    recipe = tiny_recipe(world, tmp_path / "one")
    recipe = replace(recipe, stages={"tsd": recipe.stages["tsd"]}, logging_steps=1)
    one = run(replace(recipe, teacher=Teacher(finetuned=str(done / "teacher"))))
    both = Teacher(finetuned=str(done / "teacher"), others=(str(tmp_path / "turned"),))
    two = run(replace(recipe, teacher=both, output_dir=str(tmp_path / "two")))
    first, second = (report["stages"][0]["losses"]["soft"][0] for report in (one, two))
    assert first == pytest.approx(second, rel=1e-5)
