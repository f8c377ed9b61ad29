"""Every op agrees with its reference whatever the batch, the models and the memory layout."""

from __future__ import annotations

import pytest
import torch
from on_device import DEVICE, KERNELS_RUN
from parity import HALF_AND_SINGLE, assert_parity, each, sliced

from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import SPECS

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

HEAD_DIMS = (8, 16, 24, 26, 32, 48, 64)
# the interpreter takes milliseconds for every program of a grid, a GPU seconds to compile for other sizes
EXAMPLES, MOST_SEQUENCES = (5, 3) if KERNELS_RUN else (15, 6)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@settings(deadline=None, max_examples=EXAMPLES, derandomize=True)
@given(
    shape=st.builds(
        Shape,
        lengths=st.lists(st.integers(1, 70), min_size=1, max_size=MOST_SEQUENCES).map(tuple),
        heads=st.integers(1, 12),
        head_dim_s=st.sampled_from(HEAD_DIMS),
        head_dim_t=st.sampled_from(HEAD_DIMS),
        layers=st.integers(1, 3),
        classes=st.integers(2, 40),
    ),
    dtype=st.sampled_from(HALF_AND_SINGLE),
    strided=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_parity(spec: Spec, shape: Shape, dtype: torch.dtype, strided: bool, seed: int) -> None:
    inputs = spec.inputs(shape, dtype, DEVICE, seed)
    if strided:
        inputs |= {name: each(value, sliced) for name, value in inputs.items()}
    assert_parity(spec, inputs)
