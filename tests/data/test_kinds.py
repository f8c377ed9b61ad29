"""Tasks of every kind of label: from files to token sequences with their labels, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from fastdistill.data.packing import NO_LABEL, collate
from fastdistill.data.tasks import load_task
from fastdistill.recipe import Task


def write(folder: Path, **splits: list[dict[str, Any]]) -> str:
    folder.mkdir(exist_ok=True)
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


TAGGED = [
    {"tokens": ["films", "filmed", "in", "london"], "tags": ["O", "O", "O", "B-LOC"]},
    {"tokens": ["paris", "in.", "\u200b", "films", "good"], "tags": ["B-LOC", "I-LOC", "O", "B-ART", "O"]},
]


def tagging(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Task:
    path = write(folder, train=rows, validation=TAGGED, test=TAGGED)
    return Task(path=path, **({"text": "tokens", "label": "tags", "kind": "tagging"} | options))


def test_the_first_piece_of_every_word_has_its_tag(tmp_path: Path, pieces: PreTrainedTokenizerFast) -> None:
    data = load_task(tagging(tmp_path, TAGGED * 3), pieces, 0)
    assert data.label_names == ("B-ART", "B-LOC", "I-LOC", "O")
    first = slice(0, data.test.offsets[1])
    tokens = pieces.convert_ids_to_tokens(data.test.input_ids[first])
    assert tokens == ["[CLS]", "film", "##s", "film", "##ed", "in", "lon", "##don", "[SEP]"]
    none = NO_LABEL
    assert data.test.token_labels[first].tolist() == [none, 3, none, 3, none, 3, 1, none, none]
    second = slice(data.test.offsets[1], data.test.offsets[2])
    assert pieces.convert_ids_to_tokens(data.test.input_ids[second]) == "[CLS] paris in . film ##s good [SEP]".split()
    assert data.test.token_labels[second].tolist() == [none, 1, 2, none, 0, none, 3, none]
    assert data.test.gold is not None
    assert data.test.gold.rows == [row["tags"] for row in TAGGED]
    assert [own.tolist() for own in data.test.gold.words or []] == [[0, 1, 2, 3], [0, 1, 3, 4]]
    counts = {"examples": 2, "tokens": 17, "truncated": 0, "words": 9, "lost words": 1, "skipped": 0}
    assert data.test.counts == {**counts, "in train": 2}


def test_words_that_are_cut_off_are_counted_and_their_tags_stay(
    tmp_path: Path, pieces: PreTrainedTokenizerFast
) -> None:
    data = load_task(tagging(tmp_path, TAGGED * 3, max_length=6), pieces, 0)
    counts = {"examples": 2, "tokens": 12, "truncated": 2, "words": 9, "lost words": 4, "skipped": 0}
    assert data.test.counts == {**counts, "in train": 2}
    assert data.test.gold is not None
    assert [len(tags) for tags in data.test.gold.rows] == [4, 5]
    assert [own.tolist() for own in data.test.gold.words or []] == [[0, 1], [0, 1, 3]]


def test_labelled_tokens_of_a_batch_are_those_of_its_sequences(tmp_path: Path, pieces: PreTrainedTokenizerFast) -> None:
    test = load_task(tagging(tmp_path, TAGGED * 3), pieces, 0).test
    batch = collate(test, np.array([0, 1]))  # the shorter one, row 1, comes first
    assert batch.labelled.tolist() == [1, 2, 4, 6, 9, 11, 13, 14]  # type: ignore[union-attr]
    assert batch.token_labels.tolist() == [1, 2, 0, 3, 3, 3, 3, 1]  # type: ignore[union-attr]
    assert batch.labels is None


def test_tags_may_be_numbers_of_names(tmp_path: Path, pieces: PreTrainedTokenizerFast) -> None:
    names = ("O", "B-LOC", "I-LOC", "B-ART")
    numbered = [{**row, "tags": [names.index(tag) for tag in row["tags"]]} for row in TAGGED]
    task = tagging(tmp_path, TAGGED * 3, label_names=names)
    named = load_task(task, pieces, 0)
    write(tmp_path, train=numbered * 3, validation=numbered, test=numbered)
    by_number = load_task(task, pieces, 0)
    assert by_number.test.token_labels.tolist() == named.test.token_labels.tolist()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["in", "paris"], "tags": ["O"]}, "row 2 has 1 tags for 2 words; give one tag for each word"),
        ({"tokens": [], "tags": ["O"]}, "row 2 has 1 tags for 0 words; give one tag for each word"),
        ({"tokens": None, "tags": []}, "row 2: column 'tokens' is None, not a list of words; correct or remove"),
        (
            {"tokens": ["in", None], "tags": ["O", "O"]},
            r"row 2: column 'tokens' is \['in', None\], not a list of words",
        ),
        ({"tokens": ["in"], "tags": ["B-PER"]}, r"row 2: tag 1 is 'B-PER', none of the 2 classes \(O, B-LOC\)"),
        ({"tokens": ["in"], "tags": [None]}, "row 2: tag 1 is None, none of"),
        ({"tokens": ["in"], "tags": None}, "row 2 has the label None, no list of tags, for 1 words"),
    ],
)
def test_bad_tags_are_named(row: dict[str, Any], message: str, tmp_path: Path, pieces: PreTrainedTokenizerFast) -> None:
    good = {"tokens": ["in", "paris"], "tags": ["O", "B-LOC"]}
    with pytest.raises(ValueError, match=rf"train\.jsonl, {message}"):
        load_task(tagging(tmp_path, [good, row], label_names=("O", "B-LOC")), pieces, 0)


EMPTY: dict[str, Any] = {"tokens": [], "tags": []}


def test_rows_without_words_are_skipped_counted_and_said(tmp_path: Path, pieces: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, train=[EMPTY, *TAGGED * 3, EMPTY], validation=TAGGED, test=[TAGGED[0], EMPTY, TAGGED[1]])
    data = load_task(Task(path=path), pieces, 0)
    assert [own.counts["skipped"] for own in (data.train, data.validation, data.test)] == [2, 0, 1]
    assert [own.counts["examples"] for own in (data.train, data.validation, data.test)] == [6, 2, 2]
    skipped = [f"task: {n} rows of {split} have no words and are skipped" for n, split in [(2, "train"), (1, "test")]]
    assert data.said[:2] == skipped
    assert data.test.gold is not None
    assert data.test.gold.rows == [row["tags"] for row in TAGGED]
    assert [own.tolist() for own in data.rows["train"].labels[:2]] == [[3, 3, 3, 1], [1, 2, 3, 0, 3]]


def test_skipped_rows_stay_counted_where_rows_are_set_aside(tmp_path: Path, pieces: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, train=[EMPTY, *TAGGED * 5])
    data = load_task(Task(path=path, validation_size=2, test_size=3), pieces, 0)
    assert [own.counts["skipped"] for own in (data.train, data.validation, data.test)] == [1, 0, 0]
    assert [own.counts["examples"] for own in (data.train, data.validation, data.test)] == [5, 2, 3]


def test_rows_behind_one_without_words_keep_their_numbers(tmp_path: Path, pieces: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"row 3 has 1 tags for 2 words"):
        load_task(tagging(tmp_path, [TAGGED[0], EMPTY, {"tokens": ["in", "paris"], "tags": ["O"]}]), pieces, 0)


def test_no_words_at_all(tmp_path: Path, pieces: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"test.jsonl: column 'tokens' is empty in all 2 rows"):
        load_task(Task(path=write(tmp_path, train=TAGGED, test=[EMPTY, EMPTY])), pieces, 0)


def multilabel(folder: Path, labels: list[Any], test: list[Any] | None = None, **options: Any) -> Task:
    rows, tested = ([{"text": "a b", "label": label} for label in own] for own in (labels, test or labels))
    return Task(path=write(folder, train=rows, validation=rows, test=tested), kind="multilabel", **options)


@pytest.mark.parametrize(
    ("labels", "options", "names"),
    [
        ([["film", "good"], [], ["bad"]], {}, ("bad", "film", "good")),
        ([[0, 1, 1], [0, 0, 0], [1, 0, 0]], {}, ("0", "1", "2")),
        ([[0, 1, 1], [0, 0, 0], [1, 0, 0]], {"label_names": ("bad", "film", "good")}, ("bad", "film", "good")),
        ([[1, 2], [], [0]], {"label_names": ("bad", "film", "good")}, ("bad", "film", "good")),
    ],
)
def test_lists_of_classes_and_vectors(
    labels: list[Any],
    options: dict[str, Any],
    names: tuple[str, ...],
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    data = load_task(multilabel(tmp_path, labels, **options), tokenizer, 0)
    assert data.label_names == names
    assert data.train.labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert data.train.labels.dtype == np.float32
    assert collate(data.train, np.array([2, 0])).labels.tolist() == [[1, 0, 0], [0, 1, 1]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["x"], "y"], r"row 2: label 'y' is no list of classes; .*set task.kind to classification"),
        ([["x"], ["z"]], r"row 2: label \['z'\] must name each class once, of the 2 classes \(x, y\)"),
        ([["x"], ["y", "y"]], r"row 2: label \['y', 'y'\] must name each class once"),
        ([[0, 0, 1], [1, 1, 1]], r"row 1: label \[0, 0, 1\] has 3 entries for 2 classes \(x, y\)"),
        ([["x", "y"], ["x", "y"]], "every row left to train on has"),
    ],
)
def test_bad_lists_of_classes_are_named(
    labels: list[Any], message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=message):
        load_task(multilabel(tmp_path, labels, label_names=("x", "y")), tokenizer, 0)


ONE_OF_TWO = [[1, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("labels", "test", "expected"),
    [
        ([[1, 1], [0, 0], [0, 1]], ONE_OF_TWO, ONE_OF_TWO),
        (ONE_OF_TWO, [[1, 1], [0, 0], [1, 0]], [[1, 1], [0, 0], [1, 0]]),
        ([["b"], ["a"], ["a", "b"]], [["b"], ["a"], ["a"]], [[0, 1], [1, 0], [1, 0]]),
        ([[1], [0], [0, 1]], [[0, 1], [0, 1], [1]], [[1, 1], [1, 1], [0, 1]]),
    ],
)
def test_train_decides_for_all_splits_whether_lists_are_vectors(
    labels: list[Any],
    test: list[Any],
    expected: list[list[int]],
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    data = load_task(multilabel(tmp_path, labels, test), tokenizer, 0)
    assert data.test.labels.tolist() == expected


@pytest.mark.parametrize("names", [None, ("x", "y", "z")])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 1, 1], [0, 0], [1, 0, 0]], r"row 2: label \[0, 0\] has 2 entries for 3 classes"),
        ([[0, 1], [0, 1, 0], [1, 0, 0]], r"row 1: label \[0, 1\] has 2 entries for 3 classes"),
        ([[0, 1, 1], [0, 0, 1], [1, 0, 0], [1, 0, 0, 0]], r"row 4: label \[1, 0, 0, 0\] has 4 entries for 3 classes"),
        ([[0, 1, 1], [0, 0, 1], []], r"row 3: label \[\] has 0 entries for 3 classes"),
    ],
)
def test_the_first_vector_of_another_length_is_named(
    labels: list[Any], message: str, names: Any, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=rf"train.jsonl, {message}"):
        load_task(multilabel(tmp_path, labels, label_names=names), tokenizer, 0)


@pytest.mark.parametrize(("test", "row"), [([[1, 0], [0, 2]], 2), ([["1", "0"]], 1), ([[1, 0], [0, None]], 2)])
def test_vectors_of_other_splits_hold_0_and_1(
    test: list[Any], row: int, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=rf"test.jsonl, row {row}: label .* is no list of 0 and 1, as labels of train"):
        load_task(multilabel(tmp_path, ONE_OF_TWO, test), tokenizer, 0)


CONTEXT = "the film was very long it is not good"


def asked(text: str | None, start: int = 0, context: str = CONTEXT) -> dict[str, Any]:
    found: dict[str, list[Any]] = {"text": [], "answer_start": []}
    if text is not None:
        found = {"text": [text], "answer_start": [start]}
    return {"question": "is it good", "context": context, "answers": found}


def span(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Task:
    path = write(folder, train=rows, validation=rows, test=rows)
    return Task(path=path, max_length=12, doc_stride=2, **options)


def test_answers_become_windows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = load_task(span(tmp_path, [asked("film", 4), asked("not good", 29), asked(None)]), tokenizer, 0)
    assert data.train.counts["windows"] == len(data.train) == 6
    assert data.train.labels.tolist() == [[6, 6], [0, 0], [0, 0], [8, 9], [0, 0], [0, 0]]
    assert data.train.gold is not None
    assert data.train.gold.rows == [("film",), ("not good",), ()]
    assert len(data.rows["train"].texts) == 3
    assert collate(data.train, np.array([0])).labels.tolist() == [[6, 6]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (asked("film", 90), r"row 2: the answer 'film' does not stand at character 90 of its context of 37"),
        (asked("film", 5), "row 2: the answer 'film' does not stand at character 5"),
        (asked("film", -33), "row 2: the answer 'film' does not stand at character -33"),
        (asked("good and cheap", 33), "row 2: the answer 'good and cheap' does not stand"),
        (asked("", 3), "row 2: the answer '' does not stand"),
        ({**asked(None), "context": ""}, "row 2: column 'context' is empty"),
        ({**asked(None), "answers": {"text": ["film"], "answer_start": []}}, "row 2: label .* is no answer; give the"),
        ({**asked(None), "answers": None}, "row 2: label None is no answer; give the texts and the characters"),
    ],
)
def test_answers_outside_their_context_are_named(
    row: dict[str, Any], message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=rf"train\.jsonl, {message}"):
        load_task(span(tmp_path, [asked("film", 4), row]), tokenizer, 0)


def test_rows_that_compete_stay_together(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"qid": f"q{n // 4}", "text_a": "a", "text_b": "b c", "label": int(n % 4 == n // 4 % 4)} for n in range(80)]
    task = Task(name="dbqa", path=write(tmp_path, train=rows), validation_size=10, test_size=18)
    data = load_task(task, tokenizer, 0)
    groups = [split.gold.groups for split in (data.validation, data.test) if split.gold is not None]
    assert data.train.gold is not None
    sets = [set(own) for own in (data.train.gold.groups, *groups)]
    assert [len(own) for own in (data.train, data.validation, data.test)] == [48, 12, 20]
    assert sum(map(len, sets)) == len(set().union(*sets)) == 20
    assert data.label_names == ("wrong", "right")


def test_matched_and_mismatched_are_both_reported_of(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    def rows(count: int) -> list[dict[str, Any]]:
        return [{"premise": "a", "hypothesis": "b", "label": n % 3} for n in range(count)]

    hidden = [{**row, "label": -1} for row in rows(9)]
    path = write(
        tmp_path, train=rows(40), validation_matched=rows(10), validation_mismatched=rows(13), test_matched=hidden,
        test_mismatched=hidden,
    )  # fmt: skip
    data = load_task(Task(name="mnli", path=path, validation_size=6), tokenizer, 0)
    assert [len(own) for own in (data.train, data.validation, data.test)] == [34, 6, 10]
    assert {name: len(own) for name, own in data.more.items()} == {"mismatched": 13}
    assert data.label_names == ("entailment", "neutral", "contradiction")


def test_a_single_class_is_no_choice_of_several(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"text": f"a {'b ' * n}", "labels": ["toxic"] * (n % 2)} for n in range(20)]
    with pytest.raises(ValueError, match=r"'toxic' is the only class, .* set task\.kind to classification"):
        load_task(Task(path=write(tmp_path, train=rows), validation_size=4, test_size=6), tokenizer, 0)


def test_rows_of_train_stay_reachable(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"sentence1": f"a {'b ' * n}", "sentence2": "c", "label": n % 2} for n in range(20)]
    data = load_task(Task(path=write(tmp_path, train=rows), validation_size=4, test_size=6), tokenizer, 0)
    assert len(data.rows["train"].texts) == len(data.rows["train"].pairs or []) == len(data.train) == 10
    expected = tokenizer(data.rows["train"].texts, data.rows["train"].pairs)["input_ids"]
    assert np.concatenate(expected).tolist() == data.train.input_ids.tolist()
    assert data.rows["train"].labels is data.train.labels


def test_conll2003(shared_data: Path, pieces: PreTrainedTokenizerFast) -> None:
    path = str(shared_data / "tasks" / "conll2003")
    data = load_task(Task(name="conll2003", path=path), pieces, 0)
    assert [len(own) for own in (data.train, data.validation, data.test)] == [14041, 3250, 3453]
    assert data.test.gold is not None
    entities = sum(tag.startswith("B-") for tags in data.test.gold.rows for tag in tags)
    assert entities == 5648  # as the data set's own table has it
