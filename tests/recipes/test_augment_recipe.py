"""Augmentation by itself, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from fastdistill.cli import command
from recipes.augment import augment
from tests.tiny import WORDS, make_masked_lm, make_vectors


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
    assert set(rows["source_id"]) == set(range(100)), "rows that a run sets aside must not be there"
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
    assert not (tmp_path / "cache").exists()
