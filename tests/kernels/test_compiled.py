"""Every kernel is compiled for GPUs that are not here: NVIDIA's sm_80, sm_90, sm_100 and AMD's gfx942."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastdistill_kernels.attention import kernel as attention
from fastdistill_kernels.attention_score_mse import kernel as gram
from fastdistill_kernels.device import HALF_AND_SINGLE, INTERPRETED
from fastdistill_kernels.hidden_mse import kernel as hidden
from fastdistill_kernels.shared import kernel as shared
from fastdistill_kernels.soft_cross_entropy import kernel as soft
from fastdistill_kernels.spec import Shape

pytestmark = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")

MODULES = (attention, gram, hidden, soft, shared)
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # most bytes a block may have
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TYPES |= {torch.int32: "i32", torch.int64: "i64"}


@dataclass
class Launch:
    """One kernel as a launcher called it."""

    kernel: Any
    values: dict[str, Any]
    options: dict[str, int]

    def compiled(self, target: GPUTarget) -> Any:
        signature: dict[str, Any] = {}
        constants: dict[str, Any] = {}
        for parameter in self.kernel.params:
            value = self.values[parameter.name]
            signature[parameter.name] = "constexpr" if parameter.is_constexpr else type_of(value)
            if parameter.is_constexpr:
                constants[parameter.name] = value
        source = ASTSource(self.kernel, signature, constexprs=constants)
        return triton.compile(source, target=target, options=self.options)


def type_of(value: Any) -> Any:
    """How Triton writes the type of an argument."""
    if isinstance(value, tuple):
        return tuple(map(type_of, value))
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


def launches(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What `call` launches of all kernels, none of which runs."""
    found: list[Launch] = []

    class Recorded:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            def launch(*positional: Any, **named: Any) -> None:
                names = [p.name for p in self.kernel.params]
                values = dict(zip(names, positional, strict=False)) | named
                options = {name: values.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in values}
                found.append(Launch(self.kernel, values, options))

            return launch

    for module in MODULES:
        for name, value in vars(module).copy().items():
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Recorded(value))
    call()
    return found


