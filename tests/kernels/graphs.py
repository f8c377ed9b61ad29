"""Capturing on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def assert_replays(passes: Callable[[], tuple[Tensor, ...]], change: Callable[[], None]) -> None:
    """Capture `passes` as one CUDA graph, `change` its inputs in place, hold the replay to a run without a graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles what is to be captured
        passes()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = passes()
    graph.replay()
    before = [x.clone() for x in captured]
    with torch.no_grad():
        change()
    expected = passes()
    graph.replay()
    torch.testing.assert_close(captured, expected, rtol=0, atol=0)
    assert any(not torch.equal(x, y) for x, y in zip(before, captured, strict=True)), "the inputs changed nothing"
