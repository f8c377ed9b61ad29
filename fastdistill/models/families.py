"""What differs between encoder families once attention is captured: position ids, token types, names."""

from __future__ import annotations

import inspect

from torch import nn
from transformers import PretrainedConfig


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


def dropout_names(config: PretrainedConfig) -> list[str]:
    """The fields of `config` that hold dropout probabilities inside the encoder; the head's is left alone."""
    bert = ["hidden_dropout_prob", "attention_probs_dropout_prob"]
    others = ["dropout", "attention_dropout", "embedding_dropout", "mlp_dropout"]  # DistilBERT, ModernBERT
    return [name for name in bert + others if hasattr(config, name)]
