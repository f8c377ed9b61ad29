"""Batch: a padding-free batch of token sequences, the only form in which text travels from the loader to the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B sequences laid end to end in T tokens; no pad token exists.

    Sequences are ordered by length, so that attention can take neighbours of equal or like length as one dense block.

    Shapes:
        input_ids, position_ids, token_type_ids: ``(T,)`` int64; positions count from 0 in every sequence.
        cu_seqlens: ``(B + 1,)`` int32, cumulative lengths: sequence b is ``[cu_seqlens[b], cu_seqlens[b + 1])``.
        max_seqlen: the longest length, a Python int.
        labels: ``(B,)`` int64 classes or float32 targets, ``(B, C)`` float32 of 0 and 1, or ``(B, 2)`` int64 first and
            last token of an answer, counted inside its sequence; None where there are none.
        labelled: ``(R,)`` int64, ascending: the tokens that tags or masked words are predicted for; None for all.
        token_labels: ``(R,)`` int64 classes of those; None where there are none.
        indices: ``(B,)`` which sequences of the data these are, on the host; None where they come from no data.
        seed: of its dropout; None where that goes on with the random numbers that follow.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    labels: Tensor | None = None
    labelled: Tensor | None = None
    token_labels: Tensor | None = None
    indices: np.ndarray | None = None
    seed: int | None = None

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def num_sequences(self) -> int:
        return self.cu_seqlens.numel() - 1

    @property
    def num_pairs(self) -> Tensor:
        """``sum_b n_b^2``, on the batch's device."""
        return self.cu_seqlens.diff().long().square().sum()

    def num_places(self, padded: bool) -> int:
        """Tokens, and where it is `padded` what fills every sequence up to `max_seqlen`."""
        return self.num_sequences * self.max_seqlen if padded else self.num_tokens

    def split(self, most: float, padded: bool = False) -> list[Batch]:
        """Pieces of whole sequences, each of at most `most` places (`num_places`), or of one sequence that has more.

        `max_seqlen` stays that of the whole, which some losses average over.
        """
        if self.num_places(padded) <= most:
            return [self]  # and the device is not waited for
        bounds = self.cu_seqlens.tolist()
        places = [b * self.max_seqlen for b in range(len(bounds))] if padded else bounds
        cuts = [0]
        for b in range(1, self.num_sequences):
            if places[b + 1] - places[cuts[-1]] > most:
                cuts.append(b)
        pieces = []
        for first, last in pairwise([*cuts, self.num_sequences]):
            tokens, rows = slice(bounds[first], bounds[last]), slice(first, last)
            inside = slice(0, 0)
            if self.labelled is not None:
                edges = torch.tensor([tokens.start, tokens.stop], device=self.labelled.device)
                inside = slice(*torch.searchsorted(self.labelled, edges).tolist())
            pieces.append(
                replace(
                    self,
                    input_ids=self.input_ids[tokens],
                    position_ids=self.position_ids[tokens],
                    token_type_ids=self.token_type_ids[tokens],
                    cu_seqlens=self.cu_seqlens[first : last + 1] - bounds[first],
                    labels=None if self.labels is None else self.labels[rows],
                    labelled=None if self.labelled is None else self.labelled[inside] - tokens.start,
                    token_labels=None if self.token_labels is None else self.token_labels[inside],
                    indices=None if self.indices is None else self.indices[rows],
                )
            )
        return pieces

    def changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `change` of every tensor."""
        changes: dict[str, Any] = {name: change(x) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **changes)

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return self.changed(lambda x: x.to(device, non_blocking=True))

    def copy_(self, other: Batch) -> None:
        """Take over what the tensors of a batch of the same shape hold."""
        for name, x in vars(self).items():
            if isinstance(x, Tensor):
                x.copy_(getattr(other, name))

    def filled_up(self, num_sequences: int, max_seqlen: int) -> Batch:
        """The same tokens, and empty sequences behind them, for losses that count tokens alone."""
        ends = self.cu_seqlens[-1:].expand(num_sequences - self.num_sequences)
        bounds = torch.cat([self.cu_seqlens, ends])
        return replace(
            self, cu_seqlens=bounds, max_seqlen=max_seqlen, labels=None, labelled=None, token_labels=None, indices=None
        )


def ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """`batches` on `device`; a GPU copies the next one, on a stream of its own, while it works on the last."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copies = torch.cuda.Stream(device)
    following: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            current, following = following, batch.changed(Tensor.pin_memory).to(device)
        if current is not None:
            yield current
        torch.cuda.current_stream(device).wait_stream(copies)
        for value in vars(following).values():
            if isinstance(value, Tensor):
                value.record_stream(torch.cuda.current_stream(device))
    if following is not None:
        yield following
