"""Tensors here are small: one thread is faster than many. Interpreted products are made as a GPU makes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from fastdistill_kernels.device import INTERPRETED


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="package")
def _products_in_order() -> Iterator[None]:
    """Products whose terms are added in one order, whatever a tile's shape and whichever operand is on the left.

    So does a GPU, and passes that make the same scores from either side rely on it; the BLAS that the interpreter calls
    does so on some processors only.
    """

    def create_dot(_: Any, a: TensorHandle, b: TensorHandle, total: TensorHandle, *__: Any) -> TensorHandle:
        sums = np.zeros_like(total.data)
        for column, row in zip(a.data.T, b.data, strict=True):
            sums += np.multiply.outer(column, row)
        return TensorHandle(sums + total.data, total.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setattr(InterpreterBuilder, "create_dot", create_dot)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
