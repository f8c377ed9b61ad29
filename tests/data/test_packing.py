"""Packing: every sequence once, within the budget, in an order that only seed and epoch decide."""

from __future__ import annotations

import math
import random
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdistill.batch import Batch
from fastdistill.data.packing import Loader, Sequences, _cut, collate, in_order, plan

BUDGET = 64
few = settings(max_examples=60, derandomize=True, deadline=None)
lengths_lists = st.lists(st.integers(1, BUDGET), min_size=1, max_size=300)


def make_sequences(lengths: list[int], labels: np.ndarray | None = None, types: bool = False) -> Sequences:
    offsets = np.cumsum([0, *lengths])
    return Sequences(
        input_ids=np.arange(5, 5 + offsets[-1], dtype=np.uint16),
        offsets=offsets,
        token_type_ids=np.arange(offsets[-1], dtype=np.int8) % 2 if types else None,
        labels=labels,
    )


def random_lengths(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, BUDGET // 2, n)


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one.input_ids, other.input_ids) and torch.equal(one.cu_seqlens, other.cu_seqlens)


@few
@given(lengths_lists, st.integers(0, 5), st.integers(0, 3))
def test_every_sequence_once_and_within_the_budget(lengths: list[int], seed: int, epoch: int) -> None:
    batches = plan(np.array(lengths), tokens_per_batch=BUDGET, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(0 < np.array(lengths)[batch].sum() <= BUDGET for batch in batches)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = random_lengths(500)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(plan(lengths, tokens_per_batch=BUDGET, seed=seed, epoch=epoch)).tolist()

    first = order(0, 0)
    np.random.seed(7)
    random.seed(7)
    torch.manual_seed(7)
    assert order(0, 0) == first
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(o) for o in orders}) == 9
    assert order(0, 0)[:6] == [221, 434, 109, 334, 456, 71], "the order is part of what a seed promises"


def test_batches_are_full_and_of_few_sizes() -> None:
    lengths, budget = random_lengths(5000), 8 * BUDGET
    batches = plan(lengths, tokens_per_batch=budget, seed=0, epoch=0)
    totals = np.array([lengths[batch].sum() for batch in batches])
    assert totals.min() >= budget / 2, "a small rest is left over"
    assert len(batches) <= 1.005 * lengths.sum() / budget + 1
    _, often = np.unique(totals, return_counts=True)
    assert np.sort(often)[-2:].sum() > 0.95 * len(batches), "batches of many sizes cost a recording, or a program, each"


def test_eight_recordings_serve_nearly_all_batches() -> None:
    lengths = np.random.default_rng(0).lognormal(3.0, 0.6, 60000).round().clip(4, 64).astype(int)
    totals = [lengths[batch].sum() for batch in plan(lengths, tokens_per_batch=16384, seed=1, epoch=0)]
    _, often = np.unique(totals, return_counts=True)
    assert np.sort(often)[-8:].sum() > 0.95 * len(totals)


def test_lengths_are_mixed_as_chance_mixes_them() -> None:
    """For batches of like lengths teach less."""
    lengths, budget = random_lengths(5000), 8 * BUDGET
    batches = plan(lengths, tokens_per_batch=budget, seed=0, epoch=0)
    means = np.array([lengths[b].mean() for b in batches])
    by_chance = np.array([part.mean() for part in np.array_split(lengths, len(batches))])
    assert 0.8 < means.std() / by_chance.std() < 1.25
    assert np.mean([lengths[b].std() for b in batches]) == pytest.approx(lengths.std(), rel=0.05)
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.15, "batches resemble their neighbours"
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.15, "an epoch drifts"


def test_a_sequence_over_its_even_share_is_a_batch_by_itself() -> None:
    assert [batch.tolist() for batch in _cut(np.arange(3), np.array([60, 10, 10]), BUDGET)] == [[0], [1, 2]]


def test_a_sequence_over_the_budget_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"65 tokens does not fit into tokens_per_batch=64; raise tokens_per_batch to 65"
    ):
        plan(np.array([3, 65]), tokens_per_batch=BUDGET, seed=0, epoch=0)
    with pytest.raises(ValueError, match="no sequences"):
        plan(np.array([], np.int64), tokens_per_batch=BUDGET, seed=0, epoch=0)