def resources(compiled: Any, tmp_path: Path) -> dict[str, int]:
    """Registers, stack (where spilled registers go), shared memory of a cubin."""
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    text = subprocess.run(
        [str(CUOBJDUMP), "-res-usage", str(tmp_path / "kernel.cubin")], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def tiled_attention(kind: int) -> Callable[..., None]:
    return partial(both_passes, attention.Tiled(kind))


def both_passes(
    kernels: Any,
    dtype: torch.dtype,
    d_s: int,
    d_t: int,
    layers: int,
    lengths: tuple[int, ...] = (130, 3),
    teacher: torch.dtype | None = None,
) -> None:
    shape = Shape(lengths, heads=12, head_dim_s=d_s, head_dim_t=d_t)
    q_s = torch.zeros(shape.tokens, 12, d_s, dtype=dtype)
    q_t = torch.zeros(shape.tokens, 12, d_t, dtype=teacher or dtype)
    operands = [[x] * layers for x in (q_s, q_s, q_t, q_t)]
    layout = shape.layout(torch.device("cpu")).values()
    loss, *saved = kernels.forward(*operands, *layout, 0.2, 0.1, "tokens")
    kernels.backward(loss, *operands, *layout, 0.2, 0.1, *saved)


def hidden_states(dtype: torch.dtype, d_s: int, d_t: int, layers: int, lengths: tuple[int, ...] = (130,)) -> None:
    h_s, h_t = (torch.zeros(sum(lengths), 12 * d, dtype=dtype) for d in (d_s, d_t))
    for weights, distance in ((1, "squared"), (layers, "squared"), (layers, "normalized"), (1, "cosine")):
        weight, bias = [torch.zeros(12 * d_t, 12 * d_s)] * weights, [torch.zeros(12 * d_t)] * weights
        loss, d_p = hidden.forward([h_s] * layers, [h_t] * layers, weight, bias, 7, distance, dtype, keep=True)
        hidden.backward(loss, [h_s] * layers, weight, d_p, 7, distance)


def soft_labels(dtype: torch.dtype, d_s: int, d_t: int, layers: int, lengths: tuple[int, ...] = (1, 1, 1)) -> None:
    rows = len(lengths)
    for classes in (2, 30522):
        z_s, z_t = torch.zeros(2, rows, classes, dtype=dtype)
        labels = torch.zeros(rows, dtype=torch.int64)
        for optional in ((labels, labels, torch.zeros(rows)), (None, None, None)):
            numbers = soft.SoftLabels(classes, -100, 2.0, 2.0, 4.0, 1.0, 0.5)
            loss, hard, out, *saved = numbers.forward(z_s, z_t, *optional, kl=True, with_gradient=True)
            for incoming in ((out, loss, hard), (None, loss, None)):
                numbers.backward(*incoming, z_s, z_t, *optional, *saved)


def check(launch: Launch, target: GPUTarget, tmp_path: Path) -> None:
    compiled = launch.compiled(target)
    multiplies = "tt.dot" in compiled.asm["ttir"]
    if target.backend == "hip":
        assert ("mfma" in compiled.asm["amdgcn"]) == multiplies
        return
    assert compiled.metadata.shared <= SHARED_MEMORY[target.arch]
    assert bool(re.search(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma", compiled.asm["ptx"])) == multiplies
    if target.arch == 90:
        assert resources(compiled, tmp_path)["STACK"] == 0, "registers are spilled"
    if multiplies:
        assert re.search(r"arith\.muli .* : tensor<\d+x1xi64", compiled.asm["ttir"]), "row offsets are not 64 bits wide"


CALLS: dict[str, Callable[..., None]] = {
    "score_mse": tiled_attention(0),
    "prob_mse": tiled_attention(1),
    "kl": tiled_attention(2),
    "gram": partial(both_passes, gram),
    "hidden": hidden_states,
    "soft": soft_labels,
}
LAUNCHES = {"score_mse": 4, "prob_mse": 4, "kl": 4, "gram": 3, "hidden": 2 * 5 + 2 * 6, "soft": 4 * 5}
each_op = pytest.mark.parametrize("op", CALLS)


TARGETS = [
    GPUTarget("cuda", 80, 32),
    GPUTarget("cuda", 90, 32),
    GPUTarget("cuda", 100, 32),
    GPUTarget("hip", "gfx942", 64),
]


@each_op
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize(("d_s", "d_t", "layers"), [(8, 16, 1), (26, 64, 4), (48, 48, 1)])
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))
def test_compiles(
    op: str,
    dtype: torch.dtype,
    d_s: int,
    d_t: int,
    layers: int,
    target: GPUTarget,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if (op, dtype, target.arch) == ("gram", torch.float32, 100) and max(d_s, d_t) > 16:
        request.applymarker(pytest.mark.xfail(strict=True, reason="Triton 3.7 multiplies x^T x without tensor cores"))
    found = launches(lambda: CALLS[op](dtype, d_s, d_t, layers), monkeypatch)
    assert len(found) == LAUNCHES[op]
    for launch in found:
        check(launch, target, tmp_path)


@pytest.mark.parametrize("op", ["score_mse", "prob_mse", "kl", "gram"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_wide_heads_fit(op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers may be spilled there, but shared memory suffices."""
    for launch in launches(lambda: CALLS[op](dtype, 96, 192, 1), monkeypatch):
        assert launch.compiled(GPUTarget("cuda", 90, 32)).metadata.shared <= SHARED_MEMORY[90]


@pytest.mark.parametrize("op", ["score_mse", "prob_mse", "kl", "gram"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_teacher_in_double_precision(
    op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for launch in launches(lambda: CALLS[op](dtype, 26, 64, 1, teacher=torch.float64), monkeypatch):
        check(launch, GPUTarget("cuda", 90, 32), tmp_path)


def test_heads_that_fit_nowhere_are_refused() -> None:
    with pytest.raises(ValueError, match="head size 768: at most 256 fit; use more heads"):
        CALLS["kl"](torch.bfloat16, 312, 768, 1)


@each_op
def test_nothing_is_compiled_again_for_another_batch(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton compiles anew where an integer becomes 1 or divisible by 16, unless it is told not to."""
    batches = ((130,) * 2, (1000,) + (24,) * 15, (192,) * 17)
    found = launches(lambda: [CALLS[op](torch.float32, 26, 64, 1, lengths) for lengths in batches], monkeypatch)
    each = len(found) // len(batches)
    assert each == LAUNCHES[op]
    for same in zip(*(found[n * each : (n + 1) * each] for n in range(len(batches))), strict=True):
        for parameter in same[0].kernel.params:
            values = [launch.values[parameter.name] for launch in same]
            if isinstance(values[0], int) and len(set(values)) > 1:
                assert parameter.do_not_specialize, f"{same[0].kernel.__name__}: {parameter.name} is {values}"
