"""What held-out rows must have to be scored, and what is said of those that leave less to be scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from fastdistill.data.tasks import load_task
from fastdistill.recipe import Task


def write(folder: Path, **files: list[dict[str, Any]]) -> str:
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def ranked(labels: list[Any], *, groups: list[Any] | None = None) -> list[dict[str, Any]]:
    """Rows of which two each compete."""
    groups = groups or [f"q{n // 2}" for n in range(len(labels))]
    return [
        {"qid": group, "text_a": "a", "text_b": f"b {'c ' * n}", "label": label}
        for n, (group, label) in enumerate(zip(groups, labels, strict=True))
    ]


def test_which_class_is_right_is_not_left_to_the_alphabet(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = ranked(["correct", "incorrect"] * 10)
    task = {"path": write(tmp_path, train=rows), "text": "text_a", "pair": "text_b", "group": "qid"}
    with pytest.raises(ValueError, match="which of correct and incorrect is right nothing says: set task.label_names"):
        load_task(Task(**task, label="label", validation_size=4, test_size=4), tokenizer, 0)
    named = Task(**task, label="label", label_names=("incorrect", "correct"), validation_size=4, test_size=4)
    test = load_task(named, tokenizer, 0).test
    assert test.labels is not None
    assert test.labels.tolist() == [1, 0] * 2
    write(tmp_path, train=ranked([True, False] * 10))
    assert load_task(Task(**task, label="label", validation_size=4, test_size=4), tokenizer, 0).label_names == (
        "False", "True",
    )  # fmt: skip


@pytest.mark.parametrize("lacking", [None, "", "None", " "])
def test_rows_without_a_group_are_named(
    lacking: str | None, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write(tmp_path, train=ranked([0, 1] * 10), test=ranked([0, 1, 0], groups=["a", "a", lacking]))
    with pytest.raises(ValueError, match=r"test.jsonl, row 3: column 'qid' is .*, no group; correct the row"):
        load_task(Task(name="dbqa", path=path, validation_size=4), tokenizer, 0)


def test_groups_without_a_right_row_are_said(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, train=ranked([0, 1] * 10), validation=ranked([0, 1] * 3), test=ranked([0, 1, 0, 0, 0, 0]))
    said = load_task(Task(name="dbqa", path=path), tokenizer, 0).said
    assert "task: 2 of 3 groups of test have no right row, mrr and map leave them out" in said
    write(tmp_path, test=ranked([0] * 6))
    with pytest.raises(ValueError, match="test: in none of its 3 groups a row is right"):
        load_task(Task(name="dbqa", path=path), tokenizer, 0)


def test_a_single_class_to_be_scored_is_said(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"sentence": f"a {'b ' * n}", "label": n % 2} for n in range(20)]
    path = write(tmp_path, train=rows, validation=rows[1::2], test=rows)
    said = load_task(Task(name="cola", path=path), tokenizer, 0).said
    alone = [sentence for sentence in said if "the label" in sentence]
    assert alone == ["task: all rows of validation have the label acceptable, so that most metrics tell nothing"]


def test_all_splits_decide_whether_questions_may_lack_an_answer(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    def asked(*starts: int | None) -> list[dict[str, Any]]:
        answers = [{"text": ["b"] if s else [], "answer_start": [s] if s else []} for s in starts]
        return [{"question": "a", "context": "a b", "answers": own} for own in answers]

    for train, lacking in ((asked(2, 2, None), True), (asked(2, 2, 2), False)):
        data = load_task(Task(path=write(tmp_path, train=train, validation=asked(2), test=asked(2))), tokenizer, 0)
        golds = [split.gold for split in (data.train, data.validation, data.test)]
        assert [gold is not None and gold.may_lack for gold in golds] == [lacking] * 3


def test_rows_of_which_none_has_a_class(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, train=[{"text": f"a {'b ' * n}", "label": []} for n in range(20)])
    with pytest.raises(ValueError, match="no row has a class; give the classes of each text"):
        load_task(Task(path=path, validation_size=4, test_size=4), tokenizer, 0)


def test_words_of_which_the_tokenizer_keeps_none(tmp_path: Path, pieces: PreTrainedTokenizerFast) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}] * 20
    path = write(tmp_path, train=rows, test=[{**row, "tokens": ["\u200b", "\u200b"]} for row in rows[:3]])
    with pytest.raises(ValueError, match="test: the tokenizer keeps no word of its 3 rows"):
        load_task(Task(path=path, validation_size=4), pieces, 0)


def test_folders_tell_splits_as_files_do(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"text": f"a {'b ' * n}", "label": n % 2} for n in range(20)]
    path = write(tmp_path, **{"train/part-0": rows[:10], "train/part-1": rows[10:], "test/part-0": rows[:6]})
    for given in (path, f"{path}/*/*.jsonl"):
        data = load_task(Task(path=given, validation_size=4), tokenizer, 0)
        assert [len(split) for split in (data.train, data.validation, data.test)] == [16, 4, 6]
        assert data.origins["test"] == "test"


@pytest.mark.parametrize("names", [("training", "testing"), ("en_train", "en_test"), ("a", "my.dev"), ("a", "eval-1")])
def test_files_that_may_be_held_out_are_not_trained_on(
    names: tuple[str, str], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"text": f"a {'b ' * n}", "label": n % 2} for n in range(20)]
    path = write(tmp_path, **dict.fromkeys(names, rows))
    with pytest.raises(
        ValueError, match=rf"2 files, of which no name begins .* though {names[1]}.jsonl may be no file"
    ):
        load_task(Task(path=path, validation_size=4, test_size=4), tokenizer, 0)
    (tmp_path / f"{names[1]}.jsonl").rename(tmp_path / "latest_devices.jsonl")
    assert len(load_task(Task(path=path, validation_size=4, test_size=4), tokenizer, 0).train) == 32
