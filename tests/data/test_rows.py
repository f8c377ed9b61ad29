"""Rows: which files and splits they come from, what is joined, what is left out, and that it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from fastdistill.data import source as source_module
from fastdistill.data.tasks import TaskData, load_task
from fastdistill.recipe import Task


def rows(count: int, word: str, **more: Any) -> list[dict[str, Any]]:
    """Texts of `word` and of their own length, of two classes."""
    return [{"text": f"{word} {'b ' * n}c", "label": n % 2, **more} for n in range(count)]


def write(folder: Path, **files: list[dict[str, Any]]) -> str:
    for name, split in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in split))
    return str(folder)


def write_csv(folder: Path, **files: list[dict[str, Any]]) -> str:
    for name, split in files.items():
        lines = [",".join(split[0]), *(",".join(map(str, row.values())) for row in split)]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def load(path: str, tokenizer: PreTrainedTokenizerFast, **options: Any) -> TaskData:
    return load_task(Task(path=path, validation_size=4, test_size=6, **options), tokenizer, 0)


def sizes(data: TaskData) -> list[int]:
    return [len(data.train), len(data.validation), len(data.test)]


@pytest.mark.parametrize("writer", [write, write_csv])
@pytest.mark.parametrize("names", [("train_part1", "train_part2"), ("train", "train_extra"), ("Train_a", "Train_b")])
def test_parts_of_train_are_joined_and_said(
    names: tuple[str, str], writer: Any, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    turned = [dict(reversed(row.items())) for row in rows(9, "f")] if writer is write else rows(9, "f")
    data = load(writer(tmp_path, **{names[0]: rows(8, "e"), names[1]: turned, "test": rows(5, "g")}), tokenizer)
    assert sizes(data) == [13, 4, 5]
    assert len(data.rows["train"].texts) == len(set(data.rows["train"].texts))
    ending = "jsonl" if writer is write else "csv"
    assert data.said == [f"task: train is joined of {', '.join(f'{tmp_path}/{name}.{ending}' for name in names)}"]


def test_shards_are_one_split_of_which_nothing_is_said(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    shards = {"train-00000-of-00002": rows(8, "e"), "train-00001-of-00002": rows(8, "f")}
    data = load(write(tmp_path, **shards, test=rows(5, "g")), tokenizer)
    assert (sizes(data), data.said) == ([12, 4, 5], [])


def test_parts_of_other_columns_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, train_1=rows(8, "e"), train_2=rows(8, "f", stars=3))
    with pytest.raises(
        ValueError, match=r"train_2.jsonl has the columns text, label, stars, .*train_1.jsonl has text,"
    ):
        load(path, tokenizer)


def test_parts_of_other_values_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, train_1=rows(8, "e"), train_2=[{"text": "a", "label": "bad"}])
    with pytest.raises(ValueError, match=r"train_1.jsonl and 1 more cannot be read \(.*label"):
        load(path, tokenizer)


def test_a_bad_row_of_a_part_is_counted_through_all(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, train_1=rows(8, "e"), train_2=[*rows(2, "f"), {"text": "", "label": 1}])
    with pytest.raises(ValueError, match=r"train_1.jsonl and 1 more, row 11: column 'text' is empty"):
        load(path, tokenizer)


@pytest.mark.parametrize(
    ("files", "unused"),
    [
        ({"extra": rows(7, "f")}, "extra.jsonl"),
        ({"extra": rows(7, "f"), "training": [{"other": 1}]}, "extra.jsonl, training.jsonl"),
        ({"validation": rows(6, "d"), "dev": rows(6, "d")}, "dev"),
    ],
)
def test_what_is_not_used_is_said(
    files: dict[str, list[dict[str, Any]]], unused: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = load(write(tmp_path, train=rows(20, "e"), test=rows(5, "g"), **files), tokenizer)
    assert sum(sizes(data)) == 25 + 6 * ("validation" in files)
    assert len(data.said) == 1
    assert data.said[0].startswith(f"task: not used: {unused}; used are train, validation (else valid, val or dev)")


def test_columns_that_are_not_used_are_said(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    more = [row | {"id": n, "title": "t"} for n, row in enumerate(rows(20, "e"))]
    assert load(write(tmp_path, train=more), tokenizer).said == ["task: columns not used: id, title"]


def test_files_without_split_names_are_all_train(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = load(write(tmp_path, reviews=rows(12, "e"), extra=rows(8, "f")), tokenizer)
    assert (sizes(data), data.said) == ([10, 4, 6], [])


def test_rows_of_train_in_other_splits_are_counted_and_said(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    test = [{"text": text, "label": n % 2} for n, text in enumerate(("e c", "e b c", "e  c", "E c", "g", "e c"))]
    path = write(tmp_path, train=rows(20, "e"), validation=[*rows(2, "d"), rows(1, "e")[0]], test=test)
    data = load(path, tokenizer)
    assert (data.validation.counts["in train"], data.test.counts["in train"]) == (1, 3)
    assert "in train" not in data.train.counts
    assert data.said == [
        "task: 1 of 3 rows of validation and 3 of 6 rows of test are in train word for word, where a model may answer "
        "from memory"
    ]


def test_only_both_texts_of_a_pair_are_a_repetition(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    def pairs(*texts: str) -> list[dict[str, Any]]:
        return [{"sentence1": text[0], "sentence2": text[1], "label": n % 2} for n, text in enumerate(texts)]

    path = write(tmp_path, train=pairs("ab", "cd", "ad"), validation=pairs("cd"), test=pairs("cb", "ba", "dd", "ab"))
    data = load(path, tokenizer)
    assert (data.validation.counts["in train"], data.test.counts["in train"]) == (1, 1)


def test_rows_of_further_splits_are_counted_too(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    more = [*rows(2, "e"), *rows(2, "g")]
    path = write(tmp_path, train=rows(20, "e"), validation=rows(4, "d"), test_a=rows(3, "f"), test_test=more)
    data = load(path, tokenizer)
    assert (data.test.counts["in train"], data.more["test"].counts["in train"]) == (0, 2)
    assert data.said[0].startswith("task: 2 of 4 rows of test, test are in train word for word")


def test_rows_that_are_set_aside_are_counted_too(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = load(write(tmp_path, train=rows(2, "e") * 12), tokenizer)
    assert (data.validation.counts["in train"], data.test.counts["in train"]) == (4, 6)


def test_chnsenticorp_repeats_itself(shared_data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = load(str(shared_data / "tasks" / "chnsenticorp"), tokenizer, name="chnsenticorp")
    assert data.said == [
        "task: 338 of 1,200 rows of validation and 331 of 1,200 rows of test are in train word for word, where a model "
        "may answer from memory"
    ]


def test_validation_without_the_label_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, train=rows(20, "e"), dev=[{"text": "a", "gold": 1}])
    with pytest.raises(ValueError, match=r"dev.jsonl has no column 'label', only text, gold; name its labels as in"):
        load(path, tokenizer)


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ([{"text": "a", "gold": 1}], "has no column 'label', only text, gold; its rows are not used"),
        ([{"text": "a", "label": -1}], "has no published labels; its rows are not used"),
    ],
)
def test_a_test_split_without_labels_is_said(
    test: list[dict[str, Any]], why: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = load(write(tmp_path, train=rows(20, "e"), validation=rows(7, "d"), test=test), tokenizer)
    assert (sizes(data), data.origins["test"]) == ([16, 4, 7], "validation")
    assert data.said == [f"task: {tmp_path}/test.jsonl {why}"]


def test_rounds_of_a_hub_data_set_are_all_used(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ANLI has train_r1, dev_r1, test_r1 and so on, all with labels that it declares."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    files = {}
    for name, count in {"train_r1": 8, "dev_r1": 2, "test_r1": 3, "train_r2": 9, "dev_r2": 4, "test_r2": 5}.items():
        columns = {column: [row[column] for row in rows(count, name)] for column in features}
        files[name] = str(tmp_path / f"{name}.parquet")
        datasets.Dataset.from_dict(columns, features=features).to_parquet(files[name])
    original = datasets.load_dataset_builder

    def hub(path: str, name: str | None, revision: str | None) -> datasets.DatasetBuilder:
        return original("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(source_module.datasets, "load_dataset_builder", hub)
    data = load("facebook/anli", tokenizer)
    assert sizes(data) == [17, 6, 3]
    assert {name: len(own) for name, own in data.more.items()} == {"r2": 5}
    assert data.label_names == ("no", "yes")
    assert data.said == ["task: train is joined of facebook/anli, split train_r1, facebook/anli, split train_r2"]
