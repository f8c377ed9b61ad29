"""A tokenizer small enough to read, and real data where a checkout has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from tests import tiny

WORDS = ["a", "b", "c", "d", "e", "f", "g", "good", "bad", "film", "the", "was", "it", "is", "not", "very", "long"]


@pytest.fixture
def make_tokenizer() -> Callable[[list[str]], PreTrainedTokenizerFast]:
    return tiny.make_tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.make_tokenizer(WORDS)
