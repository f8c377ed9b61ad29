"""Is one method better than another? A paired bootstrap over the test rows and the seeds, with the task's own metric.

Every resample draws as many rows as there are, with replacement, the same for all predictions, and as many seeds as
there are; rows are held as the number of times that each was drawn, so that the metric of thousands of resamples is a
product of two matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

RESAMPLES = 10_000
CHUNK = 500  # resamples at a time: 8 MB for 2,000 rows
LOW, HIGH = 2.5, 97.5  # percentiles: of the differences 95 % lie between them

METRICS = {  # that can be resampled, by kind of label
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("pearson", "spearman"),
    "tagging": ("entity_f1",),
}
Metric = Callable[[np.ndarray], np.ndarray]
"""From counts (R, N), how often each resample drew each row, to the score of each resample (R,)."""


def check_metric(kind: str, metric: str) -> None:
    """Refuse what no verdict could be given of.

    Raises:
        ValueError: a kind of label, or a metric of it, that has no bootstrap.
    """
    if metric not in METRICS.get(kind, ()):
        known = ", ".join(METRICS.get(kind, ())) or "none"
        raise ValueError(f"{metric} of a {kind} task has no bootstrap ({known} has): set task.metric, or leave it out")


def resampled_scores(
    metric: str, predictions: list[np.ndarray], labels: np.ndarray, classes: int, resamples: int = RESAMPLES
) -> np.ndarray:
    """``(len(predictions), resamples)``: the score of each model on each resample of the rows, the same for all."""
    metrics = [_metric(metric, np.asarray(p), labels, classes) for p in predictions]
    return np.concatenate(
        [np.stack([of(counts) for of in metrics]) for counts in _draws(len(labels), resamples)], axis=1
    )


def over_seeds(differences: np.ndarray) -> np.ndarray:
    """``(resamples,)``: of ``(seeds, resamples)`` the mean over seeds that each resample draws anew."""
    seeds, resamples = differences.shape
    drawn = np.random.default_rng(1).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    return np.asarray((drawn * differences.T).sum(1) / seeds)


def constant_score(metric: str, labels: np.ndarray, classes: int) -> float:
    """The best score of those who give the same answer to every row."""
    if metric == "entity_f1" or classes == 1:
        return 0.0  # no entity at all; no correlation
    once = np.ones((1, len(labels)))
    return max(float(_metric(metric, np.full_like(labels, c), labels, classes)(once)[0]) for c in range(classes))


def judge(differences: np.ndarray) -> dict[str, float | str]:
    """The 95 % interval of the resampled differences, and what it says: BEATS, DOES NOT or INCONCLUSIVE."""
    low, high = np.percentile(differences, [LOW, HIGH])
    word = "BEATS" if low > 0 else "DOES NOT" if high <= 0 else "INCONCLUSIVE"
    return {"low": float(low), "high": float(high), "verdict": word}


def _draws(rows: int, resamples: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        yield rng.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)


def _metric(metric: str, predictions: np.ndarray, labels: np.ndarray, classes: int) -> Metric:
    """The metric, one of METRICS, as a function of counts."""
    if metric == "accuracy":
        return partial(_accuracy, (predictions == labels).astype(np.float64))
    if metric in ("f1", "matthews"):
        own = [np.eye(classes)[x.astype(np.int64)] for x in (predictions, labels)]  # (N, C) each
        return partial(_f1 if metric == "f1" else _matthews, np.stack([own[0] * own[1], *own]))
    if metric == "entity_f1":
        return partial(_entity_f1, predictions.astype(np.float64))
    if metric == "pearson":
        return partial(_pearson, *(_centred(x) for x in (predictions, labels)))
    assert metric == "spearman", f"{metric} is in METRICS, and there is no function for it"
    return partial(_spearman, predictions, labels)


def _accuracy(right: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.asarray(counts @ right / counts.sum(1))


def _f1(parts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``2 tp / (predicted + gold)`` of class 1 of two, or the mean over the classes that occur."""
    both, predicted, gold = (counts @ part for part in parts)  # (R, C) each
    of_class = _ratio(2 * both, predicted + gold)
    if of_class.shape[1] == 2:
        return np.asarray(of_class[:, 1])
    return np.asarray(of_class.sum(1) / (predicted + gold > 0).sum(1))


def _entity_f1(parts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``2 right / (predicted + there)``; parts (N, 3) are of each row."""
    right, predicted, there = (counts @ part for part in parts.T)
    return _ratio(2 * right, predicted + there)


def _matthews(parts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``(c n - sum p_k t_k) / sqrt((n^2 - sum p_k^2) (n^2 - sum t_k^2))``, c right ones among n."""
    both, predicted, gold = (counts @ part for part in parts)
    n = counts.sum(1)
    spread = (n**2 - (predicted**2).sum(1)) * (n**2 - (gold**2).sum(1))
    return _ratio(both.sum(1) * n - (predicted * gold).sum(1), np.sqrt(spread))


def _pearson(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Correlation of the rows drawn; x and y are (N,), or (R, N) where each resample has its own."""
    n = counts.sum(1)
    mean_x, mean_y, xx, yy, xy = ((counts * z).sum(1) / n for z in (x, y, x * x, y * y, x * y))
    spread_x, spread_y = xx - mean_x**2, yy - mean_y**2
    varies = (spread_x > 1e-12 * xx) & (spread_y > 1e-12 * yy)  # constants differ from 0 by rounding
    return np.where(varies, _ratio(xy - mean_x * mean_y, np.sqrt(np.abs(spread_x * spread_y))), 0.0)


def _spearman(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return _pearson(_ranks(x, counts), _ranks(y, counts), counts)


def _ranks(x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``(R, N)``: the rank of each row among those drawn, equal values sharing their mean, from 0 at the middle."""
    _, group = np.unique(x, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    drawn = np.add.reduceat(counts[:, order], starts, axis=1)  # (R, distinct values)
    ranks = np.cumsum(drawn, axis=1) - drawn / 2
    return np.asarray((ranks - counts.sum(1, keepdims=True) / 2)[:, group])


def _centred(x: np.ndarray) -> np.ndarray:
    return np.zeros(len(x)) if np.ptp(x) == 0 else np.asarray(x.astype(np.float64) - x.mean(dtype=np.float64))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)
