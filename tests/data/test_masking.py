"""Masked text: how much is hidden, by what, and that a batch's seed alone decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fastdistill.batch import Batch
from fastdistill.data.masking import Masking
from fastdistill.data.packing import Loader, Sequences, collate
from tests import tiny

WORDS = [f"w{i}" for i in range(195)]  # and five special tokens before them
MASK = 4


@pytest.fixture
def masking() -> Masking:
    return Masking.of(tiny.make_tokenizer(WORDS))


def text(count: int = 200, length: int = 50) -> Sequences:
    ids = np.random.default_rng(0).integers(5, 200, (count, length))
    ids[:, 0], ids[:, -1] = 2, 3
    return Sequences(ids.ravel(), np.arange(0, count * length + 1, length))


def test_15_percent_are_predicted_and_80_10_10_of_them_hidden(masking: Masking) -> None:
    batch = replace(collate(text(), np.arange(200)), seed=1)
    hidden = masking(batch)
    assert hidden.labelled is not None
    assert hidden.token_labels is not None
    rows, before, after = hidden.labelled, batch.input_ids, hidden.input_ids
    assert len(rows) == round(0.15 * 200 * 48)
    assert torch.equal(hidden.token_labels, before[rows])
    assert (rows.diff() > 0).all()
    assert before[rows].min() >= 5, "a special token is to be predicted"
    others = torch.ones(len(before), dtype=torch.bool)
    others[rows] = False
    assert torch.equal(before[others], after[others])
    shares = [
        (after[rows] == MASK),
        (after[rows] == before[rows]),
        (after[rows] != MASK) & (after[rows] != before[rows]),
    ]
    assert [float(share.float().mean()) for share in shares] == pytest.approx([0.8, 0.1, 0.1], abs=0.03)
    assert (after[rows][after[rows] != MASK] >= 5).all(), "a special token stands in for a word"
    spread = (rows % 50).float()
    assert spread.min() == 1
    assert spread.max() == 48


def test_the_seed_alone_decides(masking: Masking) -> None:
    loader = Loader(text(), 500, seed=3, masking=masking)
    first = [batch for _, (_, batch) in zip(range(30), loader.batches(), strict=False)]
    resumed = [batch for _, (_, batch) in zip(range(10), loader.batches(start=20), strict=False)]
    other_rank = [batch for _, (_, batch) in zip(range(15), loader.batches(start=1, stride=2), strict=False)]
    for one, same in [*zip(first[20:], resumed, strict=True), *zip(first[1::2], other_rank, strict=True)]:
        assert torch.equal(one.input_ids, same.input_ids)
        assert torch.equal(one.labelled, same.labelled)
    plain = [batch for _, (_, batch) in zip(range(30), Loader(text(), 500, seed=3).batches(), strict=False)]
    assert all(
        a.seed == b.seed and not torch.equal(a.input_ids, b.input_ids) for a, b in zip(first, plain, strict=True)
    )


def test_a_text_of_one_word_has_one_to_predict_and_one_of_none_has_none(masking: Masking) -> None:
    def batch(ids: list[int]) -> Batch:
        return replace(collate(Sequences(np.array(ids), np.array([0, len(ids)])), np.array([0])), seed=0)

    assert masking(batch([2, 7, 3])).labelled.tolist() == [1]  # type: ignore[union-attr]
    assert masking(batch([2, 3])).labelled.tolist() == []  # type: ignore[union-attr]


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    tokenizer: PreTrainedTokenizerFast = tiny.make_tokenizer(WORDS)
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="the tokenizer has no mask token"):
        Masking.of(tokenizer)
