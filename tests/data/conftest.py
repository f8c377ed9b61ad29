"""A tokenizer small enough to read, and real data where a checkout has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests import tiny

WORDS = ["a", "b", "c", "d", "e", "f", "g", "good", "bad", "film", "the", "was", "it", "is", "not", "very", "long"]


@pytest.fixture
def make_tokenizer() -> Callable[[list[str]], PreTrainedTokenizerFast]:
    return tiny.make_tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.make_tokenizer(WORDS)


@pytest.fixture
def pieces() -> PreTrainedTokenizerFast:
    """BERT's way of cutting words into pieces; it keeps nothing of a zero-width space."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] film ##s ##ed good paris lon ##don in ."
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words.split())}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
