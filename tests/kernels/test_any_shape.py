"""Every op agrees with its reference whatever the batch, the models and the memory layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from on_device import DEVICE, KERNELS_RUN
from parity import HALF_AND_SINGLE, assert_parity, each, sliced

from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import ATTENTION_SCORE_MSE, ATTENTION_SPECS, SOFT_CROSS_ENTROPY, SPECS

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

HEAD_DIMS = (8, 16, 24, 26, 32, 48, 64)
# the interpreter takes milliseconds for every program of a grid, a GPU seconds to compile for other sizes
EXAMPLES, MOST_SEQUENCES = (10, 5) if KERNELS_RUN else (15, 6)


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


@settings(deadline=None, max_examples=4 * EXAMPLES, derandomize=True)
@given(
    options=st.fixed_dictionaries(
        {
            "temperature": st.floats(0.5, 20.0),
            "teacher_temperature": st.none() | st.floats(0.5, 20.0),
            "form": st.sampled_from(["ce", "kl"]),
            "scale_by_temperature_squared": st.booleans(),
        }
    ),
    num_rows=st.integers(1, 20),
    classes=st.integers(2, 3000),
    padding=st.tuples(st.integers(0, 70), st.integers(0, 70)),
    with_labels=st.booleans(),
    with_rows=st.booleans(),
    with_weights=st.booleans(),
    dtype=st.sampled_from(HALF_AND_SINGLE),
    seed=st.integers(0, 1000),
)
def test_soft_labels_with_any_options(
    options: dict[str, Any],
    num_rows: int,
    classes: int,
    padding: tuple[int, int],
    with_labels: bool,
    with_rows: bool,
    with_weights: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    z_s, z_t = (torch.randn(num_rows, classes + n, generator=generator).to(DEVICE, dtype) for n in padding)
    inputs = options | {"student_logits": z_s, "teacher_logits": z_t, "num_classes": classes}
    if with_labels:
        labels = torch.randint(classes, (num_rows,), generator=generator)
        labels[torch.rand(num_rows, generator=generator) < 0.3] = -100
        labels[0] = 0
        inputs["labels"] = labels.to(DEVICE)
    if with_rows:
        others = torch.randperm(num_rows - 1, generator=generator)[: num_rows // 2] + 1
        inputs["rows"] = torch.cat([torch.zeros(1, dtype=torch.int64), others]).to(DEVICE)
    if with_weights:
        inputs["row_weights"] = (torch.rand(num_rows, generator=generator) + 0.1).to(DEVICE)
    assert_parity(SOFT_CROSS_ENTROPY, inputs)


@pytest.mark.parametrize("spec", ATTENTION_SPECS, ids=lambda spec: spec.name)
@settings(deadline=None, max_examples=EXAMPLES, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    scales=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)),
    temperature=st.floats(0.5, 4.0),
    padding=st.none() | st.integers(0, 20),
    dtype=st.sampled_from(HALF_AND_SINGLE),
    seed=st.integers(0, 1000),
)
def test_attention_with_any_options(
    spec: Spec,
    lengths: tuple[int, ...],
    scales: tuple[float, float],
    temperature: float,
    padding: int | None,
    dtype: torch.dtype,
    seed: int,
) -> None:
    inputs = spec.inputs(Shape(lengths, heads=2, head_dim_s=8, head_dim_t=16), dtype, DEVICE, seed)
    inputs |= dict(zip(("scale_s", "scale_t"), scales, strict=True))
    if spec is not ATTENTION_SCORE_MSE:
        inputs["temperature"] = temperature
    if padding is not None:
        inputs |= {"normalize": "padded", "max_seqlen": max(lengths) + padding}
    assert_parity(spec, inputs)
