"""The whole job in miniature for every kind of label: what is learnt, reported and saved."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertForMaskedLM,
)

from fastdistill import Losses, Recipe, Stage, Student, Task, Teacher, run
from fastdistill.inputs import load_inputs
from tests.tiny import NEGATIVE, POSITIVE, WORDS, make_teacher, make_texts, make_tokenizer, only, shorten, tiny_recipe

replace = dataclasses.replace


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tagged(count: int) -> list[dict[str, Any]]:
    """Words that praise and words that blame are entities of their own."""
    kinds = {**dict.fromkeys(POSITIVE, "B-PRAISE"), **dict.fromkeys(NEGATIVE, "B-BLAME")}
    texts = [text.split() for text, _ in make_texts(count, 3)]
    return [{"tokens": words, "ner_tags": [kinds.get(word, "O") for word in words]} for words in texts]


def several(count: int) -> list[dict[str, Any]]:
    """Texts that praise, blame, do both or neither."""
    draw, rows = random.Random(4), []
    for _ in range(count):
        words = draw.choices(["film", "scene", "the", "was"], k=3)
        labels = [name for name in ("praise", "blame") if draw.random() < 0.5]
        words += [draw.choice(sorted(POSITIVE if name == "praise" else NEGATIVE)) for name in labels]
        rows.append({"text": " ".join(words), "label": labels})
    return rows


def asked(count: int) -> list[dict[str, Any]]:
    """Which word praises or blames? A third of the questions have no answer."""
    rows = []
    for n, (context, _) in enumerate(make_texts(count, 6)):
        words = context.split()
        place = next(i for i, word in enumerate(words) if word in POSITIVE | NEGATIVE)
        start = len(" ".join([*words[:place], ""]))
        answers = {"text": [words[place]], "answer_start": [start]}
        if n % 3 == 0:
            context, answers = context.replace(words[place], "it"), {"text": [], "answer_start": []}
        rows.append({"question": "plot", "context": context, "answers": answers})
    return rows


def ranked(count: int) -> list[dict[str, Any]]:
    """Of three answers to a question the one that praises is right."""
    draw, rows = random.Random(5), []
    for n in range(count):
        for label in draw.sample([1, 0, 0], 3):
            word = draw.choice(sorted(POSITIVE if label else NEGATIVE))
            rows.append({"qid": n, "text_a": "the plot", "text_b": f"it was {word}", "label": label})
    return rows


@dataclasses.dataclass
class Job:
    rows: list[dict[str, Any]]
    task: Task
    auto: Any
    metrics: tuple[str, ...]
    steps: int = 60


JOBS = {
    "tagging": Job(
        tagged(160), Task(), AutoModelForTokenClassification,
        ("entity_f1", "entity_precision", "entity_recall", "accuracy"), steps=150,
    ),
    "multilabel": Job(
        several(160), Task(), AutoModelForSequenceClassification, ("micro_f1", "macro_f1", "exact_match")
    ),
    "span": Job(asked(160), Task(doc_stride=2), AutoModelForQuestionAnswering, ("f1", "exact_match"), steps=150),
    "ranking": Job(
        ranked(60), Task(name="dbqa"), AutoModelForSequenceClassification,
        ("mrr", "map", "accuracy", "f1", "macro_f1", "matthews"),
    ),
}  # fmt: skip


def recipe_of(job: Job, world: Path, tmp_path: Path) -> Recipe:
    recipe = only(tiny_recipe(world, tmp_path / "out"), "tad", "tsd")
    task = replace(
        job.task, path=write(tmp_path / "rows.jsonl", job.rows), max_length=16, validation_size=20, test_size=40
    )
    return replace(recipe, task=task, finetune=replace(recipe.finetune, steps=job.steps), teacher_cache=True)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_of_every_kind(name: str, world: Path, tmp_path: Path) -> None:
    job = JOBS[name]
    report = run(recipe_of(job, world, tmp_path))
    out = tmp_path / "out"
    teacher, student = report["teacher"], report["student"]
    assert teacher["metric"] == job.metrics[0]
    assert tuple(teacher["scores"]) == tuple(student["scores"]) == tuple(report["control"]["scores"]) == job.metrics
    assert teacher["score"] == teacher["scores"][job.metrics[0]] > 0.8
    tad, tsd = report["stages"]
    assert tad["head"] is None
    assert tad["score"] is None or tad["scores"].keys() == set(job.metrics)
    assert (tad["score"] is None) == (name == "span")
    assert tsd["head"] == ("classification" if name == "ranking" else name)
    assert set(tsd["losses"]) == {"attention", "hidden", "embedding", "soft", "hard"}
    assert all(metric in (out / "report.md").read_text() for metric in job.metrics)
    assert ("agreement" in student) == (name != "ranking")
    for folder in ("student", "teacher", "control"):
        assert (
            type(job.auto.from_pretrained(out / folder)).__name__
            == AutoConfig.from_pretrained(out / folder).architectures[0]
        )


def test_entities_are_those_that_plain_transformers_finds(world: Path, tmp_path: Path) -> None:
    """The reported figure, computed from the student's folder by transformers and a count by hand."""
    recipe = recipe_of(JOBS["tagging"], world, tmp_path)
    rows = tagged(40)
    folder = tmp_path / "task"
    folder.mkdir()
    for name, own in (("train", tagged(160)), ("validation", tagged(20)), ("test", rows)):
        write(folder / f"{name}.jsonl", own)
    report = run(replace(recipe, task=replace(recipe.task, path=str(folder)), stages={"tsd": recipe.stages["tsd"]}))
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out" / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "student")
    right = predicted = there = 0
    for row in rows:
        classes = model(**tokenizer(" ".join(row["tokens"]), return_tensors="pt")).logits[0, 1:-1].argmax(-1)
        tags = [model.config.id2label[int(i)] for i in classes]  # every word is one token here, every entity one word
        predicted += sum(tag != "O" for tag in tags)
        there += sum(tag != "O" for tag in row["ner_tags"])
        right += sum(tag == gold != "O" for tag, gold in zip(tags, row["ner_tags"], strict=True))
    assert report["student"]["scores"]["entity_f1"] == pytest.approx(2 * right / (predicted + there))
    assert report["student"]["scores"]["entity_recall"] == pytest.approx(right / there)


