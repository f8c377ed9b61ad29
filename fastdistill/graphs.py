"""CUDA graphs: the passes of a batch launched as one, where a batch of as many tokens came before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdistill.batch import Batch

MOST = 8  # graphs; a batch of yet another shape is run as it is
SEQUENCES = 64  # batches are filled up with empty sequences to a multiple of it


@dataclass(frozen=True)
class Graph:
    """Recorded passes: where they read, where they write, and how they are run again."""

    batch: Batch
    values: dict[str, Tensor]
    replay: Callable[[], None]


class Graphs:
    """Runs `passes` on batches, recorded once for every shape.

    Args:
        passes: forward and backward pass of a batch: adds to the gradients, returns values by name. It must not depend
            on how many sequences there are, for some may be empty, or on `max_seqlen`, which is always `longest`.
        parameters: whose gradients those are; from the first call on these stay where they are.
        longest: tokens of the longest sequence that may come.
    """

    def __init__(
        self, passes: Callable[[Batch], dict[str, Tensor]], parameters: Sequence[Tensor], longest: int
    ) -> None:
        self.passes, self.parameters, self.longest = passes, parameters, longest
        self.graphs: dict[tuple[int, int], Graph] = {}
        self.pool: Any = None  # of memory, which all graphs work in, for nothing of it outlives a replay

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """What `passes` returns; the values last until the next call."""
        batch = batch.filled_up(-(-batch.num_sequences // SEQUENCES) * SEQUENCES, self.longest)
        shape = (batch.num_tokens, batch.num_sequences)
        if shape not in self.graphs:
            if len(self.graphs) == MOST:
                return self.passes(batch)
            self.graphs[shape] = self._record(batch.changed(torch.clone))
        graph = self.graphs[shape]
        graph.batch.copy_(batch)
        graph.replay()
        return graph.values

    def _record(self, batch: Batch) -> Graph:
        values: dict[str, Tensor] = {}

        def run() -> None:
            for name, value in self.passes(batch).items():
                values.setdefault(name, torch.empty_like(value)).copy_(value)

        before = [None if p.grad is None else p.grad.clone() for p in self.parameters]
        run()  # which makes gradients for a graph to add to; a parameter that gets none keeps none
        replay, self.pool = capture(run, self.pool)
        for p, gradient in zip(self.parameters, before, strict=True):
            if p.grad is not None:
                p.grad.zero_() if gradient is None else p.grad.copy_(gradient)
        return Graph(batch, values, replay)


def capture(run: Callable[[], None], pool: Any) -> tuple[Callable[[], None], Any]:
    """A CUDA graph of what `run` does, in the memory of `pool` or new memory; what replays it, and its pool."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what is done only once, such as choosing algorithms, must not be recorded
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        run()
    return graph.replay, graph.pool()
