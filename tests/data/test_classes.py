"""Names of classes: whose count, what numbers stand for among them, and what no order of theirs moves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from fastdistill.data.packing import Sequences
from fastdistill.data.tasks import load_task
from fastdistill.recipe import Task

WORDS = ["a", "b", "c", "d", "e", "f", "g", "good", "bad", "film"]
TEXTS = [" ".join(WORDS[int(digit)] for digit in f"{i:03d}") for i in range(40)]
LABELS = [int(i % 3 == 0) for i in range(40)]


def declaring(folder: Path, *names: str, column: str = "text") -> Task:
    """A task whose labels are numbers of classes that the data declares."""
    features = datasets.Features({column: datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})
    datasets.Dataset.from_dict({column: TEXTS, "label": LABELS}, features=features).to_parquet(folder / "train.parquet")
    return Task(path=str(folder), validation_size=4, test_size=4)


def write(folder: Path, split: str, labels: list[str] | list[int]) -> None:
    rows = [json.dumps({"text": text, "label": label}) for text, label in zip(TEXTS, labels, strict=True)]
    (folder / f"{split}.jsonl").write_text("\n".join(rows))


def labels_by_text(data: Sequences) -> dict[tuple[int, ...], int]:
    texts = [tuple(data.input_ids[a:b].tolist()) for a, b in zip(data.offsets, data.offsets[1:], strict=False)]
    return dict(zip(texts, data.labels.tolist(), strict=True))


def as_written(tokenizer: PreTrainedTokenizerFast) -> dict[tuple[int, ...], int]:
    return {tuple(tokenizer(text)["input_ids"]): label for text, label in zip(TEXTS, LABELS, strict=True)}


def test_names_are_those_of_the_task_then_of_the_data(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    task = declaring(tmp_path, "n", "p")
    assert load_task(task, tokenizer, 0).label_names == ("n", "p")
    for names in (("bad", "good"), ("1", "0")):
        renamed = load_task(dataclasses.replace(task, label_names=names), tokenizer, 0)
        assert renamed.label_names == names
        assert labels_by_text(renamed.train).items() <= as_written(tokenizer).items()
    with pytest.raises(ValueError, match=r"has 3 names, .*train.parquet declares 2: n, p"):
        load_task(dataclasses.replace(task, label_names=("a", "b", "c")), tokenizer, 0)


def test_another_order_of_names_changes_nothing_but_the_numbers(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    task = declaring(tmp_path, "n", "p")
    own, turned = (load_task(dataclasses.replace(task, label_names=n), tokenizer, 0) for n in (None, ("p", "n")))
    for one, other in ((own.train, turned.train), (own.validation, turned.validation), (own.test, turned.test)):
        assert labels_by_text(one) == {text: 1 - label for text, label in labels_by_text(other).items()}


def test_names_that_are_fractions(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    names = ("1.0", "0.0")
    write(tmp_path, "train", [names[label] for label in LABELS])
    task = Task(path=str(tmp_path), label_names=names, validation_size=4, test_size=4)
    data = load_task(task, tokenizer, 0)
    assert data.label_names == names
    assert labels_by_text(data.train).items() <= as_written(tokenizer).items()
    with pytest.raises(ValueError, match="give two or more names, each once"):
        load_task(dataclasses.replace(task, label_names=("1.0", "1")), tokenizer, 0)


@pytest.mark.parametrize("names", [("0.0", "1.0"), ("1.0", "0.0"), ("n ", " p"), ("a", "A")])
def test_odd_names_that_the_data_declares(
    names: tuple[str, str], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = load_task(declaring(tmp_path, *names), tokenizer, 0)
    assert data.label_names == names
    assert labels_by_text(data.train).items() <= as_written(tokenizer).items()


def test_names_that_are_one(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    task = declaring(tmp_path, "1", "1.0")
    with pytest.raises(ValueError, match=r"declares classes of one name \(1, 1\.0\): set task\.label_names"):
        load_task(task, tokenizer, 0)
    data = load_task(dataclasses.replace(task, label_names=("a", "b")), tokenizer, 0)
    assert labels_by_text(data.train).items() <= as_written(tokenizer).items()


def test_numbers_beside_names_are_refused_where_nobody_gave_an_order(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write(tmp_path, "train", [("nay", "aye")[label] for label in LABELS])
    write(tmp_path, "validation", LABELS)
    task = Task(path=str(tmp_path), validation_size=4)
    with pytest.raises(ValueError, match=r"validation.jsonl, row 1: label \d is none of the 2 classes \(aye, nay\)"):
        load_task(task, tokenizer, 0)
    data = load_task(dataclasses.replace(task, label_names=("nay", "aye")), tokenizer, 0)
    assert data.test.labels.tolist() == LABELS


@pytest.mark.parametrize("kind", ["classification", "tagging", "multilabel"])
def test_splits_that_declare_their_classes_in_another_order(
    kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The same names are read by name, some of them too; others are refused, and never read by their place."""

    def declare(split: str, names: list[str], labels: list[str]) -> Task:
        label = datasets.ClassLabel(names=names)
        listed = {"tagging": datasets.Sequence(label), "multilabel": datasets.Sequence(label)}.get(kind, label)
        text = datasets.Sequence(datasets.Value("string")) if kind == "tagging" else datasets.Value("string")
        rows = {
            "text": [row.split()[:1] if kind == "tagging" else row for row in TEXTS[: len(labels)]],
            "label": labels if kind == "classification" else [[x] for x in labels],
        }
        features = datasets.Features({"text": text, "label": listed})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
        return Task(path=str(tmp_path), text="text", label="label", kind=kind, validation_size=4)  # type: ignore[arg-type]

    declare("train", ["n", "p", "x"], ["n", "p", "x"] * 8)
    for names in (["p", "x", "n"], ["x", "n"], ["N", "X", "P"]):
        last, first = names[-1], names[0]
        test = load_task(declare("test", names, [first, last, first]), tokenizer, 0).test
        assert test.gold is not None
        wanted = [name.lower() for name in (first, last, first)]
        if kind == "tagging":
            assert test.gold.rows == [[name] for name in wanted]
        else:
            found = test.labels.argmax(1) if kind == "multilabel" else test.labels
            assert ["npx"[place] for place in found] == wanted
    for names in (["n", "x", "y"], ["a", "b", "c"], ["n", "p", "x", "y"]):
        with pytest.raises(
            ValueError, match=rf"test.parquet declares the classes {', '.join(names)}, train has n, p, x"
        ):
            load_task(declare("test", names, [names[0]] * 3), tokenizer, 0)


