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
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from fastdistill_kernels.attention import kernel as attention
from fastdistill_kernels.attention_score_mse import kernel as gram
from fastdistill_kernels.device import HALF_AND_SINGLE, INTERPRETED
from fastdistill_kernels.hidden_mse import kernel as hidden
from fastdistill_kernels.soft_cross_entropy import kernel as soft
from fastdistill_kernels.spec import Shape

pytestmark = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")

SHARED_MEMORY = {  # most bytes a block may have
    75: 64 * 1024, 80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024,
    "gfx942": 64 * 1024,
}  # fmt: skip
TENSOR_MEMORY = 512  # columns of it, on sm_100
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SM_80, SM_90, SM_100 = (GPUTarget("cuda", arch, 32) for arch in (80, 90, 100))
GFX942 = GPUTarget("hip", "gfx942", 64)


@dataclass
class Driver:
    """Stands in for the driver of a GPU that is not here."""

    target: GPUTarget

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int | str:
        return self.target.arch

    def get_current_stream(self, device: int | str) -> int:
        return 0


def compiled(call: Callable[[], Any], target: GPUTarget, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels that `call` launches, compiled for these very arguments, none of which runs."""
    found: list[Any] = []
    run = JITFunction.run

    def compile_only(kernel: Any, *values: Any, warmup: bool, **options: Any) -> None:
        found.append(run(kernel, *values, warmup=True, **options))

    with monkeypatch.context() as patched:
        patched.setattr(driver, "_active", Driver(target))
        patched.setattr(torch.version, "hip", "7.0" if target.backend == "hip" else None)
        patched.setattr(JITFunction, "run", compile_only)
        if target.backend == "cuda":
            patched.setattr(attention, "shared_memory", lambda _: SHARED_MEMORY[target.arch])
        call()
    return found


def resources(kernel: Any, tmp_path: Path) -> dict[str, int]:
    """Registers, stack (where spilled registers go), shared memory of a cubin."""
    (tmp_path / "kernel.cubin").write_bytes(kernel.asm["cubin"])
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
    beside: int = 0,
) -> None:
    """Of operands that lie in rows behind `beside` other numbers."""
    shape = Shape(lengths, heads=12, head_dim_s=d_s, head_dim_t=d_t)
    q_s, q_t = (
        torch.zeros(shape.tokens, beside + 12 * d, dtype=own)[:, beside:].unflatten(1, (12, d))
        for d, own in ((d_s, dtype), (d_t, teacher or dtype))
    )
    operands = [[x] * layers for x in (q_s, q_s, q_t, q_t)]
    layout = shape.layout(torch.device("cpu")).values()
    loss, *saved = kernels.forward(*operands, *layout, 0.2, 0.1, "tokens")
    kernels.backward(loss, *operands, *layout, 0.2, 0.1, *saved)


def hidden_states(dtype: torch.dtype, d_s: int, d_t: int, layers: int, lengths: tuple[int, ...] = (130,)) -> None:
    h_s, h_t = (torch.zeros(sum(lengths), 12 * d, dtype=dtype) for d in (d_s, d_t))
    for weights, distance in ((1, "squared"), (layers, "squared"), (layers, "normalized"), (1, "cosine")):
        weight, bias = [torch.zeros(12 * d_t, 12 * d_s)] * weights, [torch.zeros(12 * d_t)] * weights
        products = torch.float32 if distance != "squared" and dtype == torch.float16 else dtype
        loss, d_p = hidden.forward([h_s] * layers, [h_t] * layers, weight, bias, 7, distance, products, keep=True)
        hidden.backward(loss, [h_s] * layers, weight, d_p, 7)


def soft_labels(dtype: torch.dtype, d_s: int, d_t: int, layers: int, lengths: tuple[int, ...] = (1, 1, 1)) -> None:
    rows = len(lengths)
    for classes in (2, 30522):
        z_s, z_t = (torch.zeros(rows, classes, dtype=dtype) for _ in range(2))
        labels = torch.zeros(rows, dtype=torch.int64)
        for optional in ((labels, labels, torch.zeros(rows)), (None, None, None)):
            numbers = soft.SoftLabels(classes, -100, 2.0, 2.0, 4.0, 1.0, 0.5)
            loss, hard, out, *saved = numbers.forward(z_s, z_t, *optional, kl=True, with_gradient=True)
            for incoming in ((out, loss, hard), (None, loss, None)):
                numbers.backward(*incoming, z_s, z_t, *optional, *saved)


def assert_fits(kernel: Any, target: GPUTarget) -> None:
    """Of what asks for more tensor memory than there is, Triton makes a kernel that only traps."""
    assert kernel.metadata.shared <= SHARED_MEMORY[target.arch]
    assert getattr(kernel.metadata, "tmem_size", 0) <= TENSOR_MEMORY


def check(kernel: Any, target: GPUTarget, tmp_path: Path) -> None:
    multiplies = "tt.dot" in kernel.asm["ttir"]
    assert_fits(kernel, target)
    if target.backend == "hip":
        assert ("mfma" in kernel.asm["amdgcn"]) == multiplies
        return
    assert bool(re.search(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma", kernel.asm["ptx"])) == multiplies
    if target.arch == 90:
        assert resources(kernel, tmp_path)["STACK"] == 0, "registers are spilled"
    if multiplies:
        assert re.search(r"arith\.muli .* : tensor<\d+x1xi64", kernel.asm["ttir"]), "row offsets are not 64 bits wide"


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


@each_op
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize(("d_s", "d_t", "layers"), [(8, 16, 1), (26, 64, 4), (48, 48, 1)])
@pytest.mark.parametrize("target", [SM_80, SM_90, SM_100, GFX942], ids=lambda target: str(target.arch))
def test_compiles(
    op: str,
    dtype: torch.dtype,
    d_s: int,
    d_t: int,
    layers: int,
    target: GPUTarget,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    found = compiled(lambda: CALLS[op](dtype, d_s, d_t, layers), target, monkeypatch)
    assert len(found) == LAUNCHES[op]
    for kernel in found:
        check(kernel, target, tmp_path)


each_attention = pytest.mark.parametrize("op", ["score_mse", "prob_mse", "kl", "gram"])


@each_attention
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows_that_begin_anywhere(op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for kernel in compiled(lambda: CALLS[op](dtype, 26, 64, 1, beside=1), SM_90, monkeypatch):
        check(kernel, SM_90, tmp_path)


@pytest.mark.parametrize("op", ["score_mse", "prob_mse", "kl"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("length", [10, 30, 60])
@pytest.mark.parametrize("d", [(26, 64), (64, 64)], ids=str)
def test_short_sequences(
    op: str, dtype: torch.dtype, length: int, d: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for kernel in compiled(lambda: CALLS[op](dtype, *d, 1, lengths=(length, 3)), SM_90, monkeypatch):
        check(kernel, SM_90, tmp_path)


def is_whole(kernel: Any) -> bool:
    return bool(kernel.name == "whole_rows_kernel")


@pytest.mark.parametrize(
    ("dtype", "length", "whole"),
    [(torch.bfloat16, n, n <= 512) for n in (60, 100, 250, 500, 600)]
    + [(torch.float16, 500, True), (torch.float32, 60, True), (torch.float32, 100, False)],
    ids=str,
)
@pytest.mark.parametrize(("d", "layers"), [((26, 64), 4), ((48, 48), 1), ((64, 64), 1), ((64, 26), 1)], ids=str)
def test_whole_rows(
    dtype: torch.dtype,
    length: int,
    whole: bool,
    d: tuple[int, int],
    layers: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    found = compiled(lambda: CALLS["prob_mse"](dtype, *d, layers, lengths=(length, 3)), SM_90, monkeypatch)
    assert [is_whole(kernel) for kernel in found] == [whole, False, False, False]
    check(found[0], SM_90, tmp_path)


@pytest.mark.parametrize(
    ("target", "dtype", "length"),
    [(target, dtype, 60) for target in (SM_80, SM_100, GFX942) for dtype in (torch.bfloat16, torch.float32)]
    + [(target, torch.bfloat16, 500) for target in (SM_80, SM_100)],
    ids=lambda x: str(getattr(x, "arch", x)),
)
def test_whole_rows_on_other_machines(
    target: GPUTarget, dtype: torch.dtype, length: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = compiled(lambda: CALLS["prob_mse"](dtype, 26, 64, 1, lengths=(length, 3)), target, monkeypatch)
    assert is_whole(found[0])
    check(found[0], target, tmp_path)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("target", [SM_90, SM_100, GFX942], ids=lambda target: str(target.arch))
def test_several_stretches(
    dtype: torch.dtype,
    target: GPUTarget,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    found = compiled(lambda: CALLS["gram"](dtype, 26, 64, 1, lengths=(3000, 3)), target, monkeypatch)
    assert len(found) == 4
    for kernel in found:
        check(kernel, target, tmp_path)
        factors = re.findall(r"arith\.muli [^\n]*%c(\d+)_i32[^\n]* : i32", kernel.asm["ttir"])
        assert all(int(n) <= gram.STRETCH for n in factors), "places in a whole matrix are not 64 bits wide"


@each_op
@pytest.mark.parametrize("lengths", [(130, 3), (60, 3)], ids=str)
def test_rounding(op: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of fp32 numbers keep their digits, and scores are rounded before the largest is subtracted."""
    for kernel in compiled(lambda: CALLS[op](torch.float32, 26, 64, 1, lengths), SM_90, monkeypatch):
        products = re.findall(r"tt\.dot .*", kernel.asm["ttir"])
        assert all("inputPrecision = bf16x6" in line for line in products)
        if op in ("prob_mse", "kl") and products:
            assert not kernel.metadata.enable_fp_fusion


@each_attention
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("target", [SM_90, SM_100, GFX942], ids=lambda target: str(target.arch))
def test_wide_heads_fit(
    op: str, dtype: torch.dtype, target: GPUTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Registers of float32, and of Gram matrices, may be spilled there, but memory suffices."""
    for d_s, d_t in ((64, 192), (64, 128)):
        for kernel in compiled(partial(CALLS[op], dtype, d_s, d_t, 1), target, monkeypatch):
            assert_fits(kernel, target)
            if dtype != torch.float32 and op != "gram":
                check(kernel, target, tmp_path)


SMALL = [
    *((75, torch.float32, torch.float16, d) for d in ((26, 64), (64, 64), (64, 128), (128, 128))),
    *((75, torch.float32, torch.float32, d) for d in ((26, 64), (64, 64))),
    *((75, torch.float16, torch.float16, d) for d in ((26, 64), (64, 64), (128, 128))),
    *((arch, torch.float32, torch.float32, d) for arch in (86, 120) for d in ((64, 64), (128, 128), (192, 192))),
    *((86, dtype, dtype, (256, 256)) for dtype in (torch.float32, torch.bfloat16)),
]


@pytest.mark.parametrize(
    ("op", "arch", "dtype", "teacher", "d"),
    [
        (op, *case)
        for op in ("score_mse", "prob_mse", "kl", "gram")
        for case in SMALL
        if op != "gram" or sum(case[3]) <= 256
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [130, 60])
def test_small_gpus_have_room(
    op: str, arch: int, dtype: torch.dtype, teacher: torch.dtype, d: tuple[int, int], length: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A T4, which computes fp32 beside a teacher's fp16, and GPUs for games."""
    call, target = partial(CALLS[op], dtype, *d, 1, lengths=(length, 3), teacher=teacher), GPUTarget("cuda", arch, 32)
    for kernel in compiled(call, target, monkeypatch):
        assert kernel.metadata.shared <= SHARED_MEMORY[arch], (kernel.name, kernel.metadata.shared)


@each_attention
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_teacher_in_double_precision(
    op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for kernel in compiled(lambda: CALLS[op](dtype, 26, 64, 1, teacher=torch.float64), SM_90, monkeypatch):
        check(kernel, SM_90, tmp_path)


def test_heads_that_fit_nowhere_are_refused() -> None:
    with pytest.raises(ValueError, match="head size 768: at most 256 fit; use more heads"):
        CALLS["kl"](torch.bfloat16, 312, 768, 1)
    with pytest.raises(
        ValueError, match="head sizes 72 and 192: Gram matrices have room for 256 together; use 'tiled'"
    ):
        CALLS["gram"](torch.bfloat16, 72, 192, 1)


@each_op
@pytest.mark.parametrize("lengths", [(130, 250, 192), (520, 1000, 768)], ids=str)
def test_nothing_is_compiled_again_for_another_batch(
    op: str, lengths: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton compiles anew where an integer becomes 1 or divisible by 16, unless it is told not to."""
    batches = ((lengths[0],) * 2, (lengths[1],) + (24,) * 15, (lengths[2],) * 17)
    first, *others = (
        compiled(partial(CALLS[op], torch.float32, 26, 64, 1, lengths), SM_90, monkeypatch) for lengths in batches
    )
    assert len(first) == LAUNCHES[op]
    for found in others:
        for mine, other in zip(first, found, strict=True):
            assert mine is other, mine.metadata.name
