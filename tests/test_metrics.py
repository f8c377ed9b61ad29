"""Metrics by hand, and against scikit-learn, scipy and seqeval on random predictions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import seqeval.metrics
import sklearn.metrics
from seqeval.metrics.sequence_labeling import get_entities

from fastdistill.data.gold import Gold
from fastdistill.metrics import MEASURES, entities, metrics_of, normalized, score, scores
from fastdistill.recipe import Metric, Task

GOLD = np.array([1, 0, 1, 1, 0, 0, 1, 0])
GUESS = np.array([1, 0, 0, 1, 1, 0, 1, 1])  # 3 true positives, 2 true negatives, 2 false positives, 1 false negative
IOB = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
SEEDS = range(5)


def classes(labels: np.ndarray, count: int = 2) -> Gold:
    return Gold("classification", labels, tuple("abcdefg"[:count]))


def test_classification_by_hand() -> None:
    gold = classes(GOLD)
    assert score("accuracy", GUESS, gold) == 5 / 8
    assert score("f1", GUESS, gold) == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    assert score("macro_f1", GUESS, gold) == pytest.approx((2 * 3 / (2 * 3 + 2 + 1) + 2 * 2 / (2 * 2 + 2 + 1)) / 2)
    assert score("matthews", GUESS, gold) == pytest.approx((3 * 2 - 2 * 1) / math.sqrt(5 * 4 * 4 * 3))


def test_f1_of_more_classes_is_the_mean_over_classes() -> None:
    labels, guess = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 0])
    for name in ("f1", "macro_f1"):
        assert score(name, guess, classes(labels, 3)) == pytest.approx((2 / 4 + 2 / 3 + 2 / 3) / 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [2, 5])
def test_classification_as_scikit_learn_has_it(seed: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    y, p = draw.integers(0, count, (2, 200))
    found = scores(("accuracy", "f1", "macro_f1", "matthews"), p, classes(y, count))
    assert found == pytest.approx(
        {
            "accuracy": sklearn.metrics.accuracy_score(y, p),
            "f1": sklearn.metrics.f1_score(y, p, average="binary" if count == 2 else "macro"),
            "macro_f1": sklearn.metrics.f1_score(y, p, average="macro"),
            "matthews": sklearn.metrics.matthews_corrcoef(y, p),
        }
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_correlations_as_scipy_has_them(seed: int) -> None:
    y, p = np.random.default_rng(seed).normal(size=(2, 100)).round(1)
    gold = Gold("regression", y)
    assert score("pearson", p, gold) == pytest.approx(scipy.stats.pearsonr(y, p).statistic)
    assert score("spearman", p, gold) == pytest.approx(scipy.stats.spearmanr(y, p).statistic)
    assert score("pearson", np.ones(100), gold) == score("spearman", p, Gold("regression", np.ones(100))) == 0.0


@pytest.mark.parametrize("seed", SEEDS)
def test_several_classes_as_scikit_learn_has_them(seed: int) -> None:
    draw = np.random.default_rng(seed)
    y, p = draw.random((2, 60, 4)) < 0.4
    found = scores(("micro_f1", "macro_f1", "exact_match"), p, Gold("multilabel", y.astype(np.float32), tuple("abcd")))
    assert found == pytest.approx(
        {
            "micro_f1": sklearn.metrics.f1_score(y, p, average="micro"),
            "macro_f1": sklearn.metrics.f1_score(y, p, average="macro"),
            "exact_match": sklearn.metrics.accuracy_score(y, p),
        }
    )


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("I-PER I-PER O", {("PER", 0, 1)}),
        ("B-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),
        ("O I-LOC B-LOC I-LOC", {("LOC", 1, 1), ("LOC", 2, 3)}),
        ("O O", set()),
    ],
)
def test_entities_by_hand(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected


def test_entity_scores_by_hand() -> None:
    gold = Gold("tagging", [["B-PER", "I-PER", "O"], ["B-LOC", "O"]], IOB)
    predictions = [["B-PER", "I-PER", "B-LOC"], ["O", ""]]  # one right of two predicted and two that are there
    assert score("entity_precision", predictions, gold) == 1 / 2
    assert score("entity_recall", predictions, gold) == 1 / 2
    assert score("entity_f1", predictions, gold) == 1 / 2
    assert score("accuracy", predictions, gold) == 2 / 5
    assert score("entity_f1", [["O"] * 3, ["O"] * 2], gold) == 0.0


def ranked(y: np.ndarray, groups: np.ndarray) -> Gold:
    return Gold("classification", y, ("wrong", "right"), groups)


def test_ranks_by_hand() -> None:
    y, groups = np.array([0, 1, 1, 1, 0, 0, 0]), np.array(["a", "a", "a", "b", "b", "c", "c"])
    odds = np.array([3.0, 2.0, 1.0, 0.5, 0.5, 1.0, 2.0])  # a: 2nd and 3rd; b: tied, so 2nd; c: none is right
    assert score("mrr", odds, ranked(y, groups)) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert score("map", odds, ranked(y, groups)) == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 2) / 2)
    assert score("accuracy", odds, ranked(y, groups)) == 3 / 7  # all odds are above 0: class 1


@pytest.mark.parametrize("seed", SEEDS)
def test_mean_average_precision_as_scikit_learn_has_it(seed: int) -> None:
    draw = np.random.default_rng(seed)
    groups, y, odds = draw.integers(0, 9, 90), draw.integers(0, 2, 90), draw.normal(size=90)
    each = [sklearn.metrics.average_precision_score(y[groups == g], odds[groups == g]) for g in range(9)]
    assert score("map", odds, ranked(y, groups)) == pytest.approx(np.mean(each))


def test_answers_as_squad_compares_them() -> None:
    assert normalized("The  Café, a café!") == "café café"
    gold = Gold("span", [("Denver Broncos", "The Broncos"), ("1990s",), ()], may_lack=True)
    assert score("exact_match", ["the broncos!", "in the 1990s", ""], gold) == pytest.approx(2 / 3)
    assert score("f1", ["the broncos!", "in the 1990s", ""], gold) == pytest.approx((1 + 2 * 1 / 3 + 1) / 3)
    assert score("f1", ["Denver", "", "something"], gold) == pytest.approx((2 * 1 / 3) / 3)


def test_answers_of_articles_alone_as_each_version_of_squad_counts_them() -> None:
    """Version 2 leaves such right answers out; in version 1.1 nothing overlaps nothing, and yet they are equal."""
    second = Gold("span", [("the", "The cat"), ("the",), ()], may_lack=True)
    assert score("exact_match", ["a", "a", "an"], second) == score("f1", ["a", "a", "an"], second) == 2 / 3
    first = Gold("span", [("the", "The cat"), ("the",)])
    assert score("exact_match", ["a", "cat"], first) == 0.5
    assert score("f1", ["a", "cat"], first) == 0


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        (Task(), "accuracy f1 macro_f1 matthews"),
        (Task(metric="matthews"), "matthews accuracy f1 macro_f1"),
        (Task(group="qid"), "mrr map accuracy f1 macro_f1 matthews"),
        (Task(kind="regression"), "pearson spearman"),
        (Task(kind="multilabel"), "micro_f1 macro_f1 exact_match"),
        (Task(kind="tagging", label_names=IOB), "entity_f1 entity_precision entity_recall accuracy"),
        (
            Task(kind="tagging", label_names=("O", "S-PER", "E-PER")),
            "entity_f1 entity_precision entity_recall accuracy",
        ),
        (Task(kind="tagging", label_names=("NN", "VB")), "accuracy"),
        (Task(kind="span"), "f1 exact_match"),
    ],
)
def test_all_metrics_of_a_task(task: Task, metrics: str) -> None:
    assert metrics_of(task) == tuple(metrics.split())


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task(metric="pearson"), "pearson does not fit a classification task: choose one of accuracy, f1"),
        (Task(metric="mrr"), "mrr does not fit a classification task without task.group"),
        (Task(kind="regression", metric="accuracy"), "choose one of pearson, spearman"),
        (
            Task(kind="tagging", label_names=("NN", "VB"), metric="entity_f1"),
            r"not O, B-\.\.\., I-.* and S-\.\.\.: choose",
        ),
    ],
)
def test_metric_of_another_kind_is_refused(task: Task, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics_of(task)


def perfect(kind: str) -> tuple[Any, Gold]:
    y = np.array([0, 1, 1, 0])
    return {
        "classification": (y, classes(y)),
        "regression": (y + 0.5, Gold("regression", y + 0.5)),
        "multilabel": (np.eye(3) > 0, Gold("multilabel", np.eye(3, dtype=np.float32), tuple("abc"))),
        "tagging": ([["B-PER", "O"]], Gold("tagging", [["B-PER", "O"]], IOB)),
        "span": (["a b", ""], Gold("span", [("a b",), ()])),
    }[kind]


@pytest.mark.parametrize("kind", MEASURES)
def test_every_metric_gives_one_to_what_is_right_and_scores_rows_alone(kind: str) -> None:
    predictions, gold = perfect(kind)
    names: list[Metric] = [name for name in MEASURES[gold.kind] if name not in ("mrr", "map")]
    assert scores(names, predictions, gold) == pytest.approx(dict.fromkeys(names, 1.0))
    twice = {"tagging": [0, 0], "span": [1, 0, 1]}.get(kind, [0, 1, 2, 2])
    again = [predictions[row] for row in twice] if isinstance(predictions, list) else predictions[twice]
    assert scores(names, again, gold.take(np.array(twice))) == pytest.approx(dict.fromkeys(names, 1.0))


@pytest.mark.parametrize("seed", SEEDS)
def test_entities_as_seqeval_counts_them(seed: int) -> None:
    """Also in sequences that are neither IOB2 nor IOBES: an entity may begin with I, or end without E."""
    draw, tags = np.random.default_rng(seed), (*IOB, "B-A-B", "I-A-B", "E-PER", "S-PER", "E-LOC", "S-LOC")
    gold, predictions = [], []
    for length in draw.integers(1, 15, 40):
        gold.append([tags[i] for i in draw.integers(0, len(tags), length)])
        predictions.append([tag if draw.random() < 0.6 else tags[draw.integers(0, len(tags))] for tag in gold[-1]])
    assert [entities(own) for own in gold] == [set(get_entities(own)) for own in gold]
    found = scores(tuple(MEASURES["tagging"]), predictions, Gold("tagging", gold, tags))
    assert found == pytest.approx(
        {
            "entity_f1": seqeval.metrics.f1_score(gold, predictions),
            "entity_precision": seqeval.metrics.precision_score(gold, predictions),
            "entity_recall": seqeval.metrics.recall_score(gold, predictions),
            "accuracy": seqeval.metrics.accuracy_score(gold, predictions),
        }
    )
