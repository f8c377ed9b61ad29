"""What a task's name defines, what its columns tell, and what stays as it was given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from fastdistill.data import source as source_module
from fastdistill.data.columns import complete
from fastdistill.data.rows import open_splits
from fastdistill.metrics import metrics_of
from fastdistill.recipe import Task
from fastdistill.tasks import TASKS


def write(folder: Path, *rows: dict[str, Any]) -> str:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


ANSWERS = {"text": ["b"], "answer_start": [2]}
READINGS: list[tuple[list[dict[str, Any]], tuple[str, str | None, str, str]]] = [
    ([{"text": "a", "label": 1}], ("text", None, "label", "classification")),
    ([{"idx": 3, "sentence": "a", "label": "yes"}], ("sentence", None, "label", "classification")),
    ([{"sentence1": "a", "sentence2": "b", "label": 0}], ("sentence1", "sentence2", "label", "classification")),
    ([{"question": "a", "sentence": "b", "label": 0}], ("question", "sentence", "label", "classification")),
    ([{"premise": "a", "hypothesis": "b", "label": 2}], ("premise", "hypothesis", "label", "classification")),
    ([{"sentence1": "a", "sentence2": "b", "label": x} for x in (1.0, 2.5)],
     ("sentence1", "sentence2", "label", "regression")),
    ([{"text": "a", "label": x} for x in (1.0, 0.0)], ("text", None, "label", "classification")),
    ([{"text": "a", "label": x} for x in ("1.5", "2")], ("text", None, "label", "regression")),
    ([{"text": "a", "label": x} for x in ("1.5", "v2")], ("text", None, "label", "classification")),
    ([{"tokens": ["a", "b"], "pos_tags": [1, 2], "ner_tags": [0, 1]}], ("tokens", None, "ner_tags", "tagging")),
    ([{"tokens": ["a", "b"], "labels": ["O", "B-X"]}], ("tokens", None, "labels", "tagging")),
    ([{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": []}], ("text", None, "labels", "multilabel")),
    ([{"text": "a", "label": "3.8"}, {"text": "b", "label": ""}], ("text", None, "label", "regression")),
    ([{"text": "a", "label": 2.5}, {"text": "b", "label": None}], ("text", None, "label", "regression")),
    ([{"text": "a", "label": "0.5"}, {"text": "b", "label": "n/a"}], ("text", None, "label", "regression")),
    ([{"text": "a", "label": "x"}, {"text": "b", "label": None}], ("text", None, "label", "classification")),
    ([{"text": "a", "label": "1"}, {"text": "b", "label": "nan"}], ("text", None, "label", "classification")),
    ([{"text": "a", "label": [0, 1, 1]}], ("text", None, "label", "multilabel")),
    ([{"id": "1", "title": "t", "context": "a b", "question": "c", "answers": ANSWERS}],
     ("question", "context", "answers", "span")),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "expected"), READINGS)
def test_columns_and_kind_are_found(
    rows: list[dict[str, Any]], expected: tuple[str, str | None, str, str], tmp_path: Path
) -> None:
    task, said = complete(Task(path=write(tmp_path, *rows)))
    assert (task.text, task.pair, task.label, task.kind) == expected
    assert said is not None
    assert "\n" not in said
    assert all(name in said for name in expected if name)
    assert complete(task) == (task, None)


@pytest.mark.parametrize(
    ("row", "doubt"),
    [
        ({"text": "a", "sentence1": "b", "sentence2": "c", "label": 1}, "several of them may be"),
        ({"text": "a", "sentence": "b", "label": 1}, "several of them may be"),
        ({"text": "a", "label": 1, "labels": 2}, "several of them may be"),
        ({"review": "a", "stars": 1}, "none of them is surely"),
        ({"text": "a", "stars": 1}, "none of them is surely"),
    ],
)
def test_doubtful_columns_are_listed(row: dict[str, Any], doubt: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"has the columns {', '.join(row)}, and {doubt}.*set task.text, task.label"):
        complete(Task(path=write(tmp_path, row)))


def test_given_options_stay_and_settle_doubts(tmp_path: Path) -> None:
    path = write(tmp_path, {"text": "a", "sentence": "b", "stars": 1.5, "label": 1})
    task, _ = complete(Task(path=path, text="sentence", label="stars"))
    assert (task.text, task.pair, task.label, task.kind) == ("sentence", None, "stars", "regression")
    task, said = complete(Task(path=path, text="sentence", label="stars", kind="classification", max_length=7))
    assert (task.kind, task.max_length, said) == ("classification", 7, None)


def test_a_name_defines_a_task_and_options_win() -> None:
    task, said = complete(Task(name="mrpc", metric="accuracy"))
    assert said is None
    sizes = {"max_length": 128, "validation_size": 500, "test_size": 1000}
    assert task == replace(TASKS["mrpc"], name="mrpc", metric="accuracy", **sizes)
    assert complete(Task(name="wnli"))[0].validation_size == 100
    assert complete(Task(name="squad"))[0].doc_stride == 128
    local, _ = complete(Task(name="mnli", path="here"))
    assert (local.path, local.text, local.configuration) == ("here", "premise", None)
    same, _ = complete(Task(name="mnli", path="nyu-mll/glue"))
    assert same.configuration == "mnli"


def test_any_other_name_is_a_configuration(tmp_path: Path) -> None:
    task, _ = complete(Task(path="own/texts", name="plus", text="text", label="label", kind="classification"))
    assert task.configuration == "plus"
    with pytest.raises(ValueError, match=r"task.name is 'sst': without task.path choose one of cola, .*mean sst2\?"):
        complete(Task(name="sst"))
    with pytest.raises(ValueError, match=r"task.name is 'sst-2': leave it out, or choose one of cola, .*mean sst2\?"):
        complete(Task(path=write(tmp_path, {"text": "a", "label": 1}), name="sst-2"))


def test_the_configuration_and_revision_reach_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def hub(path: str, name: str | None, revision: str | None) -> None:
        asked.append((path, name, revision))
        raise OSError("no network")

    monkeypatch.setattr(source_module.datasets, "load_dataset_builder", hub)
    for name in ("xnli", "conll2003", "cola"):
        with pytest.raises(FileNotFoundError):
            open_splits(complete(Task(name=name))[0])
    assert asked == [
        ("facebook/xnli", "zh", None),
        ("eriktks/conll2003", None, "refs/convert/parquet"),
        ("nyu-mll/glue", "cola", None),
    ]


@pytest.mark.parametrize("name", TASKS)
def test_definitions_are_whole_and_their_metrics_fit(name: str) -> None:
    task, said = complete(Task(name=name, path="somewhere"))
    assert said is None
    assert None not in (task.text, task.label, task.kind, task.metric, task.max_length)
    assert metrics_of(task)[0] == task.metric
    assert (task.kind in ("regression", "span")) == (task.label_names is None)


def test_every_name_is_in_the_help_of_the_option() -> None:
    assert all(f" {name}" in (Task.__doc__ or "") for name in TASKS)


def test_a_context_is_asked_for_and_groups_are_for_classes(tmp_path: Path) -> None:
    path = write(tmp_path, {"question": "a", "answers": ANSWERS, "qid": 1})
    with pytest.raises(ValueError, match="task.pair is not set: of a span task it names the column of the context"):
        complete(Task(path=path, text="question", label="answers"))
    with pytest.raises(ValueError, match="task.group ranks rows by their class, this task is of kind regression"):
        complete(Task(path=path, text="question", label="answers", kind="regression", group="qid"))


@pytest.mark.parametrize(
    ("options", "twice"),
    [
        ({"label": "text"}, "task.text and task.label are both 'text'"),
        ({"text": "label"}, "task.text and task.label are both 'label'"),
        ({"pair": "text"}, "task.text and task.pair are both 'text'"),
        ({"text": "other", "pair": "label", "kind": "classification"}, "task.pair and task.label are both 'label'"),
    ],
)
def test_a_column_is_named_once(options: dict[str, Any], twice: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"text": "a", "label": "b", "other": "c"})
    with pytest.raises(ValueError, match=f"{twice}: name the column of each"):
        complete(Task(path=path, **options))
    assert complete(Task(path=path, text="text", pair="other", label="label", group="text"))[0].group == "text"


def test_class_names_of_lists_are_the_data_sets_own(tmp_path: Path) -> None:
    names = datasets.List(datasets.ClassLabel(names=["O", "B-X"]))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "tags": names})
    rows = {"tokens": [["a"]], "tags": [[1]]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    assert open_splits(Task(path=str(tmp_path)))["train"].class_names("tags") == ("O", "B-X")


def test_numbers_of_named_classes_are_no_targets(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "1.5"}\n{"text": "b", "label": "2.0"}\n')
    task = Task(path=str(tmp_path))
    kinds = [complete(replace(task, label_names=names))[0].kind for names in (None, ("1.5", "2.0"))]
    assert kinds == ["regression", "classification"]