@pytest.mark.parametrize("types", [False, True])
def test_collate_is_the_sequences_end_to_end(types: bool) -> None:
    lengths = [4, 1, 3, 4, 2]
    sequences = make_sequences(lengths, labels=np.array([10, 11, 12, 13, 14]), types=types)
    batch = collate(sequences, np.array([3, 0, 4, 1]))
    expected = [1, 4, 3, 0]  # by length; 3 and 0 are of equal length and keep their order
    ids, all_types, positions = [], [], []
    for index in expected:
        span = slice(sequences.offsets[index], sequences.offsets[index + 1])
        ids += sequences.input_ids[span].tolist()
        all_types += sequences.token_type_ids[span].tolist() if types else [0] * lengths[index]
        positions += range(lengths[index])
    assert batch.input_ids.tolist() == ids
    assert batch.token_type_ids.tolist() == all_types
    assert batch.position_ids.tolist() == positions
    assert batch.cu_seqlens.tolist() == [0, 1, 3, 7, 11]
    assert batch.labels.tolist() == [11, 14, 13, 10]
    assert batch.max_seqlen == 4
    assert isinstance(batch.max_seqlen, int)
    assert batch.cu_seqlens.dtype == torch.int32
    assert {t.dtype for t in (batch.input_ids, batch.position_ids, batch.token_type_ids)} == {torch.int64}


def test_labels_keep_their_kind() -> None:
    floats = make_sequences([2, 2], labels=np.array([0.5, 1.5], np.float32))
    assert collate(floats, np.array([0, 1])).labels.dtype == torch.float32
    assert collate(make_sequences([2, 2]), np.array([0])).labels is None


@few
@given(st.integers(0, 40), st.integers(1, 12))
def test_a_run_resumes_at_any_batch_and_a_rank_draws_its_own(start: int, stride: int) -> None:
    loader = Loader(make_sequences(random_lengths(40).tolist()), BUDGET, seed=3)
    whole = list(islice(loader.batches(), 45))
    mine = whole[start::stride]
    rest = list(islice(loader.batches(start, stride), len(mine)))
    assert whole[-1][0] >= 2, "the test must cross epochs"
    assert [(epoch, batch.seed) for epoch, batch in rest] == [(epoch, batch.seed) for epoch, batch in mine]
    assert all(equal(one, other) for (_, one), (_, other) in zip(rest, mine, strict=True))
    assert len({batch.seed for _, batch in whole}) == 45


def test_epochs_are_counted_exactly() -> None:
    loader = Loader(make_sequences(random_lengths(200).tolist()), BUDGET, seed=0)
    by_epoch = [0, 0, 0]
    for epoch, _ in loader.batches():
        if epoch == 3:
            break
        by_epoch[epoch] += 1
    assert loader.num_batches(3) == sum(by_epoch)
    assert loader.num_batches(0.5) == round(by_epoch[0] / 2)
    assert loader.num_batches(2.25) == by_epoch[0] + by_epoch[1] + round(by_epoch[2] / 4)
    assert loader.num_batches(1e-9) == 1


@pytest.mark.parametrize("epochs", [0, -1.0, math.nan, math.inf])
def test_epochs_must_be_positive(epochs: float) -> None:
    with pytest.raises(ValueError, match=f"epochs is {epochs}"):
        Loader(make_sequences([2]), BUDGET, seed=0).num_batches(epochs)


def test_in_order_gives_predictions_their_place_back() -> None:
    lengths = random_lengths(100)
    sequences = make_sequences(lengths.tolist(), labels=np.arange(100))
    predicted = np.full(100, -1)
    longest_so_far = 0
    for batch in in_order(sequences, BUDGET):
        indices = batch.indices
        assert indices is not None
        assert batch.labels is not None
        assert batch.num_tokens <= BUDGET
        assert lengths[indices].min() >= longest_so_far
        longest_so_far = batch.max_seqlen
        predicted[indices] = batch.labels.numpy()
    assert predicted.tolist() == list(range(100))


@pytest.mark.parametrize("padded", [True, False])
def test_the_largest_batch_is_that_of_most_places_or_pairs(padded: bool) -> None:
    lengths = random_lengths(400)
    loader = Loader(make_sequences(lengths.tolist()), 2 * BUDGET, seed=1)
    largest = loader.largest(padded)
    batches = [batch for (_, batch), _ in zip(loader.batches(), loader.plan(0), strict=False)]

    def size(batch: Batch) -> int:
        return batch.num_places(True) if padded else int(batch.num_pairs)

    assert size(largest) == max(map(size, batches)) > size(batches[0])
    assert any(equal(largest, batch) for batch in batches)
