"""CUDA graphs: the passes of a batch launched as one, where a batch of as many tokens came before; the update too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdistill.batch import Batch

MOST = 8  # graphs; a batch of yet another shape is run without one


@dataclass(frozen=True)
class Graph:
    """Recorded passes: where they read, where they write, and how they are run again."""

    batch: Batch
    values: dict[str, Tensor]
    replay: Callable[[], None]


class Graphs:
    """Runs `passes` on batches, recorded once for every shape, and what moves the weights after them.

    Args:
        passes: forward and backward pass of a batch: adds to the gradients, returns values by name. It must not depend
            on how many sequences there are, for some may be empty, or on `max_seqlen`, which is always `longest`.
        parameters: whose gradients those are; from the first call on these stay where they are.
        longest: tokens of the longest sequence that may come.
        most: sequences of a batch; batches are filled up with empty ones to that number, or a multiple of it.
    """

    def __init__(
        self, passes: Callable[[Batch], dict[str, Tensor]], parameters: Sequence[Tensor], longest: int, most: int
    ) -> None:
        self.passes, self.parameters, self.longest, self.most = passes, parameters, longest, most
        self.graphs: dict[tuple[int, int], Graph] = {}
        self.place: Any = None  # the memory and the stream of all graphs, for nothing there outlives a replay
        self.norm: Tensor | None = None
        self.move: Callable[[], None] | None = None

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """What `passes` returns; the values last until the next call."""
        batch = batch.filled_up(-(-batch.num_sequences // self.most) * self.most, self.longest)
        shape = (batch.num_tokens, batch.num_sequences)
        if shape not in self.graphs:
            if len(self.graphs) == MOST:
                return self.passes(batch)
            self.graphs[shape] = self._record(batch.changed(torch.clone))
            if batch.seed is not None:  # to record draws from what it seeds
                torch.manual_seed(batch.seed)
        graph = self.graphs[shape]
        graph.batch.copy_(batch)
        graph.replay()
        return graph.values

    def update(self, run: Callable[[], Tensor]) -> Tensor:
        """What `run`, which moves the weights, returns; recorded the second time, when the optimiser has its state."""
        if self.norm is None:
            self.norm = run()
            return self.norm.clone()
        norm = self.norm
        if self.move is None:
            self.move, self.place = capture(lambda: norm.copy_(run()), self.place, warm_up=0)
        self.move()
        return norm.clone()

    def _record(self, batch: Batch) -> Graph:
        values: dict[str, Tensor] = {}

        def run() -> None:
            for name, value in self.passes(batch).items():
                values.setdefault(name, torch.empty_like(value)).copy_(value)

        before = [None if p.grad is None else p.grad.clone() for p in self.parameters]
        run()  # which makes gradients for a graph to add to; a parameter that gets none keeps none
        replay, self.place = capture(run, self.place)
        for p, gradient in zip(self.parameters, before, strict=True):
            if p.grad is not None:
                p.grad.zero_() if gradient is None else p.grad.copy_(gradient)
        return Graph(batch, values, replay)


def capture(run: Callable[[], object], place: Any, warm_up: int = 2) -> tuple[Callable[[], None], Any]:
    """A CUDA graph of what `run` does, at `place` or at a new one: what replays it, and its place."""
    pool, stream = place or (None, torch.cuda.Stream())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # puts the current stream back, also where a recording fails halfway
        for _ in range(warm_up):  # what is done only once, such as choosing algorithms, must not be recorded
            run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, (graph.pool(), stream)
