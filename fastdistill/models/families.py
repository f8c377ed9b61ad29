"""What differs between encoder families once attention is captured: position ids, token types, classification heads."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from fastdistill.models.attention import Bounds


def position_offset(base: nn.Module) -> int:
    """What RoBERTa and its kin count positions from: one past the padding row of their position table; else 0."""
    table = getattr(getattr(base, "embeddings", None), "position_embeddings", None)
    padding_idx = getattr(table, "padding_idx", None)
    return 0 if padding_idx is None else padding_idx + 1


def has_token_types(base: nn.Module) -> bool:
    """Whether the model tells the two texts of a pair apart; RoBERTa has a token type table of a single row."""
    accepts = "token_type_ids" in inspect.signature(base.forward).parameters
    return accepts and getattr(base.config, "type_vocab_size", 0) > 1


def intermediate_size_name(config: PretrainedConfig) -> str:
    """The configuration's name for the FFN width."""
    return "hidden_dim" if config.model_type == "distilbert" else "intermediate_size"


def mean_pool(hidden: Tensor, bounds: Bounds) -> Tensor:
    """Mean over the tokens of every sequence: ``(T, D) -> (B, D)``."""
    lengths = bounds.cu_seqlens.diff()
    tokens = torch.arange(len(hidden), dtype=torch.int32, device=hidden.device)
    of_token = torch.searchsorted(bounds.cu_seqlens[1:], tokens, right=True)
    sums = hidden.new_zeros(len(lengths), hidden.shape[1], dtype=torch.float32).index_add(0, of_token, hidden.float())
    return (sums / lengths[:, None]).to(hidden.dtype)


def has_known_head(model: PreTrainedModel) -> bool:
    """Whether `classify` knows the head of this family."""
    return model.config.model_type in HEADS


def classify(model: PreTrainedModel, hidden: Tensor, bounds: Bounds) -> Tensor:
    """Logits ``(B, C)`` of a sequence-classification model from its packed last hidden states ``(T, D)``."""
    pool = mean_pool if getattr(model.config, "classifier_pooling", "cls") == "mean" else first_tokens
    return HEADS[model.config.model_type](model, pool(hidden, bounds))


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


HEADS = {
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


VOCABULARY_HEADS = {
    "bert": ("cls",),
    "ernie": ("cls",),
    "albert": ("predictions",),
    "roberta": ("lm_head",),
    "xlm-roberta": ("lm_head",),
    "camembert": ("lm_head",),
    "mpnet": ("lm_head",),
    "electra": ("generator_predictions", "generator_lm_head"),
    "distilbert": ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    "modernbert": ("head", "decoder"),
}


def predict_tokens(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits ``(R, V)`` of a masked language model from R of its last hidden states ``(R, D)``."""
    for name in VOCABULARY_HEADS[model.config.model_type]:
        hidden = model.get_submodule(name)(hidden)
    return hidden


def dropout_names(config: PretrainedConfig) -> list[str]:
    """The fields of `config` that hold dropout probabilities inside the encoder; the head's is left alone."""
    bert = ["hidden_dropout_prob", "attention_probs_dropout_prob"]
    others = ["dropout", "attention_dropout", "embedding_dropout", "mlp_dropout"]  # DistilBERT, ModernBERT
    return [name for name in bert + others if hasattr(config, name)]
