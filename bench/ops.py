"""Measure every op against eager PyTorch and torch.compile, side by side in one run.

    python -m bench.ops [--gpu | --cpu] [--op NAME] [--quick] [--out FILE.json]

Needs torch and triton alone. All figures of a shape come from turns taken round after round, so that a busy machine
slows all alike; they are medians, in milliseconds, of a forward pass and of a forward and backward pass. Beside them
stand two floors: the bytes that must move at the copy bandwidth measured at the start, the products at the matrix rate.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.opponents import EAGER, liger
from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import SPECS

Function = Callable[..., Any]

# sequences x length
BATCHES = {
    "cuda": ((32, 128), (256, 128), (32, 512), (8, 2048), (4, 8192), (1, 32768)),
    "cpu": ((32, 128), (8, 512), (8, 1024)),
}
MAPS_THAT_FIT = 2**33  # scores of one side that eager may form: 32 GiB in fp32


def shapes(spec: Spec, device: str, quick: bool) -> list[Shape]:
    """The grid of an op; with `quick` its first two shapes, small enough for any machine."""
    batches = [(length,) * count for count, length in BATCHES[device]]
    if spec.name.startswith("attention"):
        sizes = (26, 32, 64) if device == "cuda" else (26,)
        grid = [Shape(batch, heads=12, head_dim_s=d, head_dim_t=64) for batch in batches for d in sizes]
    elif spec.name == "hidden_mse":
        rows = (128,) * 256 if device == "cuda" else (128,) * 16
        grid = [Shape(rows, heads=12, head_dim_s=d, head_dim_t=64, layers=5) for d in (26, 32, 64)]
    else:
        counts = {"cuda": (8192, 2048), "cpu": (512, 128)}[device]
        classes = [(2, counts[0]), (77, counts[0]), (30522, counts[0]), (128256, counts[1])]
        grid = [Shape((1,) * rows, classes=number) for number, rows in classes]
    return grid[:2] if quick else grid


def implementations(spec: Spec, shape: Shape, device: str) -> dict[str, Function]:
    """By name: eager, compiled, ours (each algorithm), Liger's."""
    found: dict[str, Function] = {}
    if shape.heads * shape.pairs <= MAPS_THAT_FIT or not spec.name.startswith("attention"):
        eager = EAGER[spec.name]
        found = {"eager": eager, "compile": torch.compile(eager, dynamic=False)}
        if device == "cuda":
            found["max-autotune"] = torch.compile(eager, dynamic=False, mode="max-autotune")
    if spec.name == "attention_score_mse":
        found |= {f"ours, {way}": functools.partial(spec.op, algorithm=way) for way in ("tiled", "gram")}
    else:
        found["ours"] = spec.op
    if (other := liger(spec.name)) is not None:
        found["liger"] = other
    return found


def passes(function: Function, inputs: dict[str, Any], differentiable: tuple[str, ...]) -> dict[str, Function]:
    """The two things that are timed."""
    leaves = {
        name: tuple(x.requires_grad_() for x in value) if isinstance(value, tuple) else value.requires_grad_()
        for name, value in inputs.items() if name in differentiable
    }  # fmt: skip
    flat = [x for value in leaves.values() for x in (value if isinstance(value, tuple) else (value,))]

    def loss() -> Tensor:
        output = function(**inputs)
        return torch.stack(output).sum() if isinstance(output, tuple) else output

    def forward() -> None:
        with torch.no_grad():
            loss()

    def both() -> None:
        torch.autograd.grad(loss(), flat)

    return {"forward": forward, "both": both}


