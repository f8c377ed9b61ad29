"""The same rules on a GPU, with the kernels as they are compiled there; and that whole passes can be captured."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from graphs import assert_replays
from parity import HALF_AND_SINGLE, assert_parity, loss_and_gradients
from torch import Tensor

from fastdistill_kernels.device import INTERPRETED
from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import ATTENTION_SPECS, SPECS

pytestmark = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no GPU here")

SHAPES = {
    "ragged": Shape((1, 2, 2, 5, 17, 33, 130, 300), heads=3, head_dim_s=26, head_dim_t=64, layers=3, classes=77),
    "one token": Shape((1,), heads=12, head_dim_s=8, head_dim_t=16),
    "gaps": Shape((0, 70, 0, 64, 0), heads=2, head_dim_s=48, head_dim_t=24, layers=2, classes=2),
    "vocabulary": Shape((1,) * 9, heads=1, head_dim_s=16, head_dim_t=16, classes=30522),
}
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


@each_spec
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_parity(spec: Spec, shape: Shape, dtype: torch.dtype) -> None:
    assert_parity(spec, spec.inputs(shape, dtype, "cuda"), dtype)


@each_spec
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_two_runs_are_bitwise_equal(spec: Spec, dtype: torch.dtype) -> None:
    inputs = spec.inputs(SHAPES["ragged"], dtype, "cuda")
    first, second = (loss_and_gradients(spec.op, inputs, spec.differentiable) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@each_spec
def test_captured_passes_replay_with_other_inputs(spec: Spec) -> None:
    """Forward and backward pass as one CUDA graph: nothing in them waits for the host."""
    inputs, others = (spec.inputs(SHAPES["ragged"], torch.bfloat16, "cuda", seed) for seed in (0, 1))
    for name in spec.differentiable:
        inputs[name] = each(inputs[name], lambda x: x.requires_grad_())
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


@each_spec
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_tensors_of_another_gpu_than_the_current(spec: Spec) -> None:
    inputs = spec.inputs(SHAPES["ragged"], torch.float32, "cuda:1")
    assert torch.cuda.current_device() == 0
    assert_parity(spec, inputs, torch.float32)


@pytest.mark.parametrize("spec", ATTENTION_SPECS, ids=lambda spec: spec.name)
def test_memory_grows_with_tokens_not_with_maps(spec: Spec) -> None:
    """One sequence of 32,768 tokens, whose map would take 4 GiB in fp32."""
    inputs = spec.inputs(Shape((32768,), heads=1, head_dim_s=32, head_dim_t=64), torch.bfloat16, "cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss_and_gradients(spec.op, inputs, spec.differentiable)
    assert torch.cuda.max_memory_allocated() - before < 256 * 2**20


def layers(value: Any) -> tuple[Tensor, ...]:
    """The tensors of an input: one, one per layer, or none."""
    return tuple(x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, Tensor))


def each(value: Any, function: Any) -> Any:
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer here")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_memory_checker_finds_nothing(tool: str) -> None:
    """Of kernels that read and write tensors with allocations of their own, so that an overrun leaves them."""
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    tests = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "test_parity and (ragged or gaps) and bfloat16"]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run([*command, *tests], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
