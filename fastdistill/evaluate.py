"""Predictions of models with a head, a linear probe for those without one, agreement, and latency."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastdistill.data.gold import Gold
from fastdistill.data.packing import NO_LABEL, Sequences, in_order
from fastdistill.data.spans import choose_answers
from fastdistill.machine import Portion
from fastdistill.models.capture import Taps
from fastdistill.models.encoder import Encoder
from fastdistill.models.pretrained import PreTrainedModel

EVALUATION_TOKENS = 8192  # tokens per batch without gradients
PROBE_ROWS = 20_000  # a linear model of some hundred features needs no more


def predict(encoder: Encoder, data: Sequences, device: torch.device, portion: Portion | None = None) -> Any:
    """What an encoder with a head says of every row of the data, in its order; computed in fp32, a portion at once.

    ``(N,)`` classes, the log odds of class 1 where rows are ranked, or values where the head has one output; ``(N, C)``
    bool, which classes a text has; for every row the tags of its words by name; or the text of its answer.
    """
    outputs, gold = _outputs(encoder, data, device, portion, features=False), data.gold
    if encoder.kind == "tagging":
        assert gold is not None
        return _tags([z.argmax(1) for z in outputs], gold)
    if encoder.kind == "span":
        assert gold is not None
        assert gold.windows is not None
        return choose_answers(outputs, gold.windows, gold.may_lack)
    logits = np.concatenate(outputs)
    if encoder.kind == "multilabel":
        return logits > 0
    if gold is not None and gold.groups is not None:
        return logits[:, 1] - logits[:, 0]
    return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1)


def probe(
    encoder: Encoder, train: Sequences, test: Sequences, device: torch.device, portion: Portion | None = None
) -> Any:
    """Predictions on `test` of a linear model fitted to the last layer's states of `train`: what a student without a
    head knows of the task.

    Of [CLS], or of the labelled tokens, 20,000 at most. Logistic regression for classes and tags, ridge regression for
    values and for several classes at once, on standardised features. Spans have no probe.
    """
    gold = test.gold
    assert gold is not None
    if len(train) > PROBE_ROWS:
        train = train.take(np.random.default_rng(0).permutation(len(train))[:PROBE_ROWS])
    parts, parts_test = (_outputs(encoder, data, device, portion, features=True) for data in (train, test))
    x, x_test = np.concatenate(parts), np.concatenate(parts_test)
    y = train.labels if train.token_labels is None else train.token_labels[train.token_labels != NO_LABEL]
    assert y is not None
    if len(x) > PROBE_ROWS:
        rows = np.random.default_rng(0).permutation(len(x))[:PROBE_ROWS]
        x, y = x[rows], y[rows]
    if gold.kind in ("classification", "tagging") and (y == y[0]).all():  # of a rare class none was drawn
        if gold.groups is not None:
            return np.zeros(len(x_test))
        constant = np.full(len(x_test), y[0])
        return _tags(_by_row(constant, parts_test), gold) if gold.kind == "tagging" else constant
    model = LogisticRegression(max_iter=300) if gold.kind in ("classification", "tagging") else Ridge()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 iterations are enough for a probe
        fitted = make_pipeline(StandardScaler(), model).fit(x, y)
    if gold.kind == "tagging":
        return _tags(_by_row(fitted.predict(x_test), parts_test), gold)
    if gold.kind == "multilabel":
        return fitted.predict(x_test) > 0.5
    return np.asarray(fitted.decision_function(x_test) if gold.groups is not None else fitted.predict(x_test))


def agreement(one: Any, other: Any) -> float:
    """The share of rows of which two models say the same."""
    return float(np.mean([np.array_equal(a, b) for a, b in zip(one, other, strict=True)]))


def _by_row(values: np.ndarray, rows: list[np.ndarray]) -> list[np.ndarray]:
    """As many of the values for every row as it has entries."""
    return np.split(values, np.cumsum([len(row) for row in rows])[:-1])


def _tags(found: list[np.ndarray], gold: Gold) -> list[list[str]]:
    """Tags by name for all words of every row, of the classes found for those that have a token; none for others."""
    assert gold.names is not None
    assert gold.words is not None
    rows = []
    for own, words, right in zip(found, gold.words, gold.rows, strict=True):
        tags = [""] * len(right)
        for word, tag in zip(words, own, strict=True):
            tags[word] = gold.names[tag]
        rows.append(tags)
    return rows


def _outputs(
    encoder: Encoder, data: Sequences, device: torch.device, portion: Portion | None, *, features: bool
) -> list[np.ndarray]:
    """What `_outputs_of` finds, in smaller batches where memory lacks."""
    portion = portion or Portion(EVALUATION_TOKENS)
    return portion.of(partial(_outputs_of, encoder, data, device, features), int(data.lengths.max(initial=1)))


@torch.no_grad()
def _outputs_of(
    encoder: Encoder, data: Sequences, device: torch.device, features: bool, tokens_per_batch: int
) -> list[np.ndarray]:
    """For every sequence, in the order of the data, its logits or last states: one row, or one for each token that the
    head is over."""
    last = encoder.num_hidden_layers
    taps = Taps(hidden=frozenset({last})) if features else Taps(logits=True)
    over_tokens = data.token_labels is not None or (encoder.kind == "span" and not features)
    found: list[np.ndarray] = [np.empty(0)] * len(data)
    with encoder.evaluating():
        for batch in in_order(data, tokens_per_batch):
            batch = batch.to(device)
            captured = encoder(batch, taps)
            out = captured.logits
            if features:
                out = captured.hidden[last][batch.cu_seqlens[:-1] if batch.labelled is None else batch.labelled]
            assert out is not None
            assert batch.indices is not None, "batches of a text know its sequences"
            ends = np.arange(1, batch.num_sequences) if not over_tokens else batch.cu_seqlens[1:-1].cpu().numpy()
            if batch.labelled is not None:
                ends = np.searchsorted(batch.labelled.cpu().numpy(), ends)
            parts = np.split(out.float().cpu().numpy(), ends)
            for index, part in zip(batch.indices, parts, strict=True):
                found[index] = part
    return found


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