def timed(call: Function, device: str) -> float:
    """Milliseconds of one call."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))
    start_s = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start_s)


def peak_mib(call: Function) -> float:
    """GPU memory that a call takes beside its inputs."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(spec: Spec, shape: Shape, device: str, dtype: torch.dtype, rounds: int, limits: dict[str, float]) -> Any:
    """All implementations of one op on one shape."""
    inputs = spec.inputs(shape, dtype, device)
    calls: dict[tuple[str, str], Function] = {}
    result: dict[str, Any] = {
        "op": spec.name,
        "shape": {"sequences": len(shape.lengths), "length": shape.lengths[0], "heads": shape.heads,
                  "d_s": shape.head_dim_s, "d_t": shape.head_dim_t, "layers": shape.layers, "classes": shape.classes},
        "dtype": str(dtype).removeprefix("torch."),
        "floor_ms": {"bytes": 1000 * spec.bytes_moved(shape, dtype) / limits["copy_bytes_per_s"],
                     "flops": 1000 * spec.flops(shape) / limits["flops_per_s"]},
        "ms": {}, "peak_mib": {}, "failed": {},
    }  # fmt: skip
    for name, function in implementations(spec, shape, device).items():
        try:
            torch.compiler.reset()
            for what, call in passes(function, inputs, spec.differentiable).items():
                for _ in range(3):  # compiles, and warms up
                    call()
                calls[name, what] = call
            if device == "cuda":
                result["peak_mib"][name] = round(peak_mib(calls[name, "both"]), 1)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            result["failed"][name] = str(error).splitlines()[0][:200]
            calls = {key: call for key, call in calls.items() if key[0] != name}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            times[key].append(timed(call, device))
    for (name, what), values in times.items():
        result["ms"].setdefault(name, {})[what] = round(statistics.median(values), 4)
    return result


def machine_limits(device: str) -> dict[str, float]:
    """Copy bandwidth and matrix rate, as this machine has them now."""
    size = 2**28 if device == "cuda" else 2**25
    source = torch.ones(size, device=device)
    target = torch.empty_like(source)
    side = 8192 if device == "cuda" else 1024
    a, b = (torch.ones(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        target.copy_(source)
        a @ b
    copy = statistics.median(timed(lambda: target.copy_(source), device) for _ in range(10))
    product = statistics.median(timed(lambda: a @ b, device) for _ in range(10))
    return {"copy_bytes_per_s": 2 * 4 * size / copy * 1000, "flops_per_s": 2 * side**3 / product * 1000}


def device_name(device: str) -> str:
    """What the machine calls its GPU or its processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def line(result: dict[str, Any]) -> str:
    """A measurement in one line: times of a forward and backward pass, and how many times faster ours is."""
    shape = result["shape"]
    what = f"{shape['sequences']}x{shape['length']} {shape['d_s']}/{shape['d_t']}"
    if result["op"] == "soft_cross_entropy":
        what = f"{shape['sequences']}x{shape['classes']}"
    both = {name: ms["both"] for name, ms in result["ms"].items()}
    ours = {name: ms for name, ms in both.items() if name.startswith("ours")}
    others = [ms for name, ms in both.items() if not name.startswith("ours")]
    ratio = f"{min(others) / min(ours.values()):6.2f}x" if others and ours else "      -"
    listed = "  ".join(f"{name} {ms:.3f}" for name, ms in both.items())
    return f"{result['op']:<22}{what:<18}{ratio}  {listed}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpu", action="store_true", help="on the GPU in bf16 (default where there is one)")
    where.add_argument("--cpu", action="store_true", help="on the CPU in fp32")
    parser.add_argument("--op", choices=[spec.name for spec in SPECS if spec.name in EAGER], help="this op alone")
    parser.add_argument("--quick", action="store_true", help="two shapes of each op")
    parser.add_argument("--rounds", type=int, default=20, help="turns that each implementation takes")
    parser.add_argument("--out", type=Path, help="write all figures there, as JSON")
    options = parser.parse_args(argv)
    device = "cpu" if options.cpu or not (options.gpu or torch.cuda.is_available()) else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch sees no GPU: leave --gpu out")
    limits = machine_limits(device)
    print(f"copy {limits['copy_bytes_per_s'] / 1e9:.1f} GB/s, bf16 products {limits['flops_per_s'] / 1e12:.2f} TFLOP/s")
    print("milliseconds of a forward and backward pass; the ratio is the best of the others over the best of ours")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    results = []
    for spec in SPECS:
        if spec.name in EAGER and options.op in (None, spec.name):
            for shape in shapes(spec, device, options.quick):
                results.append(measure(spec, shape, device, dtype, options.rounds, limits))
                print(line(results[-1]), flush=True)
    if options.out:
        facts = {"device": device_name(device), "torch": torch.__version__, **limits}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": facts, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
