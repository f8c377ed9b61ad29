"""What only a GPU can show: kernels at their full sizes, captured, on another device, in little memory, checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from graphs import assert_replays
from on_device import DEVICE
from parity import (
    GRAM,
    GRAM_BOUND,
    HALF_AND_SINGLE,
    TILED,
    assert_exact_within,
    assert_parity,
    each,
    loss_and_gradients,
)
from torch import Tensor

from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import ATTENTION_KL, ATTENTION_PROB_MSE, SPECS

pytestmark = pytest.mark.skipif(DEVICE != "cuda", reason="no GPU here, or kernels are interpreted")

SHAPES = {
    "ragged": Shape((1, 2, 2, 5, 17, 33, 130, 300), heads=3, head_dim_s=26, head_dim_t=64, layers=3, classes=77),
    "one token": Shape((1,), heads=12, head_dim_s=8, head_dim_t=16),
    "gaps": Shape((0, 70, 0, 64, 0), heads=2, head_dim_s=48, head_dim_t=24, layers=2, classes=2),
    "vocabulary": Shape((1,) * 9, heads=1, head_dim_s=16, head_dim_t=16, classes=30522),
    "long": Shape((300, 280, 1100), heads=2, head_dim_s=26, head_dim_t=64, layers=2),
}
EVERY = {spec.name: spec for spec in SPECS} | {"gram": GRAM}
each_spec = pytest.mark.parametrize("spec", EVERY.values(), ids=EVERY)
each_dtype = pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@each_dtype
def test_parity(spec: Spec, shape: Shape, dtype: torch.dtype) -> None:
    assert_parity(spec, spec.inputs(shape, dtype, DEVICE))


@pytest.mark.parametrize("spec", [TILED, GRAM], ids=["tiled", "gram"])
@pytest.mark.parametrize("lengths", [(300, 280, 1100), (70, 130, 3)], ids=["long", "short"])
@pytest.mark.parametrize("head_dims", [(26, 26), (32, 32), (26, 64)], ids=["26-26", "32-32", "26-64"])
@each_dtype
def test_both_algorithms(spec: Spec, lengths: tuple[int, ...], head_dims: tuple[int, int], dtype: torch.dtype) -> None:
    """Whichever the measured rule would choose for these sizes."""
    shape = Shape(lengths, heads=3, head_dim_s=head_dims[0], head_dim_t=head_dims[1], layers=2)
    assert_exact_within(GRAM_BOUND[dtype], spec, spec.inputs(shape, dtype, DEVICE))


@each_spec
@pytest.mark.parametrize("shape", [SHAPES["ragged"], SHAPES["long"]], ids=["ragged", "long"])
@each_dtype
def test_two_runs_are_bitwise_equal(spec: Spec, shape: Shape, dtype: torch.dtype) -> None:
    inputs = spec.inputs(shape, dtype, DEVICE)
    first, second = (loss_and_gradients(spec.op, inputs, spec.differentiable) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@each_spec
def test_captured_passes_replay_with_other_inputs(spec: Spec) -> None:
    """Forward and backward pass as one CUDA graph: nothing in them waits for the host."""
    inputs, others = (spec.inputs(SHAPES["ragged"], torch.bfloat16, DEVICE, seed) for seed in (0, 1))
    for name in spec.differentiable:
        each(inputs[name], lambda x: x.requires_grad_())
    flat = [x for name in spec.differentiable for x in layers(inputs[name])]

    def passes() -> tuple[Tensor, ...]:
        output = spec.op(**inputs)
        loss = torch.stack(output).sum() if isinstance(output, tuple) else output
        return loss.detach(), *torch.autograd.grad(loss, flat)

    def change() -> None:
        for name, value in inputs.items():
            for mine, other in zip(layers(value), layers(others[name]), strict=True):
                mine.copy_(other)

    assert_replays(passes, change)


def layers(value: Any) -> tuple[Tensor, ...]:
    """The tensors of an input: one, one per layer, or none."""
    return tuple(x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, Tensor))


@each_spec
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_tensors_of_another_gpu_than_the_current(spec: Spec) -> None:
    inputs = spec.inputs(SHAPES["ragged"], torch.bfloat16, "cuda:1")
    assert torch.cuda.current_device() == 0
    assert_parity(spec, inputs)


@pytest.mark.parametrize(
    "spec", [TILED, GRAM, ATTENTION_PROB_MSE, ATTENTION_KL], ids=["tiled", "gram", "prob_mse", "kl"]
)
def test_memory_grows_with_tokens_not_with_maps(spec: Spec) -> None:
    """One sequence of 32,768 tokens, whose map would take 4 GiB in fp32."""
    inputs = spec.inputs(Shape((32768,), heads=1, head_dim_s=32, head_dim_t=64), torch.bfloat16, DEVICE)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss_and_gradients(spec.op, inputs, spec.differentiable)
    assert torch.cuda.max_memory_allocated() - before < 256 * 2**20


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer here")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_memory_checker_finds_nothing(tool: str) -> None:
    """Of kernels that read and write tensors with allocations of their own, so that an overrun leaves them."""
    command = ["compute-sanitizer", "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9"]
    chosen = "(test_parity and (ragged or gaps) or test_both_algorithms and short and 26-64) and bfloat16"
    tests = [sys.executable, "-m", "pytest", "-q", __file__, "-k", chosen]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run([*command, *tests], env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-4000:]
