"""Find what fits: the largest batch of one length, and the longest sequence, that a whole training step has memory for.

    python -m bench.memory [--gpu | --cpu] [--limit_gib 4] [--length 128] [--batch_size 8] [--most 4096]
                           [--longest 32768] [--loops published,compiled,ours] [--teacher bert-base]
                           [--student tinybert4] [--data FOLDER] [--out FILE.json]

Full blocks of Wikipedia. Sizes double until a loop lacks memory, each try a step in a process of its own that may hold
`--limit_gib` and no more. Ours is given to lack memory too; what it then says, that it goes on in pieces, is kept. A
step that fails for another reason ends the program.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import loops
from bench.record import writable
from bench.timing import chosen_device, device_name, process_peak_mib
from bench.workload import DATA, SHAPES, Workload
from fastdistill.machine import lacks_memory
from fastdistill.step import Runtime

Result = dict[str, Any]
LACKING = ("MemoryError", "annot allocate", "bad_alloc", "Thread creation failed", "can't start new thread")
"""What a process with a limit says of it, beside what the engine knows."""


def attempt(name: str, work: Workload, limit_gib: float, device: torch.device) -> Result:
    """One step in this process; raises where memory does not suffice."""
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gib * 2**30 / whole))
    else:
        most = int(limit_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    torch.manual_seed(0)
    seen: list[Tensor] = []
    sequences = work.sequences(2 * work.batch_size)
    runtime = Runtime(device, torch.bfloat16, 20, 200)
    loops.LOOPS[name](work, sequences, runtime, 1, lambda lengths, _: seen.append(lengths))
    return {"tokens": int(seen[0].sum()), "peak_mib": process_peak_mib(device)}


def in_a_process(name: str, work: Workload, limit_gib: float, device: torch.device) -> Result:
    """`attempt` where nothing else has run: what it found, how it `failed` to fit, or what other `error` there was."""
    job = json.dumps([name, asdict(work) | {"data": str(work.data)}, limit_gib, device.type])
    done = subprocess.run([sys.executable, "-m", "bench.memory", "--job", job], capture_output=True, text=True)
    if done.returncode:
        killed = done.returncode < 0
        lacking = lacks_memory(RuntimeError(done.stderr)) or any(text in done.stderr for text in LACKING)
        end = f"ended by signal {-done.returncode}" if killed else f"ended with status {done.returncode}"
        return {"failed" if killed or lacking else "error": (done.stderr.strip().splitlines() or [end])[-1][:200]}
    *said, last = done.stdout.splitlines()
    found: Result = json.loads(last)
    return found | {"said": [line for line in said if "memory" in line]}


def grow(name: str, work: Workload, axis: str, most: int, limit_gib: float, device: torch.device) -> Result:
    """Double `axis` (batch_size or length) of the workload up to `most`, until a step does not fit."""
    tries: list[Result] = []
    while getattr(work, axis) <= most:
        found = in_a_process(name, work, limit_gib, device)
        tries.append({axis: getattr(work, axis), **found})
        if "peak_mib" not in found:
            break
        work = replace(work, **{axis: 2 * getattr(work, axis)})
    fits = [one[axis] for one in tries if "peak_mib" in one]
    return {"loop": name, "axis": axis, "fits": max(fits, default=0), "tries": tries}


def line(found: Result) -> str:
    """The outcome of one loop and axis."""
    last = found["tries"][-1]
    end = next((f"then: {last[why]}" for why in ("failed", "error") if why in last), "and no more was tried")
    pieces = next((one["said"][-1] for one in reversed(found["tries"]) if one.get("said")), "")
    return f"{found['loop']:<12}{found['axis']:<11}{found['fits']:>7,}  {end}{f' ({pieces})' if pieces else ''}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpu", action="store_true", help="on the GPU (default where there is one)")
    where.add_argument("--cpu", action="store_true", help="on the CPU")
    parser.add_argument("--limit_gib", type=float, default=4.0, help="memory that a process may hold")
    parser.add_argument("--length", type=int, default=128, help="of the sequences whose number grows")
    parser.add_argument("--batch_size", type=int, default=8, help="the first that is tried")
    parser.add_argument("--most", type=int, default=4096, help="largest batch that is tried")
    parser.add_argument("--longest", type=int, default=32768, help="longest sequence that is tried")
    parser.add_argument("--loops", default="published,compiled,ours")
    parser.add_argument("--teacher", choices=SHAPES, default=Workload.teacher)
    parser.add_argument("--student", choices=SHAPES, default=Workload.student)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the texts and the tokenizer")
    parser.add_argument("--out", type=writable, help="write all figures there, as JSON")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.job:
        name, values, limit_gib, kind = json.loads(options.job)
        work = Workload(**values | {"data": Path(values["data"])})
        print(json.dumps(attempt(name, work, limit_gib, torch.device(kind))))
        return
    device = torch.device(chosen_device(options.gpu, options.cpu))
    work = Workload(
        options.teacher, options.student, "wiki", options.length, True, options.batch_size, data=options.data
    )
    names = loops.chosen(options.loops, work)
    if not 0 < options.limit_gib < math.inf:
        sys.exit(f"error: --limit_gib {options.limit_gib}: must be more than 0, and finite")
    for last, first in (("most", "batch_size"), ("longest", "length")):
        if getattr(options, last) < getattr(options, first):
            least = f"--{first} {getattr(options, first)}"
            sys.exit(f"error: --{last} {getattr(options, last)}: must be {least}, which is tried first, or more")
    facts = {"device": device_name(device.type), "torch": torch.__version__, "limit_gib": options.limit_gib}
    shape = {"teacher": work.teacher, "student": work.student, "length": work.length}
    results: list[Result] = []
    for axis, start, most in (
        ("batch_size", work, options.most),
        ("length", replace(work, batch_size=1), options.longest),
    ):
        for name in names:
            results.append(grow(name, start, axis, most, options.limit_gib, device))
            print(line(results[-1]), flush=True)
            if options.out:
                found = {"machine": facts, "workload": shape, "results": results}
                options.out.write_text(json.dumps(found, indent=1) + "\n")
            if "error" in (last := results[-1]["tries"][-1]):
                sys.exit(f"error: {name}, {axis} {last[axis]}: {last['error']}")


if __name__ == "__main__":
    main()