def test_files_of_one_split_declare_the_same_classes(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = (tmp_path / f"train-0000{n}-of-00002.parquet" for n in (0, 1))
    task = declaring(tmp_path, "n", "p")
    (tmp_path / "train.parquet").rename(first)
    declaring(tmp_path, "n", "p")
    (tmp_path / "train.parquet").rename(second)
    assert len(load_task(task, tokenizer, 0).rows["train"].texts) == 2 * len(TEXTS) - 8
    declaring(tmp_path, "p", "n")
    (tmp_path / "train.parquet").rename(second)
    with pytest.raises(
        ValueError, match=r"00001-of-00002.parquet declares the classes p, n for column 'label', .* n, p"
    ):
        load_task(task, tokenizer, 0)


def test_a_definition_renames_no_classes_of_the_data(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    def defined(*names: str) -> Task:
        return dataclasses.replace(declaring(tmp_path, *names, column="sentence"), name="sst2")

    with pytest.raises(ValueError, match=r"declares the classes pos, neg, task.name=sst2 has negative, positive: set"):
        load_task(defined("pos", "neg"), tokenizer, 0)
    given = dataclasses.replace(defined("pos", "neg"), label_names=("pos", "neg"))
    assert load_task(given, tokenizer, 0).label_names == ("pos", "neg")
    by_number = load_task(defined("0", "1"), tokenizer, 0)
    turned = load_task(defined("Positive", "Negative"), tokenizer, 0)
    assert by_number.label_names == turned.label_names == ("negative", "positive")
    same, other = labels_by_text(by_number.train), labels_by_text(turned.train)
    assert same == {text: 1 - label for text, label in other.items()}
