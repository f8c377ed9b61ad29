"""Heads: the Auto class of every kind of head, and what it makes of packed hidden states."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from fastdistill.models.attention import Bounds
from fastdistill.recipe import HeadKind

Headed = (
    type[AutoModelForMaskedLM]
    | type[AutoModelForQuestionAnswering]
    | type[AutoModelForSequenceClassification]
    | type[AutoModelForTokenClassification]
)
AUTO: dict[HeadKind, Headed] = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "multilabel": AutoModelForSequenceClassification,
    "tagging": AutoModelForTokenClassification,
    "span": AutoModelForQuestionAnswering,
    "masked": AutoModelForMaskedLM,
}
PROBLEM_TYPES: dict[HeadKind, Literal["regression", "multi_label_classification"]] = {
    "regression": "regression",
    "multilabel": "multi_label_classification",
}


def has_known_head(model: PreTrainedModel) -> bool:
    """Whether `head_logits` knows the heads of this family."""
    return model.config.model_type in POOLED


def head_logits(
    kind: HeadKind, model: PreTrainedModel, hidden: Tensor, bounds: Bounds, labelled: Tensor | None
) -> Tensor:
    """What the head of a model makes of its packed last hidden states ``(T, D)``.

    Shapes:
        labelled: ``(R,)`` the tokens that tags or words are predicted for; None for all.
        result: ``(B, C)`` for heads over sequences, ``(T, 2)`` for spans, ``(R, C)`` for tags, ``(R, V)`` for words.
    """
    family = model.config.model_type
    if kind == "span":
        return _through(model, PER_TOKEN, hidden)
    if kind in ("tagging", "masked"):
        rows = hidden if labelled is None else hidden[labelled]
        return _through(model, PER_TOKEN if kind == "tagging" else VOCABULARY[family], rows)
    pool = mean_pool if getattr(model.config, "classifier_pooling", "cls") == "mean" else first_tokens
    return POOLED[family](model, pool(hidden, bounds))


def output_layer(model: PreTrainedModel, num_labels: int) -> nn.Linear:
    """The linear layer that a head ends with; it is the last one of a model with as many outputs."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == num_labels]
    return linear[-1]


def _through(model: PreTrainedModel, names: tuple[str, ...], rows: Tensor) -> Tensor:
    """`rows` through the modules of these names, of those that the model has."""
    for name in names:
        if hasattr(model, name):
            rows = model.get_submodule(name)(rows)
    return rows


def mean_pool(hidden: Tensor, bounds: Bounds) -> Tensor:
    """Mean over the tokens of every sequence: ``(T, D) -> (B, D)``."""
    lengths = bounds.cu_seqlens.diff()
    tokens = torch.arange(len(hidden), dtype=torch.int32, device=hidden.device)
    of_token = torch.searchsorted(bounds.cu_seqlens[1:], tokens, right=True)
    sums = hidden.new_zeros(len(lengths), hidden.shape[1], dtype=torch.float32).index_add(0, of_token, hidden.float())
    return (sums / lengths[:, None]).to(hidden.dtype)


def first_tokens(hidden: Tensor, bounds: Bounds) -> Tensor:
    """[CLS] of every sequence: ``(T, D) -> (B, D)``."""
    return hidden[bounds.cu_seqlens[:-1]]


def _bert(model: PreTrainedModel, cls: Tensor) -> Tensor:
    pooled = model.base_model.get_submodule("pooler")(cls[:, None])
    return model.get_submodule("classifier")(model.get_submodule("dropout")(pooled))


def _albert(model: PreTrainedModel, cls: Tensor) -> Tensor:
    base = model.base_model
    pooled = base.get_submodule("pooler_activation")(base.get_submodule("pooler")(cls))
    return model.get_submodule("classifier")(model.get_submodule("dropout")(pooled))


def _roberta(model: PreTrainedModel, cls: Tensor) -> Tensor:
    return model.get_submodule("classifier")(cls[:, None])


def _distilbert(model: PreTrainedModel, cls: Tensor) -> Tensor:
    pooled = torch.relu(model.get_submodule("pre_classifier")(cls))
    return model.get_submodule("classifier")(model.get_submodule("dropout")(pooled))


def _modernbert(model: PreTrainedModel, pooled: Tensor) -> Tensor:
    return model.get_submodule("classifier")(model.get_submodule("drop")(model.get_submodule("head")(pooled)))


POOLED = {
    "bert": _bert,
    "ernie": _bert,
    "albert": _albert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "camembert": _roberta,
    "electra": _roberta,
    "distilbert": _distilbert,
    "modernbert": _modernbert,
}

# of heads over tokens, in the order in which every family that has them calls them
PER_TOKEN = ("head", "dropout", "drop", "classifier", "qa_outputs")
VOCABULARY = {
    "bert": ("cls",),
    "ernie": ("cls",),
    "albert": ("predictions",),
    "roberta": ("lm_head",),
    "xlm-roberta": ("lm_head",),
    "camembert": ("lm_head",),
    "electra": ("generator_predictions", "generator_lm_head"),
    "distilbert": ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    "modernbert": ("head", "decoder"),
}
