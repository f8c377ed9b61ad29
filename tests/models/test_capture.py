"""Taps unite, and without a recorder the attention function is that of transformers' sdpa."""

from __future__ import annotations

import pytest
import torch
from encoders import VOCAB, tiny_model

from fastdistill.models.attention import Bounds
from fastdistill.models.capture import Recorder, Taps, attention
from fastdistill.models.encoder import Encoder


def test_union_of_taps() -> None:
    a = Taps(hidden=frozenset({1}), q=frozenset({2}), k=frozenset({3}))
    b = Taps(hidden=frozenset({0}), v=frozenset({4}), logits=True)
    assert a | b == Taps(frozenset({0, 1}), frozenset({2}), frozenset({3}), frozenset({4}), True)
    assert a | Taps() == a
    assert (a | b).attention == {2, 3, 4}


@torch.no_grad()
def test_ordinary_calls_equal_sdpa(family: str) -> None:
    ids = torch.randint(5, VOCAB, (3, 30), generator=torch.Generator().manual_seed(0))
    padding = torch.ones_like(ids)
    padding[1, 20:] = 0
    ours, theirs = tiny_model(family, head=True), tiny_model(family, head=True, attn_implementation="sdpa")
    for mask in (None, padding):
        torch.testing.assert_close(ours(ids, attention_mask=mask).logits, theirs(ids, attention_mask=mask).logits)


@pytest.mark.parametrize(("family", "changes"), [("bert", {"is_decoder": True}), ("modernbert-decoder", {})])
def test_decoders_are_refused(family: str, changes: dict[str, object]) -> None:
    model = tiny_model(family, head=False, **changes)
    with pytest.raises(ValueError, match="is causal: only encoders"):
        Encoder(model)


def test_the_recorder_keeps_each_operand_by_order_of_call() -> None:
    bounds = Bounds(torch.tensor([0, 2, 5], dtype=torch.int32), 3)
    recorder = Recorder(bounds, Taps(q=frozenset({1}), k=frozenset({2}), v=frozenset({1, 2})))
    calls = torch.randn(2, 3, 1, 4, 5, 6, generator=torch.Generator().manual_seed(0))  # call, q/k/v, 1, H, T, d
    for query, key, value in calls:
        attention(torch.nn.Identity(), query, key, value, None, scaling=0.5, recorder=recorder)
    (q, _, v), (_, k, v_2) = calls[:, :, 0].transpose(2, 3)
    got = recorder.captured
    assert got.scaling == 0.5
    for kept, expected in ((got.q, {1: q}), (got.k, {2: k}), (got.v, {1: v, 2: v_2})):
        assert kept.keys() == expected.keys()
        assert all(torch.equal(kept[layer], expected[layer]) for layer in expected)
