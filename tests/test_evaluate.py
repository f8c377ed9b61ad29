"""Scores by hand, predictions in the order of the data, probes, latency."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification

from fastdistill import evaluate
from fastdistill.data.packing import Sequences
from fastdistill.evaluate import latency_ms, metric_of, predict, probe, score
from fastdistill.models.encoder import Encoder
from fastdistill.recipe import Task
from tests.tiny import make_teacher

GOLD = np.array([1, 0, 1, 1, 0, 0, 1, 0])
GUESS = np.array([1, 0, 0, 1, 1, 0, 1, 1])  # 3 true positives, 2 true negatives, 2 false positives, 1 false negative


def test_classification_metrics_by_hand() -> None:
    assert score("accuracy", GUESS, GOLD) == 5 / 8
    assert score("f1", GUESS, GOLD) == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    assert score("matthews", GUESS, GOLD) == pytest.approx((3 * 2 - 2 * 1) / math.sqrt(5 * 4 * 4 * 3))


def test_f1_of_more_classes_is_the_mean_over_classes() -> None:
    gold, guess = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 0])
    assert score("f1", guess, gold, num_labels=3) == pytest.approx((2 / 4 + 2 / 3 + 2 / 3) / 3)


def test_correlations_by_hand() -> None:
    gold, guess = np.array([1.0, 2.0, 3.0, 10.0]), np.array([1.0, 3.0, 2.0, 4.0])
    assert score("spearman", guess, gold) == pytest.approx(1 - 6 * 2 / (4 * 15))
    a, b = gold - gold.mean(), guess - guess.mean()
    assert score("pearson", guess, gold) == pytest.approx((a @ b) / math.sqrt((a @ a) * (b @ b)))
    assert score("pearson", np.ones(4), gold) == 0.0
    assert score("spearman", guess, np.ones(4)) == 0.0


@pytest.mark.parametrize(
    ("task", "metric"),
    [(Task(), "accuracy"), (Task(kind="regression"), "pearson"), (Task(metric="matthews"), "matthews")],
)
def test_default_metric(task: Task, metric: str) -> None:
    assert metric_of(task) == metric


@pytest.mark.parametrize("task", [Task(metric="pearson"), Task(kind="regression", metric="accuracy")])
def test_metric_of_the_other_kind_is_refused(task: Task) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        metric_of(task)


def make_data(count: int = 40) -> Sequences:
    draw = np.random.default_rng(0)
    offsets = np.concatenate(([0], draw.integers(1, 12, count).cumsum()))
    return Sequences(draw.integers(5, 20, offsets[-1]), offsets, labels=draw.integers(0, 3, count))


def test_predictions_are_those_of_plain_transformers_in_the_order_of_the_data(tmp_path: Path) -> None:
    make_teacher(tmp_path, head=True)
    data = make_data()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    expected = []
    for n in range(len(data)):
        ids = torch.from_numpy(data.input_ids[data.offsets[n] : data.offsets[n + 1]])[None]
        expected.append(int(model(ids).logits.argmax()))
    assert len(set(expected)) == 2
    assert predict(Encoder.load(tmp_path, head="finetuned"), data, torch.device("cpu")).tolist() == expected


def test_probe_finds_what_the_states_hold(tmp_path: Path) -> None:
    """Sequences whose second token decides the label can be told apart on [CLS]; those with random labels cannot."""
    encoder = Encoder.load(make_teacher(tmp_path))
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 1200)
    ids = np.stack([np.full(1200, 2), 5 + labels, *draw.integers(5, 20, (2, 1200))], axis=1)
    train = Sequences(ids[:1000].ravel(), np.arange(0, 4001, 4), labels=labels[:1000])
    test = Sequences(ids[1000:].ravel(), np.arange(0, 801, 4), labels=labels[1000:])
    assert score("accuracy", probe(encoder, train, test, Task(), torch.device("cpu")), test.labels) > 0.9
    shuffled = Sequences(train.input_ids, train.offsets, labels=draw.permutation(train.labels))
    assert score("accuracy", probe(encoder, shuffled, test, Task(), torch.device("cpu")), test.labels) < 0.75


def test_probe_is_fitted_to_a_bounded_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, data = Encoder.load(make_teacher(tmp_path)), make_data(60)
    seen: list[int] = []
    fit = LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", lambda m, x, y, *a, **k: (seen.append(len(y)), fit(m, x, y))[1])
    monkeypatch.setattr(evaluate, "PROBE_ROWS", 50)
    probe(encoder, data, make_data(5), Task(), torch.device("cpu"))
    assert seen == [50]


def test_latency_tells_a_large_model_from_a_small_one(tmp_path: Path) -> None:
    folders = {
        "large": make_teacher(tmp_path / "l", hidden_size=192, intermediate_size=768),
        "small": make_teacher(tmp_path / "s"),
    }
    models = {name: AutoModelForSequenceClassification.from_pretrained(path) for name, path in folders.items()}
    times = latency_ms(models, rounds=5)
    assert times["large"] > times["small"] > 0


def test_latency_of_slow_models_takes_fewer_rounds(tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(make_teacher(tmp_path / "model"))
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    latency_ms({"model": model}, rounds=30, seconds=0)
    assert len(calls) == 3 + 5
    latency_ms({"model": model}, rounds=10, seconds=1e9)
    assert len(calls) == 3 + 5 + 3 + 10
