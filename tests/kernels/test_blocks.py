"""Sequences as dense blocks, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdistill_kernels.attention.blocks import dense, into_blocks, scatter


def test_equal_lengths_run_together() -> None:
    runs = into_blocks([4, 4, 4, 2, 0, 4, 4], waste=0, multiple=1)
    assert [(run.tokens, run.count, run.length) for run in runs] == [
        (slice(0, 12), 3, 4), (slice(12, 14), 1, 2), (slice(14, 22), 2, 4)
    ]  # fmt: skip
    assert {run.places for run in runs} == {None}


def test_like_lengths_share_a_block() -> None:
    """As long as no block has more idle places than it may."""
    first, second = into_blocks([90, 100, 100, 101, 0, 101, 102], waste=100**2 - 90**2, multiple=1)
    assert (first.tokens, first.count, first.length) == (slice(0, 290), 3, 100)
    assert (second.tokens, second.count, second.length) == (slice(290, 594), 3, 102)
    assert first.real is not None
    assert first.places is not None
    assert first.real.sum(1).tolist() == [90, 100, 100]
    assert first.places.tolist() == [*range(90), *range(100, 300)]


def test_few_lengths_occur() -> None:
    """Also where a sequence by itself has more idle places than a block may."""
    assert [(block.count, block.length) for block in into_blocks([1, 8, 9, 1001, 1008], waste=200)] == [
        (2, 8), (1, 16), (1, 1008), (1, 1008)
    ]  # fmt: skip


def test_blocks_lie_where_their_tokens_do() -> None:
    """float64 runs here on a GPU too."""
    device = torch.device("meta")
    (block,) = into_blocks([3, 5], device)
    assert block.real is not None
    assert block.places is not None
    assert block.real.device == block.places.device == device
    x = torch.empty(8, 2, 4, device=device)
    scatter(x, dense(x, block, torch.float64), block)


def test_without_tokens_there_is_no_block() -> None:
    assert into_blocks([]) == into_blocks([0, 0]) == []


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("waste", [0, 50, 10**6])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_there_and_back(waste: int, multiple: int, dtype: torch.dtype) -> None:
    lengths = [3, 5, 0, 5, 1]
    x = torch.randn(14, 2, 4, generator=torch.Generator().manual_seed(0)).half()
    back = torch.full(x.shape, torch.nan, dtype=torch.float32)
    rows: list[Tensor] = []
    for block in into_blocks(lengths, waste=waste, multiple=multiple):
        maps = dense(x, block, dtype)
        assert (maps.dtype, maps.shape) == (dtype, (2 * block.count, block.length, 4))
        real = torch.ones(block.count, block.length, dtype=torch.bool) if block.real is None else block.real
        assert not maps.unflatten(0, (-1, 2)).transpose(1, 2)[~real].any(), "idle places are 0"
        rows += maps.unflatten(0, (-1, 2)).transpose(1, 2)[real]
        scatter(back, maps, block)
    assert torch.equal(back, x.float())
    assert torch.equal(torch.stack(rows).float(), x.float())
