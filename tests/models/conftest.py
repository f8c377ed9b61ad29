"""Fixtures of the model tests."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator

import pytest
import torch
from encoders import CAPTURED, LENGTHS, UNCAPTURED, make_batch

from fastdistill.batch import Batch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products only lose by being shared out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CAPTURED)
def family(request: pytest.FixtureRequest) -> str:
    """Every family whose attention can be captured."""
    return str(request.param)


@pytest.fixture(params=CAPTURED + UNCAPTURED)
def any_family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=sorted(LENGTHS))
def batch(request: pytest.FixtureRequest) -> Batch:
    return make_batch(LENGTHS[request.param])
