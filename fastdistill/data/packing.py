"""Packing: tokenised sequences in, padding-free batches out, in an order that a seed decides."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count, pairwise

import numpy as np
import torch

from fastdistill.batch import Batch
from fastdistill.data.gold import Gold

AHEAD = 512  # sequences among which one is sought that makes a batch full
NO_LABEL = -100


@dataclass(frozen=True, eq=False)
class Sequences:
    """N tokenised sequences laid end to end, in memory or memory-mapped.

    Shapes:
        input_ids: ``(T,)`` any integer type.
        offsets: ``(N + 1,)`` int64: sequence n is ``[offsets[n], offsets[n + 1])``.
        token_type_ids: ``(T,)``, or None where all are 0.
        labels: ``(N,)`` int64 classes or float32 targets, ``(N, C)`` float32 of 0 and 1, ``(N, 2)`` int64 first and
            last token of an answer, counted inside its sequence; or None.
        token_labels: ``(T,)`` int64 classes, `NO_LABEL` for a token that takes no part; or None.
        gold: what predictions are compared with; None where nothing is to be predicted.
        counts: what was read, skipped and truncated, for the report.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    token_type_ids: np.ndarray | None = None
    labels: np.ndarray | None = None
    token_labels: np.ndarray | None = None
    gold: Gold | None = None
    counts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """``(N,)`` tokens of every sequence."""
        return np.diff(self.offsets)

    def fingerprint(self) -> str:
        """Changes when a token does, or the label of one."""
        digest = hashlib.sha256()
        for part in (self.offsets, self.input_ids, self.token_type_ids, self.token_labels):
            if part is not None:
                digest.update(f"{part.dtype} {part.shape}".encode())
                digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def take(self, rows: np.ndarray) -> Sequences:
        """The sequences `rows`, in that order, in memory; without what belongs to the whole alone."""
        tokens, offsets = places(self.offsets, rows)
        types, labels, tags = self.token_type_ids, self.labels, self.token_labels
        return Sequences(
            input_ids=self.input_ids[tokens],
            offsets=offsets,
            token_type_ids=None if types is None else types[tokens],
            labels=None if labels is None else labels[rows],
            token_labels=None if tags is None else tags[tokens],
        )


def places(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where what belongs to the sequences `rows` lies, end to end, and the offsets that it has so.

    Shapes:
        offsets: ``(N + 1,)``: that of sequence n is ``[offsets[n], offsets[n + 1])``.
        rows: ``(R,)`` sequences.
        result: ``(P,)`` places and ``(R + 1,)`` offsets.
    """
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    ends = np.concatenate(([0], np.cumsum(lengths)))
    return np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths), ends


@dataclass(frozen=True, eq=False)
class Loader:
    """Batches over consecutive epochs; batch n and its seed depend on the sequences, the budget, the seed and n alone.

    Args:
        sequences: what to draw from.
        tokens_per_batch: most tokens in a batch.
        seed: decides the order, and the seeds of the batches.
        masking: hides tokens of every batch, which are to be predicted then; it draws from the batch's seed.
    """

    sequences: Sequences
    tokens_per_batch: int
    seed: int
    masking: Callable[[Batch], Batch] | None = None

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The sequences in each batch of `epoch`; see `plan`."""
        return plan(self.sequences.lengths, tokens_per_batch=self.tokens_per_batch, seed=self.seed, epoch=epoch)

    def num_batches(self, epochs: float) -> int:
        """Batches in that many epochs; of a part of an epoch the nearest whole number, at least 1.

        Raises:
            ValueError: `epochs` is not a positive number, or a sequence is longer than the budget.
        """
        if not (0 < epochs < math.inf):
            raise ValueError(f"epochs is {epochs}; it must be a positive number")
        part, whole = math.modf(epochs)
        total = sum(len(self.plan(epoch)) for epoch in range(int(whole)))
        return total + (max(1, round(part * len(self.plan(int(whole))))) if part else 0)

    def batches(self, start: int = 0, stride: int = 1) -> Iterator[tuple[int, Batch]]:
        """Endless ``(epoch, batch)`` pairs: batches `start`, `start + stride`, ..., counted over all epochs.

        The others are planned but not read, so that a run resumes exactly and at once.
        """
        before = 0  # batches of the epochs before
        for epoch in count():
            batches = self.plan(epoch)
            for number in range(start, before + len(batches), stride):
                yield epoch, self._batch(number, batches[number - before])
                start = number + stride
            before += len(batches)

    def largest(self, padded: bool) -> Batch:
        """Of the first epoch a batch that takes most memory: of most places where it is `padded`, else of most pairs of
        tokens in its sequences."""
        lengths = self.sequences.lengths

        def size(rows: np.ndarray) -> int:
            return len(rows) * lengths[rows].max() if padded else np.square(lengths[rows]).sum()

        return self._batch(0, max(self.plan(0), key=size))

    def _batch(self, number: int, rows: np.ndarray) -> Batch:
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)[0])
        batch = replace(collate(self.sequences, rows), seed=seed)
        return batch if self.masking is None else self.masking(batch)


