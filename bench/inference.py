"""Measure what distillation is for: a teacher-shaped and a student-shaped model, as a user would serve them.

    python -m bench.inference [--gpu | --cpu] [--teacher bert-base] [--student tinybert4] [--batch_size 1,8,64]
                              [--length 32,128,512] [--rounds 50] [--limit_s 60] [--out FILE.json]

Plain transformers in PyTorch, padded to the length, fp32 on a CPU and bf16 on a GPU. The two models take turns in every
round, so that a busy machine slows both alike. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertModel

from bench.record import writable
from bench.timing import chosen_device, device_name
from bench.workload import SHAPES, Workload

WARM_UP = 2  # rounds
FEWEST = 5  # rounds that are timed, however long they take
Result = dict[str, Any]


def times_ms(models: dict[str, nn.Module], batch_size: int, length: int, rounds: int, limit_s: float) -> Result:
    """Milliseconds of every forward pass by model, until there are `rounds` or `limit_s` is over."""
    device = next(next(iter(models.values())).parameters()).device
    times: dict[str, list[float]] = {name: [] for name in models}
    begin = time.perf_counter()
    for number in range(rounds + WARM_UP):
        if number >= FEWEST + WARM_UP and time.perf_counter() - begin > limit_s:
            break
        ids = torch.randint(1000, 30000, (batch_size, length), generator=torch.Generator().manual_seed(number))
        inputs = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
        for name, model in models.items():
            start = time.perf_counter()
            with torch.inference_mode():
                model(**inputs)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: values[WARM_UP:] for name, values in times.items()}


def summary(times: dict[str, list[float]], batch_size: int, length: int) -> Result:
    """p50, p95 and sequences per second of each model, and how many times as fast the student is."""
    found: Result = {"batch_size": batch_size, "length": length, "rounds": len(times["teacher"])}
    for name, values in times.items():
        p50, p95 = np.percentile(values, [50, 95])
        found[name] = {"p50_ms": float(p50), "p95_ms": float(p95), "sequences_per_s": 1000 * batch_size / float(p50)}
    found["faster"] = float(found["teacher"]["p50_ms"] / found["student"]["p50_ms"])
    return found


def line(found: Result) -> str:
    """A shape in one line."""
    sides = "  ".join(
        f"{name} {found[name]['p50_ms']:9.2f} (p95 {found[name]['p95_ms']:9.2f}) ms"
        f" {found[name]['sequences_per_s']:9.1f} sequences/s"
        for name in ("teacher", "student")
    )
    return (
        f"{found['batch_size']:>3} x {found['length']:<4}{sides}  {found['faster']:5.1f}x  ({found['rounds']} rounds)"
    )


def numbers(text: str) -> list[int]:
    """``1,8,64`` as numbers of 1 or more."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 1,8,64")
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpu", action="store_true", help="on the GPU (default where there is one)")
    where.add_argument("--cpu", action="store_true", help="on the CPU")
    parser.add_argument("--teacher", choices=SHAPES, default=Workload.teacher)
    parser.add_argument("--student", choices=SHAPES, default=Workload.student)
    parser.add_argument("--batch_size", type=numbers, default=[1, 8, 64])
    parser.add_argument("--length", type=numbers, default=[32, 128, 512])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--limit_s", type=float, default=60, help=f"of a shape, after {FEWEST} rounds")
    parser.add_argument("--out", type=writable, help="write all figures there, as JSON")
    options = parser.parse_args(argv)
    if options.rounds < FEWEST:
        sys.exit(f"error: --rounds {options.rounds}: {FEWEST} at least")
    if max(options.length) > 512:
        sys.exit(f"error: --length {max(options.length)}: these models take 512 tokens at most")
    device = torch.device(chosen_device(options.gpu, options.cpu))
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    work = Workload(teacher=options.teacher, student=options.student)
    models: dict[str, nn.Module] = {
        side: nn.Module.to(BertModel(work.config(name)), device, dtype).eval()
        for side, name in (("teacher", work.teacher), ("student", work.student))
    }
    results = []
    for batch_size in options.batch_size:
        for length in options.length:
            times = times_ms(models, batch_size, length, options.rounds, options.limit_s)
            results.append(summary(times, batch_size, length))
            print(line(results[-1]), flush=True)
    if options.out:
        facts = {"device": device_name(device.type), "torch": torch.__version__, "dtype": str(dtype)}
        shapes = {"teacher": work.teacher, "student": work.student}
        options.out.write_text(json.dumps({"machine": facts, "models": shapes, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
