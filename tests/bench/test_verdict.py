"""Bootstrap verdicts, and the metrics of resamples against those of the rows written out."""

from __future__ import annotations

import numpy as np
import pytest

from bench.quality import verdict
from bench.quality.perform import compact
from bench.quality.verdict import METRICS, check_metric, constant_score, judge, resampled_scores
from fastdistill.data.gold import Gold
from fastdistill.metrics import score


def answers(rows: int, right: float, classes: int, labels: np.ndarray, seed: int) -> np.ndarray:
    """Predictions of which a part is right, the others by chance."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(rows) < right, labels, rng.integers(0, classes, rows))


@pytest.mark.parametrize(
    ("metric", "classes"),
    [
        ("accuracy", 3), ("f1", 2), ("f1", 3), ("f1", 9), ("matthews", 2), ("matthews", 4), ("pearson", 1),
        ("spearman", 1),
    ],
)  # fmt: skip
def test_the_metric_of_a_resample_is_that_of_its_rows_written_out(metric: str, classes: int) -> None:
    rng = np.random.default_rng(1)
    rows = 23  # so few that classes lack in some resamples
    if classes > 1:
        labels = rng.integers(0, classes, rows)
        models = [answers(rows, 0.5, classes, labels, seed) for seed in (2, 3)]
    else:
        labels = rng.integers(0, 6, rows) / 2  # ties
        models = [labels + rng.normal(size=rows), np.round(labels + rng.normal(size=rows))]
    models.append(np.full(rows, models[0][0]))  # a constant
    found = resampled_scores(metric, models, labels, classes, resamples=600)
    assert found.shape == (3, 600)
    (counts, *_) = verdict._draws(rows, 600)
    for number in range(0, 500, 7):
        drawn = np.repeat(np.arange(rows), counts[number].astype(int))
        assert len(drawn) == rows
        for model, scores in zip(models, found, strict=True):
            names = tuple(map(str, range(classes))) if classes > 1 else None
            gold = Gold("classification" if names else "regression", labels[drawn], names)
            expected = score(metric, model[drawn], gold)  # type: ignore[arg-type]
            assert scores[number] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_rows_that_are_ranked_are_resampled_by_their_classes(metric: str) -> None:
    rng = np.random.default_rng(3)
    labels, odds = rng.integers(0, 2, 40), rng.normal(size=40) * 3
    gold = Gold("classification", labels, ("wrong", "right"), groups=rng.integers(0, 5, 40))
    found = compact(odds, gold)
    (resampled,) = resampled_scores(metric, [found["predictions"]], found["labels"], 2, resamples=20)
    (counts, *_) = verdict._draws(40, 20)
    for number, of in enumerate(resampled):
        drawn = np.repeat(np.arange(40), counts[number].astype(int))
        assert of == pytest.approx(score(metric, odds[drawn], gold.take(drawn)))  # type: ignore[arg-type]


def test_entities_of_a_resample() -> None:
    parts = np.array([[1, 2, 1], [0, 0, 3], [2, 2, 2], [0, 0, 0]])  # right, predicted, there
    (found,) = resampled_scores("entity_f1", [parts], parts[:, 2], 9, resamples=50)
    (counts, *_) = verdict._draws(4, 50)
    for number, drawn in enumerate(counts):
        right, predicted, there = drawn @ parts
        assert found[number] == pytest.approx(2 * right / max(1, predicted + there))


def test_resamples_draw_rows_with_replacement_and_are_the_same_every_time() -> None:
    parts = list(verdict._draws(50, 1200))
    counts = np.concatenate(parts)
    assert counts.shape == (1200, 50)
    assert (counts.sum(1) == 50).all()
    assert counts.var() == pytest.approx(0.98, abs=0.05)  # of a multinomial: n p (1 - p)
    assert len(np.unique(counts, axis=0)) == 1200
    assert np.array_equal(counts, np.concatenate(list(verdict._draws(50, 1200))))


LABELS = np.random.default_rng(0).integers(0, 2, 400)


def compared(ours: list[np.ndarray], theirs: list[np.ndarray], metric: str = "accuracy") -> dict[str, float | str]:
    scores = resampled_scores(metric, [*ours, *theirs], LABELS, 2, resamples=2000)
    return judge(scores[: len(ours)].mean(0) - scores[len(ours) :].mean(0))


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_verdicts(metric: str) -> None:
    good, poor = ([answers(400, right, 2, LABELS, seed) for seed in (1, 2, 3)] for right in (0.9, 0.4))
    assert compared(good, poor, metric)["verdict"] == "BEATS"
    assert compared(poor, good, metric)["verdict"] == "DOES NOT"
    assert compared(good, good, metric) == {"low": 0.0, "high": 0.0, "verdict": "DOES NOT"}
    alike = [answers(400, 0.9, 2, LABELS, seed) for seed in (4, 5, 6)]
    noisy = compared(good, alike, metric)
    assert noisy["verdict"] == "INCONCLUSIVE"
    assert float(noisy["low"]) < 0 < float(noisy["high"])


def test_rows_are_paired() -> None:
    """Four rows more, on otherwise the same predictions, are a sure gain; the same four among unlike ones are not."""
    theirs = answers(400, 0.8, 2, LABELS, 1)
    ours = theirs.copy()
    wrong = np.flatnonzero(theirs != LABELS)[:8]
    ours[wrong] = LABELS[wrong]
    assert compared([ours], [theirs])["verdict"] == "BEATS"
    unlike = np.roll(theirs == LABELS, 1)
    assert compared([ours], [np.where(unlike, LABELS, 1 - LABELS)])["verdict"] == "INCONCLUSIVE"


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    ours, theirs = (answers(400, right, 2, LABELS, 7) for right in (0.9, 0.6))
    found = compared([ours], [theirs])
    apart = (ours == LABELS).astype(float) - (theirs == LABELS)
    error = 1.96 * apart.std() / 20
    assert float(found["low"]) == pytest.approx(apart.mean() - error, abs=0.003)
    assert float(found["high"]) == pytest.approx(apart.mean() + error, abs=0.003)


@pytest.mark.parametrize(
    ("kind", "metric"), [("classification", "macro_f1"), ("multilabel", "micro_f1"), ("tagging", "accuracy")]
)
def test_what_cannot_be_resampled_is_refused(kind: str, metric: str) -> None:
    with pytest.raises(ValueError, match=f"{metric} of a {kind} task has no bootstrap"):
        check_metric(kind, metric)


@pytest.mark.parametrize(("kind", "metric"), [(kind, metric) for kind, known in METRICS.items() for metric in known])
def test_all_others_can(kind: str, metric: str) -> None:
    check_metric(kind, metric)
    rows = np.stack([LABELS] * 3, 1) if kind == "tagging" else LABELS
    assert resampled_scores(metric, [rows], LABELS, 2, resamples=3) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("metric", "best"), [("accuracy", 0.75), ("f1", 0.4), ("matthews", 0.0), ("entity_f1", 0.0)]
)  # one answer for every row; F1 of class 1: precision 1/4, recall 1
def test_the_constant_is_the_best_there_is(metric: str, best: float) -> None:
    assert constant_score(metric, np.array([0, 0, 1, 0]), 2) == pytest.approx(best)
    assert constant_score("pearson", np.array([0.5, 2.0, 1.0]), 1) == 0.0
