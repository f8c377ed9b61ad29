"""Predictions in the order of the data, probes, latency."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification

from fastdistill import evaluate
from fastdistill.data.gold import Gold
from fastdistill.data.packing import Sequences
from fastdistill.evaluate import agreement, latency_ms, predict, probe
from fastdistill.metrics import score
from fastdistill.models.encoder import Encoder
from tests.steps import room_for
from tests.tiny import make_teacher


def make_data(count: int = 40) -> Sequences:
    draw = np.random.default_rng(0)
    offsets = np.concatenate(([0], draw.integers(1, 12, count).cumsum()))
    return labelled(draw.integers(5, 20, offsets[-1]), offsets, draw.integers(0, 3, count))


def labelled(ids: np.ndarray, offsets: np.ndarray, labels: np.ndarray) -> Sequences:
    return Sequences(ids, offsets, labels=labels, gold=Gold("classification", labels, ("a", "b", "c")))


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


def test_predictions_are_made_in_smaller_batches_where_memory_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.load(make_teacher(tmp_path, head=True), head="finetuned")
    expected = predict(encoder, make_data(), torch.device("cpu"))
    with pytest.raises(ValueError, match="there are no sequences to make batches of"):
        predict(encoder, make_data(0), torch.device("cpu"))
    room_for(30, Encoder, monkeypatch)
    assert np.array_equal(predict(encoder, make_data(), torch.device("cpu")), expected)
    monkeypatch.setattr(Encoder, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(encoder, make_data(), torch.device("cpu"))


def test_probe_finds_what_the_states_hold(tmp_path: Path) -> None:
    """Sequences whose second token decides the label can be told apart on [CLS]; those with random labels cannot."""
    encoder = Encoder.load(make_teacher(tmp_path))
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 1200)
    ids = np.stack([np.full(1200, 2), 5 + labels, *draw.integers(5, 20, (2, 1200))], axis=1)
    train = labelled(ids[:1000].ravel(), np.arange(0, 4001, 4), labels[:1000])
    test = labelled(ids[1000:].ravel(), np.arange(0, 801, 4), labels[1000:])
    assert test.gold is not None
    assert score("accuracy", probe(encoder, train, test, torch.device("cpu")), test.gold) > 0.9
    shuffled = labelled(train.input_ids, train.offsets, draw.permutation(labels[:1000]))
    assert score("accuracy", probe(encoder, shuffled, test, torch.device("cpu")), test.gold) < 0.75


def test_probe_is_fitted_to_a_bounded_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, data = Encoder.load(make_teacher(tmp_path)), make_data(60)
    seen: list[int] = []
    fit = LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", lambda m, x, y, *a, **k: (seen.append(len(y)), fit(m, x, y))[1])
    monkeypatch.setattr(evaluate, "PROBE_ROWS", 50)
    probe(encoder, data, make_data(5), torch.device("cpu"))
    assert seen == [50]


def test_probe_of_rows_of_one_class_says_that_class(tmp_path: Path) -> None:
    """Of a rare class none may be among the rows that it is fitted to."""
    encoder, test = Encoder.load(make_teacher(tmp_path)), make_data(5)
    train = labelled(test.input_ids, test.offsets, np.full(5, 2))
    assert probe(encoder, train, test, torch.device("cpu")).tolist() == [2] * 5
    assert test.gold is not None
    ranked = replace(test, gold=replace(test.gold, groups=np.zeros(5)))
    assert probe(encoder, train, ranked, torch.device("cpu")).tolist() == [0.0] * 5


def test_agreement_is_over_rows_whatever_a_row_is() -> None:
    assert agreement(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])) == 0.75
    assert agreement(np.array([[True, False], [True, True]]), np.array([[True, False], [False, True]])) == 0.5
    assert agreement([["O", "B-X"], ["O"]], [["O", "O"], ["O"]]) == 0.5
    assert agreement(["the end", ""], ["the end", "an end"]) == 0.5


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
