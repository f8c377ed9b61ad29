"""Measure every op against eager PyTorch and torch.compile, side by side in one run.

    python -m bench.ops [--gpu | --cpu] [--op NAME] [--quick] [--limit_s S] [--out FILE.json]

Needs torch and triton alone. All figures of a shape come from turns taken round after round, so that a busy machine
slows all alike; times are medians, in milliseconds, of a forward pass, a backward pass, and both; on a GPU those of its
kernels, launched while it is kept waiting, and small shapes are also replayed as a CUDA graph. Beside them stand the
memory that both passes take, the errors against float64, and two floors: the bytes that must move at the copy bandwidth
measured at the start, the products at the matrix rate; for the Gram form, which makes no scores, the bytes alone
count. `--out` keeps all figures: README.md is made from bench/results/MACHINE/ops.json.
"""

from __future__ import annotations

import argparse
import functools
import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from bench import figures
from bench.accuracy import errors, truth
from bench.opponents import EAGER, liger
from bench.record import writable
from bench.timing import Ready, captured, chosen_device, device_name, machine_limits, passes, peak_mib, timed, warmed_up
from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import SPECS

T = TypeVar("T")
Function = Callable[..., Any]

# sequences x length, what matters most first: a run may be cut short
BATCHES = {
    "cuda": ((32, 512), (32, 128), (4, 8192), (1, 32768), (256, 128), (8, 2048)),
    "cpu": ((32, 128), (8, 512), (8, 1024)),
}
HIDDEN_BATCHES = {"cuda": ((256, 128), (32, 128)), "cpu": ((16, 128),)}
# rows x classes
LOGITS = {
    "cuda": ((8192, 30522), (2048, 128256), (8192, 77), (8192, 2)),
    "cpu": ((512, 30522), (128, 128256), (512, 77), (512, 2)),
}
HEAD_SIZES = (26, 32, 64)  # of students
MAPS_THAT_FIT = 2**33  # scores of one side that eager may form: 32 GiB in fp32
LAUNCH_BOUND = 32 * 512**2  # scores of a head up to which kernels are so short that launching them counts


def shapes(spec: Spec, device: str, quick: bool) -> list[Shape]:
    """The grid of an op; with `quick` the two shapes that move the least, small enough for any machine."""
    if spec.name == "soft_cross_entropy":
        grid = [Shape((1,) * rows, classes=classes) for rows, classes in LOGITS[device]]
    else:
        hidden = spec.name.startswith("hidden")
        sizes = HEAD_SIZES if hidden or device == "cuda" else HEAD_SIZES[:1]
        grid = [
            Shape((length,) * count, heads=12, head_dim_s=d, head_dim_t=64, layers=5 if hidden else 1)
            for d in sizes
            for count, length in (HIDDEN_BATCHES if hidden else BATCHES)[device]
        ]
    return sorted(grid, key=lambda shape: spec.bytes_moved(shape, torch.float32))[:2] if quick else grid


def implementations(spec: Spec, shape: Shape, device: str) -> dict[str, Function]:
    """By name: eager, compiled, ours (each algorithm), Liger's."""
    found: dict[str, Function] = {}
    attention = spec.name.startswith("attention")
    if shape.heads * shape.pairs <= MAPS_THAT_FIT or not attention:
        eager = EAGER[spec.name]
        found = {"eager": eager, "compile": torch.compile(eager, dynamic=False)}
        batch = len(shape.lengths), shape.lengths[0]
        worth_a_minute = not attention or shape.head_dim_s == HEAD_SIZES[0] or batch in BATCHES["cuda"][:2]
        if device == "cuda" and worth_a_minute:  # without CUDA graphs of its own, that copy the inputs in every call
            found["max-autotune"] = torch.compile(eager, dynamic=False, mode="max-autotune-no-cudagraphs")
    if spec.name == "attention_score_mse":
        found |= {f"ours, {way}": functools.partial(spec.op, algorithm=way) for way in ("tiled", "gram")}
    else:
        found["ours"] = spec.op
    if (other := liger(spec.name)) is not None:
        found["liger"] = other
    return found


def release() -> None:
    """Give back what nobody holds; raises where the GPU is lost, for nothing measured after that would be true."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def attempt(failed: dict[str, str], name: str, call: Callable[[], T]) -> T | None:
    """What `call` returns; None if it fails, with the reason under `name` and its memory given back."""
    try:
        return call()
    except Exception as error:  # compilers raise many kinds
        failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    release()  # not sooner: the error holds the frames that it went through
    return None


def take_turns(
    calls: dict[tuple[str, str], Ready], device: str, rounds: int, failed: dict[str, str]
) -> dict[str, dict[str, float]]:
    """Median milliseconds by implementation and pass."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for (name, what), values in list(times.items()):
            ms = attempt(failed, f"{name}, {what}", functools.partial(timed, calls[name, what], device))
            if ms is None:
                del times[name, what]
            else:
                values.append(ms)
    medians: dict[str, dict[str, float]] = {}
    for (name, what), values in times.items():
        medians.setdefault(name, {})[what] = round(statistics.median(values), 4)
    return medians


