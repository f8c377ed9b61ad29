"""Labels: names, positions and numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastdistill.data.classes import Classes, distinct_names, width_of_vectors
from fastdistill.data.labels import class_indices, is_hidden, regression_targets


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["pos", "neg", "pos"], ("neg", "pos")),
        ([1, 0, 1], ("0", "1")),
        ([10, 9, 1], ("1", "9", "10")),
        (["10", "9", "1"], ("1", "9", "10")),
        ([1.0, 0.0], ("0", "1")),
        ([True, False], ("False", "True")),
        (["10", "9", "x"], ("10", "9", "x")),
    ],
)
def test_distinct_names(labels: list[Any], names: tuple[str, ...]) -> None:
    assert distinct_names(labels) == names
    found = class_indices(labels, Classes(names, found=True), "f")
    assert found.tolist() == [names.index(str(n).removesuffix(".0")) for n in labels]


@pytest.mark.parametrize("missing", ["NA", "n/a", "null", "None", "NaN"])
def test_what_tables_write_for_a_missing_number_is_no_class(missing: str) -> None:
    names = distinct_names(["0", "1", missing])
    assert names == ("0", "1")
    with pytest.raises(ValueError, match=rf"f, row 3: label '{missing}' is none of the 2 classes \(0, 1\)"):
        class_indices(["0", "1", missing], Classes(names, found=True), "f")
    assert distinct_names(["some", "all", "none"]) == ("all", "none", "some")


@pytest.mark.parametrize("labels", [["neg", "pos", "neg"], [0, 1, 0], ["0", "1", "0"], [0.0, 1.0, 0.0], ["neg", 1, 0]])
def test_names_and_positions_are_both_understood(labels: list[Any]) -> None:
    indices = class_indices(labels, Classes(("neg", "pos")), "f")
    assert indices.tolist() == [0, 1, 0]
    assert indices.dtype == np.int64


@pytest.mark.parametrize("label", [None, "", math.nan, 0.5, "2.75"])
def test_a_label_that_names_no_class_is_reported(label: Any) -> None:
    names = distinct_names(["1", "0", label])
    assert names == ("0", "1")
    with pytest.raises(ValueError, match=rf"row 3: label {label!r} is none of .* set task.kind to regression"):
        class_indices(["1", "0", label], Classes(names), "f")


def test_a_missing_label_is_not_the_class_none() -> None:
    with pytest.raises(ValueError, match="row 1: label None is none of the 2 classes"):
        class_indices([None], Classes(("None", "Some")), "f")


def test_numbers_that_are_names_are_not_positions() -> None:
    assert class_indices([1, 5], Classes(("1", "5")), "f").tolist() == [0, 1]
    with pytest.raises(ValueError, match="row 1: label 0 is none of the 2 classes"):
        class_indices([0], Classes(("1", "5")), "f")


def test_numbers_are_no_positions_among_names_that_nobody_put_into_an_order() -> None:
    names = distinct_names(["entailment", "neutral", "contradiction"])
    with pytest.raises(
        ValueError, match="row 2: label 0 is none of the 3 classes .* set task.label_names, in the order"
    ):
        class_indices(["neutral", 0], Classes(names, found=True), "f")


@pytest.mark.parametrize("label", [2, -1, "neutral", None, "", 0.5, math.nan])
def test_a_label_outside_the_names_is_named(label: Any) -> None:
    with pytest.raises(ValueError, match=rf"train\.csv, row 3: label {label!r} is none of the 2 classes \(neg, pos\)"):
        class_indices(["neg", "pos", label], Classes(("neg", "pos")), "train.csv")


def test_long_lists_of_names_are_shortened() -> None:
    with pytest.raises(ValueError, match=r"none of the 77 classes \(c0, .*, c9 and 67 more\)"):
        class_indices(["x"], Classes(tuple(f"c{i}" for i in range(77))), "f")


@pytest.mark.parametrize(
    ("labels", "classes", "width"),
    [
        ([[1, 0], [0, 1], [0, 1]], None, 2),
        ([[1, 0], [0, 1], [0, 1]], 2, 2),
        ([[1, 0], [0, 1], [0, 1]], 3, None),  # the first two of three classes, by number
        ([[1.0, 0.0, 0.0], [True, False, True]], None, 3),
        ([[0, 1, 0], [0, 0], [1, 0, 0]], 3, 3),
        ([[0, 0, 1], [1, 1, 1]], 2, 3),
        ([[0], [1], [0, 1]], None, None),
        ([[0], [0], [0]], None, None),
        ([[0], [1], [0, 0]], 3, None),
        ([[], [], [0, 1]], None, None),
        ([[0, 1], [2, 0]], None, None),
        ([["0", "1"], ["1", "0"]], None, None),
        ([1, 0], None, None),
        ([], None, None),
    ],
)
def test_width_of_vectors(labels: list[Any], classes: int | None, width: int | None) -> None:
    assert width_of_vectors(labels, classes) == width


def test_targets() -> None:
    targets = regression_targets([1, 2.5, "3.5"], "f")
    assert targets.tolist() == [1, 2.5, 3.5]
    assert targets.dtype == np.float32


@pytest.mark.parametrize("label", [math.nan, "nan", math.inf, None, "", "good", [1]])
def test_a_target_that_is_no_number_is_named(label: Any) -> None:
    with pytest.raises(ValueError, match=r"f\.csv, row 2: label .* is not a finite number"):
        regression_targets([1.0, label], "f.csv")


def test_hidden_labels() -> None:
    assert [is_hidden(label) for label in (-1, "-1", -1.0, None, "")] == [True] * 5
    assert all(map(is_hidden, ([], [-1, -1], {"text": [], "answer_start": []})))
    answer, malformed = {"text": ["a"], "answer_start": [0]}, {"texts": []}
    assert not any(map(is_hidden, (0, 1, "0", "neg", 0.5, [0, 0], [-1, 2], ["a"], answer, malformed)))
