"""Augmentation by itself, from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from fastdistill import Augment, Task, Teacher, inputs, run
from fastdistill.cli import command
from fastdistill.data.tasks import load_task
from fastdistill.models.pretrained import load_tokenizer
from recipes.augment import augment
from tests.tiny import WORDS, make_masked_lm, make_texts, make_vectors, tiny_recipe


def options(world: Path, folder: Path, *others: str) -> list[str]:
    task = [f"--task.path={world / 'task.csv'}", "--task.validation_size=20", "--task.test_size=40"]
    vectors = make_vectors(folder / "glove.txt", WORDS)
    return [
        *task, "--task.augment.copies=2", f"--task.augment.vectors={vectors}", f"--teacher.path={world / 'teacher'}",
        f"--cache_dir={folder / 'cache'}", f"--output_dir={folder / 'out'}", "--precision=fp32", *others,
    ]  # fmt: skip


def test_the_rows_and_their_copies_are_written(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_masked_lm(tmp_path / "model")
    command(augment, "", options(world, tmp_path, f"--task.augment.model={model}", "--seed=3"))
    rows = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "hub"), split="train"
    )
    assert rows.column_names == ["text", "label", "source_id"]
    assert rows.features["label"].names == ["negative", "positive"]
    lines = (world / "task.csv").read_text().splitlines()[1:]
    first = {number: text for number, text in zip(reversed(rows["source_id"]), reversed(rows["text"]), strict=True)}
    assert len(first) == 100, "rows that a run sets aside must not be there"
    assert all(lines[number].rpartition(",")[0] == text for number, text in first.items())
    assert max(first) > 100
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(rows) == report["counts"]["rows"] + report["counts"]["copies"] > 200
    assert report["settings"]["seed"] == 3
    said = capsys.readouterr().out
    assert f"100 rows x 2 copies, candidates from {model} and" in said
    assert f"{tmp_path / 'out'}: rows 100, copies {report['counts']['copies']}" in said


def test_what_is_found_in_the_data_is_said(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    for name in ("train.csv", "extra.csv"):
        (folder / name).write_text((world / "task.csv").read_text())
    command(augment, "", options(world, tmp_path, f"--task.path={folder}"))
    said = capsys.readouterr().out
    assert "task: classification, texts from text" in said
    assert "task: not used: extra.csv" in said


def test_what_is_written_is_a_task_to_train_on(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the same held-out rows, none of which was copied from."""
    command(augment, "", options(world, tmp_path))
    tokenizer = load_tokenizer(str(world / "teacher"))
    sizes = Task(path=str(world / "task.csv"), validation_size=20, test_size=40)
    before, after = (load_task(task, tokenizer, 0).rows for task in (sizes, Task(path=str(tmp_path / "out"))))
    for name in ("validation", "test"):
        assert list(before[name].wording()) == list(after[name].wording())
        assert (before[name].labels == after[name].labels).all()
    read = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "hub"))
    assert {name: len(rows) for name, rows in read.items()} == {name: len(after[name].texts) for name in after}
    first = np.unique(read["train"]["source_id"], return_index=True)[1]
    assert [after["train"].texts[n] for n in first] == before["train"].texts


LISTS = [["a"], ["b", "a"], [], ["c"], ["a", "b"], ["c", "b"]]
KINDS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "classification": ([0, 1] * 3, {"label_names": ("no", "yes")}),
    "regression": ([0.5, 1.0, 2.5, 3.25, 4.0, 5.0], {}),
    "multilabel": (LISTS, {}),
    "ranking": ([0, 1] * 3, {"kind": "classification", "group": "group"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_every_kind_come_back(kind: str, world: Path, tmp_path: Path) -> None:
    labels, given = KINDS[kind]
    texts = [text for text, _ in make_texts(18, seed=5)]
    folder = tmp_path / "task"
    folder.mkdir()
    for part, name in enumerate(("train", "validation", "test", "test_far")):
        rows = [
            {"one": text, "two": text[::-1], "y": label, "group": f"g{n // 2}"}
            for n, (text, label) in enumerate(zip(texts[part:], labels, strict=False))
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"kind": kind, **given}
    vectors = str(make_vectors(tmp_path / "glove.txt", WORDS))
    task = Task(
        path=str(folder), text="one", pair="two", label="y", augment=Augment(vectors=vectors, copies=2), **options
    )
    out, tokenizer = tmp_path / "out", load_tokenizer(str(world / "teacher"))
    augment(task, Teacher(path=str(world / "teacher")), str(out), str(tmp_path / "cache"), precision="fp32")
    before, after = (load_task(replace(task, path=path), tokenizer, 0) for path in (str(folder), str(out)))
    assert after.label_names == before.label_names
    assert after.more.keys() == before.more.keys() == {"far"}
    for name, rows in before.rows.items():
        if name != "train":
            assert list(after.rows[name].wording()) == list(rows.wording())
            assert np.array_equal(after.rows[name].labels, rows.labels)
    whose = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "hub"), split="train")["source_id"]
    assert len(whose) > len(set(whose)) == 6
    assert np.array_equal(after.rows["train"].labels, np.asarray(before.rows["train"].labels)[whose])
    if "group" in options:
        assert (after.rows["train"].groups == before.rows["train"].groups[whose]).all()


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        (["--task.augment.copy=2"], "did you mean task.augment.copies?"),
        (["--student.path=x"], "student.path"),
        (["--task.augment.copies=0"], "task.augment.copies is 0"),
        (["--task.augment.vectors=gone.txt"], "there is no file gone.txt"),
        (["--task.text=sentence"], "no column 'sentence'"),
        (["--device=tpu"], "device is 'tpu': choose from auto, cpu, cuda"),
        (["--teacher=null"], "teacher is 'null': it is a group of options"),
        (["--teacher.path=null"], "no teacher is named"),
    ],
)
def test_bad_input_is_one_line(
    others: list[str], expected: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command(augment, "", options(world, tmp_path, *others))
    error = capsys.readouterr().err
    assert stop.value.code == 2, error
    assert expected in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_an_output_directory_that_is_there_is_left_alone(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit):
        command(augment, "", options(world, tmp_path))
    assert "exists: choose another --output_dir" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit):
        command(augment, "", options(world, tmp_path, f"--output_dir={tmp_path / 'file' / 'out'}"))
    assert "cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_what_is_put_there_meanwhile_stays(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = inputs.augment

    def meanwhile(*given: Any) -> Any:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "essay.txt").write_text("mine")
        return made(*given)

    monkeypatch.setattr(inputs, "augment", meanwhile)
    with pytest.raises(SystemExit):
        command(augment, "", options(world, tmp_path))
    assert "exists: choose another --output_dir" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["essay.txt"]


def test_copies_are_not_copied_again(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(augment, "", options(world, tmp_path))
    out = f"--task.path={tmp_path / 'out'}"
    with pytest.raises(SystemExit):
        command(augment, "", options(world, tmp_path, out, f"--output_dir={tmp_path / 'twice'}"))
    assert "out: rows of train are copies of others already: name the data without" in capsys.readouterr().err
    recipe = tiny_recipe(world, tmp_path / "run")
    stages = {"tsd": replace(recipe.stages["tsd"], data="augmented")}
    run(replace(recipe, task=Task(path=str(tmp_path / "out"), max_length=16), stages=stages))
    said = capsys.readouterr().out
    assert "task: rows of train are copies of others already, so that no more are made" in said
    assert "not used" not in said
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["data"]["augmented"] == {**report["data"]["train"], "origin": "train, as it is"}
