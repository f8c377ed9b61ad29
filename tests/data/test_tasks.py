"""Tasks: which rows are trained on, chosen on and reported on, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from fastdistill.data import source as source_module
from fastdistill.data.packing import Sequences
from fastdistill.data.tasks import TaskData, load_task
from fastdistill.recipe import Task

Row = tuple[Any, Any]
DIGITS = ["a", "b", "c", "d", "e", "f", "g", "good", "bad", "film"]


def row_text(number: int) -> str:
    """A text of its own for every row, so that splits can be told apart after tokenisation."""
    return " ".join(DIGITS[int(digit)] for digit in f"{number:03d}")


def rows(start: int, stop: int, classes: int = 2) -> list[Row]:
    return [(row_text(i), i % classes) for i in range(start, stop)]


def write(folder: Path, **splits: list[Row]) -> str:
    folder.mkdir(exist_ok=True)
    for name, split in splits.items():
        lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in split)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return str(folder)


def texts(data: Sequences) -> list[tuple[int, ...]]:
    return [tuple(data.input_ids[a:b].tolist()) for a, b in zip(data.offsets, data.offsets[1:], strict=False)]


def sizes(data: TaskData) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


TRAIN, VALIDATION, TEST = rows(0, 40), rows(40, 50), rows(50, 65)
HIDDEN = [(text, -1) for text, _ in TEST]


@pytest.mark.parametrize(
    ("splits", "expected", "origins"),
    [
        ({"train": TRAIN, "validation": VALIDATION, "test": TEST}, (40, 10, 15), ("train", "validation", "test")),
        ({"train": TRAIN, "dev": VALIDATION, "test": TEST}, (40, 10, 15), ("train", "validation", "test")),
        (
            {"train": TRAIN, "validation": VALIDATION, "test": HIDDEN},
            (34, 6, 10),
            ("train", "train, 6 rows set aside", "validation"),
        ),
        ({"train": TRAIN, "validation": VALIDATION}, (34, 6, 10), ("train", "train, 6 rows set aside", "validation")),
        ({"train": TRAIN, "test": TEST}, (34, 6, 15), ("train", "train, 6 rows set aside", "test")),
        ({"train": TRAIN}, (26, 6, 8), ("train", "train, 6 rows set aside", "train, 8 rows set aside")),
        ({"train": TRAIN, "test": HIDDEN}, (26, 6, 8), ("train", "train, 6 rows set aside", "train, 8 rows set aside")),
        ({"reviews": TRAIN}, (26, 6, 8), ("train", "train, 6 rows set aside", "train, 8 rows set aside")),
        (
            {"train-00000-of-00002": TRAIN[:20], "train-00001-of-00002": TRAIN[20:], "test": TEST},
            (34, 6, 15),
            ("train", "train, 6 rows set aside", "test"),
        ),
        (
            {"train": TRAIN, "validation_mismatched": TEST, "validation_matched": VALIDATION},
            (34, 6, 10),
            ("train", "train, 6 rows set aside", "validation"),
        ),
    ],
)
def test_split_rules(
    splits: dict[str, list[Row]],
    expected: tuple[int, int, int],
    origins: tuple[str, str, str],
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    data = load_task(Task(path=write(tmp_path, **splits), validation_size=6, test_size=8), tokenizer, seed=0)
    assert sizes(data) == expected
    assert tuple(data.origins[split] for split in ("train", "validation", "test")) == origins
    everything = texts(data.train) + texts(data.validation) + texts(data.test)
    assert len(set(everything)) == len(everything), "a row is in two splits"
    if origins[2] == "validation":
        assert texts(data.test) == [tuple(tokenizer(text)["input_ids"]) for text, _ in VALIDATION]


def test_rows_set_aside_are_decided_by_the_seed_and_stratified(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    many = [(row_text(i), "rare" if i % 10 == 0 else "common") for i in range(200)]
    task = Task(path=write(tmp_path, train=many), validation_size=30, test_size=50)
    data, same, other = (load_task(task, tokenizer, seed) for seed in (0, 0, 1))
    fixed = load_task(dataclasses.replace(task, split_seed=0), tokenizer, seed=1)
    assert texts(fixed.validation) == texts(data.validation)
    assert texts(data.validation) == texts(same.validation)
    assert texts(data.test) == texts(same.test)
    turned = load_task(dataclasses.replace(task, label_names=("rare", "common")), tokenizer, seed=0)
    assert (texts(turned.validation), texts(turned.test)) == (texts(data.validation), texts(data.test))
    assert (turned.validation.labels == 1 - data.validation.labels).all()
    assert texts(data.validation) != texts(other.validation)
    assert data.label_names == ("common", "rare")
    assert np.bincount(data.test.labels).tolist() == [45, 5]
    assert np.bincount(data.validation.labels).tolist() == [27, 3]
    by_text = {tuple(tokenizer(text)["input_ids"]): label for text, label in many}
    for split in (data.train, data.validation, data.test):
        assert [data.label_names[label] for label in split.labels] == [by_text[text] for text in texts(split)]


@pytest.mark.parametrize(("test_size", "validation_size"), [(21, 1), (20, 11), (0, 1), (1, 0)])
def test_too_few_rows_to_set_aside(
    test_size: int, validation_size: int, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    task = Task(path=write(tmp_path, train=TRAIN), validation_size=validation_size, test_size=test_size)
    fault = (
        f"task.test_size={test_size} and task.validation_size={validation_size} rows cannot be set aside from the 40 "
        "rows of train: choose from 1 to 20, then at most half of what is left"
    )
    with pytest.raises(ValueError, match=fault):
        load_task(task, tokenizer, seed=0)


def test_half_of_the_rows_and_half_of_the_rest_may_be_set_aside(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    task = Task(path=write(tmp_path, train=TRAIN), validation_size=10, test_size=20)
    assert sizes(load_task(task, tokenizer, seed=0)) == (10, 10, 20)


def test_only_rows_that_a_split_is_without_are_set_aside(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task(path=write(tmp_path, train=TRAIN, test=TEST), validation_size=21, test_size=0)
    fault = r"task\.validation_size=21 rows cannot be set aside from the 40 rows of train: choose from 1 to 20"
    with pytest.raises(ValueError, match=f"^{fault}$"):
        load_task(task, tokenizer, seed=0)
    assert sizes(load_task(dataclasses.replace(task, validation_size=20), tokenizer, seed=0))[:2] == (20, 20)


def test_no_train_split(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, validation=VALIDATION, test=TEST)
    with pytest.raises(ValueError, match="has no train split, only test, validation; add a file named train"):
        load_task(Task(path=path), tokenizer, seed=0)


def test_a_test_split_without_the_label_column_is_left_alone(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = Path(write(tmp_path, train=TRAIN, validation=VALIDATION))
    (path / "test.jsonl").write_text('{"text": "a"}\n')
    assert load_task(Task(path=str(path), validation_size=6), tokenizer, 0).origins["test"] == "validation"


def test_a_file_by_itself_is_train(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, test=TEST)
    assert sizes(load_task(Task(path=f"{path}/test.jsonl", validation_size=2, test_size=3), tokenizer, 0)) == (10, 2, 3)


def test_pairs_regression_and_text_columns(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "train.csv").write_text("s1,s2,score\n" + "a,b c,0.5\nd,e,1\n" * 4)
    task = Task(
        path=str(tmp_path), text="s1", pair="s2", label="score", kind="regression", validation_size=1, test_size=1
    )
    data = load_task(task, tokenizer, 0)
    assert data.label_names is None
    assert data.train.labels.dtype == np.float32
    assert set(texts(data.train)) == {tuple(tokenizer(s1, s2)["input_ids"]) for s1, s2 in [("a", "b c"), ("d", "e")]}
    assert data.train.token_type_ids.max() == 1


def test_second_texts_may_be_empty_and_are_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"question1": text, "question2": "a film" if n else "", "label": label} for n, (text, label) in enumerate(TRAIN)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:8]))
    data = load_task(Task(name="qqp", path=str(tmp_path), validation_size=8), tokenizer, 0)
    assert "task: 1 rows of test have no second text" in data.said
    assert tuple(tokenizer([TRAIN[0][0]], [""])["input_ids"][0]) in texts(data.test)
    (tmp_path / "train.jsonl").write_text(json.dumps({**rows[0], "question2": None}) + "\n")
    with pytest.raises(ValueError, match="row 1: column 'question2' is None, not text"):
        load_task(Task(name="qqp", path=str(tmp_path), validation_size=8), tokenizer, 0)


def test_copies_are_not_set_aside(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"text": text, "label": label, "source_id": n // 2} for n, (text, label) in enumerate(TRAIN)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(path=str(tmp_path), validation_size=4, test_size=4)
    with pytest.raises(ValueError, match=r"column source_id of .*train.jsonl says .*put files of validation and test"):
        load_task(task, tokenizer, 0)
    for split in ("validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    assert sizes(load_task(task, tokenizer, 0)) == (len(rows), 6, 6)


def test_a_source_id_of_the_data_itself(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """It tells of copies only where rows have the same one."""
    rows = [{"text": text, "label": label, "source_id": f"id{n}"} for n, (text, label) in enumerate(TRAIN)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(path=str(tmp_path), validation_size=4, test_size=4)
    data = load_task(task, tokenizer, 0)
    assert (sizes(data), data.copied) == ((len(rows) - 8, 4, 4), False)
    for option in ("text", "pair", "label", "group"):
        with pytest.raises(ValueError, match=f"task.{option} is source_id, .* rename the column"):
            load_task(dataclasses.replace(task, **{option: "source_id"}), tokenizer, 0)  # type: ignore[arg-type]


def test_a_folder_with_one_split_keeps_its_name(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="has no train split, only validation"):
        load_task(Task(path=write(tmp_path, validation=TRAIN)), tokenizer, 0)


def test_hub_data_sets_have_the_same_rules(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(write(tmp_path, train=TRAIN, validation=VALIDATION, test=HIDDEN))
    original = datasets.load_dataset_builder

    def hub(path: str, name: str | None, revision: str | None) -> datasets.DatasetBuilder:
        assert (path, name, revision) == ("nyu-mll/glue", "sst2", None)
        files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
        return original("json", data_files=files, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(source_module.datasets, "load_dataset_builder", hub)
    data = load_task(Task(path="nyu-mll/glue", name="sst2", text="text", validation_size=6), tokenizer, 0)
    assert sizes(data) == (34, 6, 10)
    assert data.origins["test"] == "validation"


def test_long_texts_are_truncated_and_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, train=[*TRAIN, ("a " * 5000, 0)], validation=VALIDATION, test=TEST)
    data = load_task(Task(path=path, max_length=6), tokenizer, 0)
    assert data.train.counts["truncated"] == 1
    assert data.train.lengths.max() == 6
    assert data.test.counts == {"examples": 15, "tokens": 75, "truncated": 0, "in train": 0}


@pytest.mark.parametrize(
    ("text", "fault"),
    [("", "is empty"), (" \n", "is empty"), (None, "is None, not text"), (["a"], r"is \['a'\], not text")],
)
def test_text_that_is_none_is_named(text: Any, fault: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, train=[*TRAIN[:3], (text, 1), *TRAIN[3:]], validation=VALIDATION, test=TEST)
    with pytest.raises(ValueError, match=rf"train\.jsonl, row 4: column 'text' {fault}; correct or remove the row"):
        load_task(Task(path=path), tokenizer, 0)


def test_every_split_that_is_used_is_checked(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, train=TRAIN, validation=[*VALIDATION, ("a", 2)], test=TEST)
    with pytest.raises(ValueError, match=r"validation\.jsonl, row 11: label 2 is none of the 2 classes \(0, 1\)"):
        load_task(Task(path=path), tokenizer, 0)


def test_one_class_alone(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, train=[(text, "pos") for text, _ in TRAIN], validation=[("a", "pos")], test=[("b", "pos")])
    with pytest.raises(
        ValueError, match=r"train\.jsonl: every row left to train on has the label 'pos'; give data with two"
    ):
        load_task(Task(path=path), tokenizer, 0)


def test_targets_must_be_numbers(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,1\nb,nan\n")
    with pytest.raises(ValueError, match=r"train\.csv, row 2: label 'nan' is not a finite number"):
        load_task(Task(path=str(tmp_path), kind="regression"), tokenizer, 0)


def test_columns_must_exist(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, train=TRAIN)
    for option in ("text", "pair", "label"):
        with pytest.raises(
            ValueError, match=rf"no column 'sentence', only text, label; set the columns in task\.{option}"
        ):
            load_task(dataclasses.replace(Task(path=path), **{option: "sentence"}), tokenizer, 0)


def test_no_path(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"task\.path is not set"):
        load_task(Task(), tokenizer, 0)


def test_mrpc(shared_data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task(path=str(shared_data / "tasks" / "glue" / "mrpc"), text="sentence1", pair="sentence2", max_length=64)
    data = load_task(task, tokenizer, 0)
    assert sizes(data) == (3168, 500, 408)
    assert data.label_names == ("not_equivalent", "equivalent")
    assert np.bincount(data.test.labels).tolist() == [129, 279]
    assert data.origins["test"] == "validation"
    assert data.train.token_type_ids.max() == 1
