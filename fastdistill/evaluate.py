"""Scores: the task metric, a linear probe for students without a head, agreement, and latency."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastdistill.data.packing import Sequences, in_order
from fastdistill.models.capture import Taps
from fastdistill.models.encoder import Encoder
from fastdistill.models.pretrained import PreTrainedModel
from fastdistill.recipe import Task

EVALUATION_TOKENS = 8192  # tokens per batch without gradients
PROBE_ROWS = 20_000  # a linear model of some hundred features needs no more


def metric_of(task: Task) -> str:
    """The metric reported for `task`.

    Raises:
        ValueError: the metric does not fit the kind of label.
    """
    if task.metric is None:
        return "accuracy" if task.kind == "classification" else "pearson"
    if (task.metric in ("pearson", "spearman")) != (task.kind == "regression"):
        raise ValueError(f"metric {task.metric} does not fit a {task.kind} task: choose another metric or kind")
    return task.metric


def score(metric: str, predictions: np.ndarray, labels: np.ndarray, num_labels: int = 2) -> float:
    """The metric of predicted classes (or values) against gold labels, as scikit-learn and scipy compute it.

    F1 is of class 1 where there are two classes, and the mean over classes (macro) where there are more. A correlation
    of or with constants is 0.
    """
    if metric == "accuracy":
        return float(accuracy_score(labels, predictions))
    if metric == "f1":
        average = "binary" if num_labels == 2 else "macro"
        return float(f1_score(labels, predictions, average=average, zero_division=0.0))
    if metric == "matthews":
        return float(matthews_corrcoef(labels, predictions))
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float((pearsonr if metric == "pearson" else spearmanr)(predictions, labels).statistic)


@torch.no_grad()
def predict(encoder: Encoder, data: Sequences, device: torch.device) -> np.ndarray:
    """Predicted class of each sequence, or value where the head has one output, in the order of the data; fp32."""
    logits = _forward(encoder, data, device, cls=False)
    return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1)


def probe(encoder: Encoder, train: Sequences, test: Sequences, task: Task, device: torch.device) -> np.ndarray:
    """Predictions on `test` of a linear model fitted to the last layer's [CLS] states of `train` (20,000 rows at most).

    Logistic regression for classes, ridge regression for values, on standardised features: what a student without a
    head knows of the task.
    """
    if len(train) > PROBE_ROWS:
        train = train.take(np.random.default_rng(0).permutation(len(train))[:PROBE_ROWS])
    x, x_test = (_forward(encoder, data, device, cls=True) for data in (train, test))
    model = LogisticRegression(max_iter=300) if task.kind == "classification" else Ridge()
    assert train.labels is not None
    fitted = make_pipeline(StandardScaler(), model).fit(x, train.labels)
    return np.asarray(fitted.predict(x_test))


@torch.no_grad()
def _forward(encoder: Encoder, data: Sequences, device: torch.device, *, cls: bool) -> np.ndarray:
    """Logits (N, C), or the last [CLS] states (N, D), in the order of the data."""
    last = encoder.num_hidden_layers
    taps = Taps(hidden=frozenset({last})) if cls else Taps(logits=True)
    rows, order = [], []
    with encoder.evaluating():
        for batch in in_order(data, tokens_per_batch=EVALUATION_TOKENS):
            batch = batch.to(device)
            captured = encoder(batch, taps)
            out = captured.hidden[last][batch.cu_seqlens[:-1].long()] if cls else captured.logits
            assert out is not None
            assert batch.indices is not None, "batches of a text know its sequences"
            rows.append(out.float().cpu())
            order.append(batch.indices)
    result = torch.cat(rows).numpy()
    return np.asarray(result[np.argsort(np.concatenate(order))])


@torch.inference_mode()
def latency_ms(
    models: Mapping[str, PreTrainedModel],
    *,
    batch_size: int = 8,
    length: int = 64,
    rounds: int = 30,
    seconds: float = 10,
) -> dict[str, float]:
    """Median milliseconds of a forward on the CPU in fp32, as a user of plain transformers would run it.

    The models take turns in every round, so that a busy machine slows all of them alike. Rounds end after `seconds`,
    but not before there are five.
    """
    begin = time.perf_counter()
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 3):  # the first three warm up
        if number >= 8 and time.perf_counter() - begin > seconds:
            break
        for name, model in models.items():
            vocabulary = model.config.vocab_size
            ids = torch.randint(0, vocabulary, (batch_size, length), generator=torch.Generator().manual_seed(number))
            start = time.perf_counter()
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(values[3:])) for name, values in times.items()}
