"""Metrics: what predictions are worth against the gold labels, for every kind of task."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from fastdistill.data.gold import Gold
from fastdistill.recipe import Kind, Metric, Task

Measure = Callable[[Any, Gold], float]


def metrics_of(task: Task) -> tuple[Metric, ...]:
    """All metrics of a task, the one that choices are made by first.

    Raises:
        ValueError: the task's metric does not fit its kind of label.
    """
    kind = task.kind or "classification"
    known = [name for name in MEASURES[kind] if task.group is not None or name not in RANKING]
    if task.group is not None:
        known.sort(key=lambda name: name not in RANKING)
    names = task.label_names
    if kind == "tagging" and names and not all(re.fullmatch(r"O|[BIES]-.+", name) for name in names):
        known = [name for name in known if name not in ENTITIES]
    if task.metric is not None and task.metric not in known:
        raise ValueError(
            f"metric {task.metric} does not fit a {kind} task{_why(task.metric, kind)}: "
            f"choose one of {', '.join(known)}"
        )
    first = task.metric or known[0]
    return (first, *(name for name in known if name != first))


def _why(metric: Metric, kind: Kind) -> str:
    if metric in RANKING and kind == "classification":
        return " without task.group"
    if metric in ENTITIES and kind == "tagging":
        return " whose tags are not O, B-..., I-..., E-... and S-..."
    return ""


def score(metric: Metric, predictions: Any, gold: Gold) -> float:
    """What the predictions for all rows of `gold` are worth by one metric.

    Args:
        metric: one that fits the kind of `gold`.
        predictions: by kind, ``(N,)`` classes or values, the log odds of class 1 where rows are ranked; ``(N, C)``
            bool; for every row the tags of its words by name, or the text of its answer.
        gold: what is right.
    """
    return MEASURES[gold.kind][metric](predictions, gold)


def scores(metrics: Sequence[Metric], predictions: Any, gold: Gold) -> dict[str, float]:
    """What the predictions are worth by each of these metrics."""
    return {metric: score(metric, predictions, gold) for metric in metrics}


def classes(predictions: np.ndarray, gold: Gold) -> np.ndarray:
    """Predicted classes: of rows that are ranked 1 where its log odds are above 0, of others what is predicted."""
    return (predictions > 0).astype(np.int64) if gold.groups is not None else predictions


def _accuracy(predictions: np.ndarray, gold: Gold) -> float:
    return float(accuracy_score(gold.rows, classes(predictions, gold)))


def _f1(predictions: np.ndarray, gold: Gold) -> float:
    """Of class 1 where there are two classes, the mean over classes where there are more."""
    if gold.names is not None and len(gold.names) > 2:
        return _macro_f1(predictions, gold)
    return float(f1_score(gold.rows, classes(predictions, gold), average="binary", zero_division=0.0))


def _macro_f1(predictions: np.ndarray, gold: Gold) -> float:
    """The mean over the classes that occur among labels or predictions."""
    return float(f1_score(gold.rows, classes(predictions, gold), average="macro", zero_division=0.0))


def _micro_f1(predictions: np.ndarray, gold: Gold) -> float:
    return float(f1_score(gold.rows, predictions, average="micro", zero_division=0.0))


def _matthews(predictions: np.ndarray, gold: Gold) -> float:
    return float(matthews_corrcoef(gold.rows, classes(predictions, gold)))


def _correlation(of: Callable[..., Any]) -> Measure:
    """A correlation; of or with constants it is 0."""

    def measure(predictions: np.ndarray, gold: Gold) -> float:
        if np.ptp(predictions) == 0 or np.ptp(gold.rows) == 0:
            return 0.0
        return float(of(predictions, gold.rows).statistic)

    return measure


def _ranks(predictions: np.ndarray, gold: Gold) -> Iterator[np.ndarray]:
    """For every group with a row of class 1 the ranks, from 1, of those rows; of equal predictions they come last."""
    right = np.asarray(gold.rows) == 1
    assert gold.groups is not None, "metrics_of leaves ranking to tasks with groups"
    for group in np.unique(gold.groups):
        rows = np.flatnonzero(gold.groups == group)
        order = np.lexsort((right[rows], -predictions[rows]))
        ranks = np.flatnonzero(right[rows][order]) + 1
        if len(ranks):
            yield ranks


def _mrr(predictions: np.ndarray, gold: Gold) -> float:
    """The mean reciprocal rank of the first row that is right."""
    return float(np.mean([1 / ranks[0] for ranks in _ranks(predictions, gold)] or [0.0]))


def _map(predictions: np.ndarray, gold: Gold) -> float:
    """The mean average precision: of every row that is right, the share that is right down to its rank."""
    return float(np.mean([np.mean(np.arange(1, len(r) + 1) / r) for r in _ranks(predictions, gold)] or [0.0]))


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Type, first and last word of every entity, as seqeval counts them by default: B begins one and S is one, E ends
    one, and an I or E that does not go on with one of its type begins one."""
    found, start, kind, ended = set(), 0, "", False
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        if kind and (ended or prefix not in ("I", "E") or own != kind):
            found.add((kind, start, place - 1))
            kind = ""
        if prefix in ("B", "I", "E", "S") and not kind:
            start, kind = place, own
        ended = prefix in ("E", "S")
    return found


