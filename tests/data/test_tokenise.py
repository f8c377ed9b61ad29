"""What the tokenizer is asked to do."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace

import pytest
from transformers import PreTrainedTokenizerFast

from fastdistill.data import tokenise
from fastdistill.data.tokenise import check_tokenizer, cut_documents, truncate_examples


def test_pairs_are_encoded_as_the_tokenizer_does_it(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenise, "EXAMPLES_AT_ONCE", 2)
    texts, pairs = ["a b", "the film", "c"], ["good", "was bad", "d e f"]
    sequences = truncate_examples(tokenizer, texts, pairs, 16)
    expected = tokenizer(texts, pairs)
    assert sequences.input_ids.tolist() == list(chain(*expected["input_ids"]))
    assert sequences.token_type_ids.tolist() == list(chain(*expected["token_type_ids"]))
    assert sequences.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]
    assert set(sequences.token_type_ids.tolist()) == {0, 1}


def test_truncation_is_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    sequences = truncate_examples(tokenizer, ["a b c d", "a b", "a b c"], None, 5)
    assert sequences.lengths.tolist() == [5, 4, 5]
    assert dict(sequences.counts) == {"examples": 3, "tokens": 14, "truncated": 1}


def test_token_types_are_left_out_where_the_model_has_none(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert truncate_examples(tokenizer, ["a"], ["b"], 8).token_type_ids is None


def test_documents_are_cut_without_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    a, b, c, d, e = tokenizer("a b c d e", add_special_tokens=False)["input_ids"]
    assert cut_documents(tokenizer, ["a b c d e", "a"], 4) == [[2, a, b, 3], [2, c, d, 3], [2, e, 3], [2, a, 3]]
    assert cut_documents(tokenizer, [], 4) == []


def test_no_room_for_text(tokenizer: PreTrainedTokenizerFast) -> None:
    check_tokenizer(tokenizer, 4, pair=True)
    with pytest.raises(ValueError, match="max_length=3 leaves no room for text beside 3 special tokens; set it to 4"):
        check_tokenizer(tokenizer, 3, pair=True)


def test_slow_tokenizers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"SimpleNamespace is a slow tokenizer; use a model .* tokenizer\.json"):
        check_tokenizer(SimpleNamespace(is_fast=False), 8, pair=False)