def in_order(sequences: Sequences, tokens_per_batch: int) -> Iterator[Batch]:
    """Every sequence once, shortest first.

    Raises:
        ValueError: a sequence is longer than the budget.
    """
    order = np.argsort(sequences.lengths, kind="stable")
    for indices in _cut(order, sequences.lengths, tokens_per_batch):
        yield collate(sequences, indices)


def plan(lengths: np.ndarray, *, tokens_per_batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Indices of the sequences in each batch of an epoch: every sequence once, in random order.

    The order is decided by `seed` and `epoch` alone.

    Args:
        lengths: ``(N,)`` tokens of every sequence.
        tokens_per_batch: most tokens in a batch.
        seed: seed of the run.
        epoch: number of the epoch, from 0.

    Raises:
        ValueError: there are no sequences, or one is longer than the budget.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(lengths))
    return _cut(order, lengths, tokens_per_batch, AHEAD)


def collate(sequences: Sequences, indices: np.ndarray) -> Batch:
    """The sequences `indices` as one Batch, ordered by length (those of equal length in the order given)."""
    indices = np.asarray(indices)
    lengths = sequences.offsets[indices + 1] - sequences.offsets[indices]
    indices = indices[np.argsort(lengths, kind="stable")]
    taken = sequences.take(indices)
    cu_seqlens, input_ids, types = taken.offsets, taken.input_ids.astype(np.int64), taken.token_type_ids
    position_ids = np.arange(len(input_ids)) - np.repeat(cu_seqlens[:-1], taken.lengths)
    tags = taken.token_labels
    labelled = None if tags is None else np.flatnonzero(tags != NO_LABEL)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        token_type_ids=torch.from_numpy(np.zeros_like(input_ids) if types is None else types.astype(np.int64)),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(taken.lengths[-1]),
        labels=None if taken.labels is None else torch.from_numpy(taken.labels),
        labelled=None if labelled is None else torch.from_numpy(labelled),
        token_labels=None if tags is None else torch.from_numpy(tags[labelled]),
        indices=indices,
    )


def _cut(order: np.ndarray, lengths: np.ndarray, tokens_per_batch: int, ahead: int = 0) -> list[np.ndarray]:
    """Cut `order` into runs of at most `tokens_per_batch` tokens.

    Every cut aims at an even share of the tokens that are left, so that no small rest remains at the end. To meet it,
    some of the `ahead` next sequences join the batch, or take the place of others that wait in their stead. Few numbers
    of tokens occur so, which is what CUDA graphs want.
    """
    if len(order) == 0:
        raise ValueError("there are no sequences to make batches of")
    longest = int(lengths.max())
    if longest > tokens_per_batch:
        raise ValueError(
            f"a sequence of {longest} tokens does not fit into tokens_per_batch={tokens_per_batch}; "
            f"raise tokens_per_batch to {longest} or more, or lower max_length"
        )
    order, lengths = order.copy(), lengths[order]
    ends = np.cumsum(lengths)
    cuts, done, total = [0], 0, int(ends[-1])
    while done < total:
        left = total - done
        target = done - (-left // -(-left // tokens_per_batch))
        start, cut = cuts[-1], max(int(np.searchsorted(ends, target, side="right")), cuts[-1] + 1)
        while len(soon := lengths[cut : cut + ahead]) and (room := target - int(ends[cut - 1])) > 0:
            new, into = np.unique(soon, return_index=True)
            old, out = np.unique(np.append(0, lengths[start:cut]), return_index=True)  # nothing, or one of the batch
            longer = new - old[:, None]
            i, j = np.unravel_index(np.where(longer <= room, longer, 0).argmax(), longer.shape)
            if longer[i, j] not in range(1, room + 1):
                break
            here, there = int(start + out[i] - 1 if i else cut), int(cut + into[j])
            cut += i == 0
            order[[here, there]] = order[[there, here]]
            lengths[[here, there]] = lengths[[there, here]]
            ends[start : there + 1] = done + np.cumsum(lengths[start : there + 1])
        if cut < len(ends) and ends[cut] - done <= tokens_per_batch and ends[cut] - target < target - ends[cut - 1]:
            cut += 1
        cuts.append(cut)
        done = int(ends[cut - 1])
    return [order[start:end] for start, end in pairwise(cuts)]