def test_a_student_of_several_classes_is_one_for_transformers(world: Path, tmp_path: Path) -> None:
    run(recipe_of(JOBS["multilabel"], world, tmp_path))
    config = AutoConfig.from_pretrained(tmp_path / "out" / "student")
    assert config.problem_type == "multi_label_classification"
    assert config.id2label == {0: "blame", 1: "praise"}


def test_a_teacher_with_its_classes_in_another_order_teaches_the_same(
    done: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = tmp_path / "turned"
    model = AutoModelForSequenceClassification.from_pretrained(done / "teacher")
    with torch.no_grad():
        for weight in model.classifier.parameters():
            weight.copy_(weight.flip(0))
    model.config.id2label = {0: "Positive", 1: "Negative"}
    model.config.label2id = {"Positive": 0, "Negative": 1}
    model.save_pretrained(turned)
    make_tokenizer().save_pretrained(turned)
    recipe = only(tiny_recipe(world, tmp_path / "a"), "tsd")
    reports = [
        run(replace(recipe, teacher=replace(recipe.teacher, finetuned=str(path)), output_dir=str(tmp_path / out)))
        for path, out in ((done / "teacher", "a"), (turned, "b"))
    ]
    a, b = (load_file(tmp_path / out / "student" / "model.safetensors") for out in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert reports[0]["teacher"]["scores"] == reports[1]["teacher"]["scores"]
    assert reports[0]["student"]["agreement"] == reports[1]["student"]["agreement"]
    first, second = capsys.readouterr().out.split("task: classification")[1:]
    assert "in another order" not in first
    assert "has its classes in another order: they are put into the task's, negative, positive" in second


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that predicts masked words."""
    folder = tmp_path_factory.mktemp("reader")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(make_teacher(tmp_path_factory.mktemp("shape")))
    BertForMaskedLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def masked_stage(**changes: Any) -> Stage:
    losses = Losses(hidden=1.0, soft=0.1, hard=2.0, temperature=2.0)
    return shorten(Stage(teacher="pretrained", data="masked", losses=losses, **changes), 60)


def test_masked_words_are_learnt_from_a_teacher_and_the_task_after_them(
    world: Path, reader: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(world, tmp_path / "out")
    stages = {"mlm": masked_stage(), "more": masked_stage(), "tsd": recipe.stages["tsd"]}
    report = run(replace(recipe, teacher=Teacher(path=str(reader)), stages=stages, teacher_cache=True))
    mlm, more, tsd = report["stages"]
    assert (mlm["head"], more["head"], tsd["head"]) == ("masked", "masked", "classification")
    assert set(mlm["losses"]) == {"hidden", "soft", "hard"}
    first, last = mlm["losses"]["hard"]
    assert first == pytest.approx(np.log(len(WORDS) + 5), rel=0.3)
    assert last < 0.97 * first
    assert more["losses"]["hard"][0] < first, "the second stage began with another head"
    assert mlm["score"] is not None  # by a linear probe, for the head is not the task's
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out" / "stages" / "more")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert "mlm: no teacher cache, for every batch hides other words" in capsys.readouterr().out
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "student")


@pytest.mark.parametrize("headed", [True, False])
def test_head_for_masked_words_starts_from_the_teacher_without_soft_labels(
    headed: bool, world: Path, reader: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = reader if headed else world / "teacher"
    stage = shorten(Stage(teacher="none", data="masked", losses=Losses(hard=1.0)), 1)
    stage = replace(stage, optim=replace(stage.optim, learning_rate=1e-12))
    recipe = replace(tiny_recipe(world, tmp_path / "out"), teacher=Teacher(path=str(path)), task=Task())
    run(replace(recipe, student=Student(num_hidden_layers=2), stages={"mlm": stage}))
    assert ("the student's head for masked words starts at random, for" in capsys.readouterr().out) != headed
    if headed:
        ours, theirs = (load_file(p / "model.safetensors") for p in (tmp_path / "out" / "student", reader))
        name = "cls.predictions.transform.dense.weight"
        torch.testing.assert_close(ours[name], theirs[name])


def test_masked_words_need_no_task_and_resume_to_the_bit(
    world: Path, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(world, tmp_path / "whole")
    recipe = replace(
        recipe, teacher=Teacher(path=str(reader)), stages={"mlm": masked_stage()}, task=Task(), save_steps=8
    )
    run(recipe)
    from fastdistill import loop

    saved = loop.Checkpoints.save

    def save_and_die(self: Any, state: Any) -> None:
        saved(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Checkpoints, "save", save_and_die)
    again = replace(recipe, output_dir=str(tmp_path / "killed"))
    with pytest.raises(KeyboardInterrupt):
        run(again)
    monkeypatch.undo()
    run(again, resume=True)
    a, b = (load_file(tmp_path / out / "student" / "model.safetensors") for out in ("whole", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_mismatched_rows_are_reported_beside_matched_ones(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mnli"
    folder.mkdir()
    rows = [
        {"premise": text, "hypothesis": "it was", "label": {"positive": 0, "negative": 2}[label]}
        for text, label in make_texts(140, 7)
    ]
    for name, part in (
        ("train", rows[:100]),
        ("validation_matched", rows[100:120]),
        ("validation_mismatched", rows[120:]),
    ):
        write(folder / f"{name}.jsonl", part)
    recipe = only(tiny_recipe(world, tmp_path / "out"), "tsd")
    task = Task(name="mnli", path=str(folder), max_length=20, validation_size=10)
    report = run(replace(recipe, task=task))
    scores = report["teacher"]["scores"]
    assert {"accuracy", "accuracy, mismatched", "f1, mismatched"} <= scores.keys()
    assert report["teacher"]["score"] == scores["accuracy"]
    assert report["data"]["test, mismatched"]["examples"] == 20
    assert "| accuracy, mismatched |" in (tmp_path / "out" / "report.md").read_text()


def test_what_was_found_out_is_said(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(only(tiny_recipe(world, tmp_path / "out"), "gd"))
    said = capsys.readouterr().out
    assert "task: classification, texts from text, labels from label, as the columns say" in said


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["No", "no ", "yes"], "3 classes (No, no, yes)"),
        ([*"abcdefghijk"], "11 classes (a, b, c, d, e, f, g, h, i, j and 1 more)"),
    ],
)
def test_the_classes_are_said(classes: list[str], said: str, world: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "the film", "label": name} for name in classes * 30])
    recipe = tiny_recipe(world, tmp_path / "out")
    assert f"task: {said}" in load_inputs(replace(recipe, task=replace(recipe.task, path=path))).said