def graphs(calls: dict[tuple[str, str], Ready], failed: dict[str, str]) -> dict[tuple[str, str], Ready]:
    """Both passes as CUDA graphs."""
    found: dict[tuple[str, str], Ready] = {}
    for (name, what), ready in calls.items():
        if what == "both":
            replay = attempt(failed, f"{name}, graph", functools.partial(captured, ready()))
            if replay is not None:
                found[name, "graph"] = replay
    return found


def facts(spec: Spec, shape: Shape, dtype: torch.dtype) -> figures.Result:
    """What a result is of."""
    return {
        "op": spec.name,
        "shape": {"sequences": len(shape.lengths), "length": shape.lengths[0], "heads": shape.heads,
                  "d_s": shape.head_dim_s, "d_t": shape.head_dim_t, "layers": shape.layers, "classes": shape.classes},
        "dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip


def measure(spec: Spec, shape: Shape, device: str, dtype: torch.dtype, rounds: int) -> figures.Result:
    """All implementations of one op on one shape; what fails is named, and the rest measured."""
    torch.compiler.reset()
    release()
    inputs = spec.inputs(shape, dtype, device)
    calls: dict[tuple[str, str], Ready] = {}
    failed: dict[str, str] = {}
    error: dict[str, dict[str, float]] = {}
    peak: dict[str, float] = {}
    expected = attempt(failed, "float64", functools.partial(truth, spec, shape, inputs))
    for name, function in implementations(spec, shape, device).items():
        for what, ready in passes(function, inputs, spec.differentiable).items():
            if attempt(failed, f"{name}, {what}", functools.partial(warmed_up, ready)) is not None:
                calls[name, what] = ready
            elif what == "both":
                break
        if (name, "both") not in calls:
            continue
        if expected is not None:
            compare = functools.partial(errors, function, inputs, spec.differentiable, expected)
            if (apart := attempt(failed, f"{name}, error", compare)) is not None:
                error[name] = apart
                if name == "liger":
                    del apart["loss"]  # not the same loss, but the same gradients
        weigh = functools.partial(peak_mib, calls[name, "both"](), device)
        if (mib := attempt(failed, f"{name}, memory", weigh)) is not None:
            peak[name] = round(mib, 4)
    ms = take_turns(calls, device, rounds, failed)
    if device == "cuda" and shape.pairs <= LAUNCH_BOUND:
        for name, replayed in take_turns(graphs(calls, failed), device, rounds, failed).items():
            ms.setdefault(name, {}).update(replayed)
    return {
        **facts(spec, shape, dtype),
        "bytes_moved": spec.bytes_moved(shape, dtype),
        "flops": spec.flops(shape),
        "ms": ms,
        "peak_mib": peak,
        "error": error,
        "failed": failed,
    }


def main(argv: list[str] | None = None) -> None:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpu", action="store_true", help="on the GPU in bf16 (default where there is one)")
    where.add_argument("--cpu", action="store_true", help="on the CPU in fp32")
    parser.add_argument("--op", choices=[spec.name for spec in SPECS], help="this op alone")
    parser.add_argument("--quick", action="store_true", help="two shapes of each op")
    parser.add_argument("--rounds", type=int, default=20, help="turns that each implementation takes")
    parser.add_argument("--limit_s", type=float, default=float("inf"), help="begin no shape after so many seconds")
    parser.add_argument(
        "--out",
        type=writable,
        help="write all figures there, as JSON, shape by shape; of a file that exists, the results of other shapes are "
        "kept, and what it lacks is measured first",
    )
    options = parser.parse_args(argv)
    device = chosen_device(options.gpu, options.cpu)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    machine: dict[str, Any] = {"device": device_name(device), "torch": torch.__version__}
    try:
        kept, known = figures.load(options.out, machine) if options.out else ({}, {})
    except ValueError as error:
        sys.exit(f"error: {options.out}: {error}")
    for name, rate in machine_limits(device, dtype).items():
        machine[name] = max(rate, known.get(name, 0.0))  # what the machine could do once, it can
    rates = f"copy {machine['copy_bytes_per_s'] / 1e9:.1f} GB/s, products {machine['flops_per_s'] / 1e12:.2f} TFLOP/s"
    print(f"{rates} in {dtype}".replace("torch.", ""))
    what = "the best of the others over the best of ours, then milliseconds of both passes (and the largest error)"
    print(what, flush=True)
    specs = [spec for spec in SPECS if options.op in (None, spec.name)]
    jobs = [(facts(s, shape, dtype), s, shape) for s in specs for shape in shapes(s, device, options.quick)]
    jobs.sort(key=lambda job: figures.key(job[0]) in kept)
    for number, (_, spec, shape) in enumerate(jobs):
        if time.monotonic() - start > options.limit_s:
            left = [f"{result['op']} {figures.label(result)}" for result, _, _ in jobs[number:]]
            print(f"left out after {options.limit_s:.0f} s: {', '.join(left)}")
            break
        result = measure(spec, shape, device, dtype, options.rounds)
        print(figures.line(result, machine), flush=True)
        kept[figures.key(result)] = result
        if options.out:
            figures.save(options.out, machine, kept)


if __name__ == "__main__":
    main()
