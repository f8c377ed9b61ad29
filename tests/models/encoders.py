"""Tiny random encoders of every family, and ragged batches for them."""

from __future__ import annotations

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from fastdistill.batch import Batch
from fastdistill.models.capture import ATTENTION
from fastdistill.models.encoder import Encoder

VOCAB = 97
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "num_labels": 3,
    "initializer_range": 0.3,  # far from zero, so that attention maps are far from flat
}
DISTILBERT = {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 80, "max_position_embeddings": 64}
EXTRA: dict[str, dict[str, object]] = {
    "bert": {},
    "ernie": {},
    "roberta": {"type_vocab_size": 1, "pad_token_id": 1},
    "xlm-roberta": {"type_vocab_size": 1, "pad_token_id": 1},
    "electra": {"embedding_size": 24},
    "albert": {"embedding_size": 24},
    "distilbert": {"vocab_size": VOCAB, "num_labels": 3, "initializer_range": 0.3, **DISTILBERT},
    "modernbert": {"pad_token_id": 0, "local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 2},
    "modernbert-decoder": {"pad_token_id": 0},
    "mpnet": {"pad_token_id": 1},
    "data2vec-text": {"pad_token_id": 1},
    "camembert": {"pad_token_id": 1},
    "deberta-v2": {"relative_attention": True, "pos_att_type": "c2p|p2c", "position_buckets": 8},
}
CAPTURED = ["bert", "ernie", "roberta", "xlm-roberta", "camembert", "electra", "albert", "distilbert", "modernbert"]
UNCAPTURED = ["mpnet", "deberta-v2"]
LENGTHS = {"sorted": [9, 9, 30, 30, 30, 31], "unsorted": [9, 1, 31, 9, 4, 4, 30]}


def tiny_config(family: str, **changes: object) -> PretrainedConfig:
    shape = {} if family == "distilbert" else SHAPE
    return AutoConfig.for_model(family, **{**shape, **EXTRA[family], **changes})


def tiny_model(family: str, head: bool, attn_implementation: str = ATTENTION, **changes: object) -> PreTrainedModel:
    """The same weights for the same arguments, whatever the attention implementation."""
    torch.manual_seed(0)
    auto = AutoModelForSequenceClassification if head else AutoModel
    model = auto.from_config(tiny_config(family, **changes), attn_implementation=attn_implementation)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # biases of 0 and gains of 1, the defaults, would hide mistakes in them
            torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.1)
    return model.eval()


def tiny_encoder(family: str, head: bool = False, **changes: object) -> Encoder:
    return Encoder(tiny_model(family, head, **changes))


def make_batch(lengths: list[int], seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.cat([torch.arange(n) for n in lengths])
    return Batch(
        input_ids=torch.randint(5, VOCAB, (sum(lengths),), generator=generator),
        position_ids=positions,
        token_type_ids=(positions > 3).long(),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
    )


def split(batch: Batch, packed: torch.Tensor) -> list[torch.Tensor]:
    """The rows of each sequence."""
    return list(packed.split(batch.cu_seqlens.diff().tolist()))
