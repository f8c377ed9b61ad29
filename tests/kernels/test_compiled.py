"""Every kernel is compiled for GPUs that are not here: NVIDIA's sm_80, sm_90, sm_100 and AMD's gfx942."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastdistill_kernels.attention import kernel as attention
from fastdistill_kernels.device import HALF_AND_SINGLE, INTERPRETED
from fastdistill_kernels.spec import Shape

pytestmark = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # most bytes a block may have
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}


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


def launches(module: Any, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What `call` launches of the kernels of `module`, none of which runs."""
    found: list[Launch] = []

    class Recorded:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            def launch(*positional: Any, **named: Any) -> None:
                names = [p.name for p in self.kernel.params]
                values = dict(zip(names, positional, strict=False)) | named
                options = {name: values.pop(name) for name in ("num_warps", "num_stages") if name in values}
                found.append(Launch(self.kernel, values, options))

            return launch

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


def attention_launches(
    kind: int, dtype: torch.dtype, d_s: int, d_t: int, layers: int, monkeypatch: pytest.MonkeyPatch
) -> list[Launch]:
    shape = Shape((130, 3), heads=12, head_dim_s=d_s, head_dim_t=d_t)
    q_s, q_t = (torch.zeros(shape.tokens, 12, d, dtype=dtype) for d in (d_s, d_t))
    operands = [[x] * layers for x in (q_s, q_s, q_t, q_t)]
    cu_seqlens, max_seqlen = shape.layout(torch.device("cpu")).values()

    def both() -> None:
        loss, *saved = attention.forward(kind, *operands, cu_seqlens, max_seqlen, 0.2, 0.1, "tokens")
        attention.backward(kind, loss, *operands, cu_seqlens, max_seqlen, 0.2, 0.1, *saved)

    found = launches(attention, both, monkeypatch)
    assert len(found) == 4  # loss, sum, two gradients
    return found


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


KINDS = pytest.mark.parametrize("kind", [0, 1, 2], ids=["score_mse", "prob_mse", "kl"])


@KINDS
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize(("d_s", "d_t"), [(8, 16), (26, 64), (48, 48)])
def test_attention_on_hopper(
    kind: int, dtype: torch.dtype, d_s: int, d_t: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for launch in attention_launches(kind, dtype, d_s, d_t, 1, monkeypatch):
        check(launch, GPUTarget("cuda", 90, 32), tmp_path)


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "target",
    [GPUTarget("cuda", 80, 32), GPUTarget("cuda", 100, 32), GPUTarget("hip", "gfx942", 64)],
    ids=lambda target: str(target.arch),
)
def test_attention_elsewhere(
    kind: int, dtype: torch.dtype, target: GPUTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for launch in attention_launches(kind, dtype, 26, 64, 4, monkeypatch):
        check(launch, target, tmp_path)