def _entity(share: Callable[[int, int, int], float]) -> Measure:
    """Of how many entities are right, were predicted, and are in the data."""

    def measure(predictions: list[list[str]], gold: Gold) -> float:
        pairs = [(entities(p), entities(g)) for p, g in zip(predictions, gold.rows, strict=True)]
        right, predicted, there = (sum(map(len, sets)) for sets in zip(*((p & g, p, g) for p, g in pairs), strict=True))
        return share(right, predicted, there)

    return measure


def _words(predictions: list[list[str]], gold: Gold) -> float:
    """The share of words that have the right tag."""
    right = [p == g for own, tags in zip(predictions, gold.rows, strict=True) for p, g in zip(own, tags, strict=True)]
    return float(np.mean(right))


def normalized(answer: str) -> str:
    """An answer as SQuAD compares it: lower case, no punctuation, no articles, single spaces."""
    text = "".join(character for character in answer.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _overlap(one: str, other: str) -> float:
    """F1 of the words of two answers; 0 where they share none."""
    a, b = normalized(one).split(), normalized(other).split()
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / max(1, len(a) + len(b))


def _answers(alike: Callable[[str, str], float]) -> Measure:
    """The mean over rows of the likeness with the likest right answer, as SQuAD's programs have it.

    That of version 2, where questions may lack an answer: right answers that normalise to nothing do not count, and of
    a question without any the empty answer is right.
    """

    def measure(predictions: list[str], gold: Gold) -> float:
        scores = []
        for p, own in zip(predictions, gold.rows, strict=True):
            real = [answer for answer in own if normalized(answer)] if gold.may_lack else own
            scores.append(max(alike(p, answer) for answer in real) if real else float(not normalized(p)))
        return float(np.mean(scores))

    return measure


RANKING = ("mrr", "map")
ENTITIES = ("entity_f1", "entity_precision", "entity_recall")
MEASURES: dict[Kind, dict[Metric, Measure]] = {
    "classification": {
        "accuracy": _accuracy, "f1": _f1, "macro_f1": _macro_f1, "matthews": _matthews, "mrr": _mrr, "map": _map,
    },
    "regression": {"pearson": _correlation(pearsonr), "spearman": _correlation(spearmanr)},
    "multilabel": {"micro_f1": _micro_f1, "macro_f1": _macro_f1, "exact_match": _accuracy},
    "tagging": {
        "entity_f1": _entity(lambda right, predicted, there: 2 * right / max(1, predicted + there)),
        "entity_precision": _entity(lambda right, predicted, there: right / max(1, predicted)),
        "entity_recall": _entity(lambda right, predicted, there: right / max(1, there)),
        "accuracy": _words,
    },
    "span": {"f1": _answers(_overlap), "exact_match": _answers(lambda p, g: normalized(p) == normalized(g))},
}  # fmt: skip
