"""Measure whole distillation steps: published loops and ours, one process after the other, with the device to itself.

    python -m bench.step [--gpu | --cpu] [--teacher bert-base] [--student tinybert4] [--text sst2] [--length 64]
                         [--blocks] [--batch_size 32] [--soft] [--steps 10] [--loops published,compiled,textbrewer,ours]
                         [--data FOLDER] [--out FILE.json]

Real tokens per second (padding does not count), the median step, the most memory the process held, the share of the
machine's matrix rate that the model's own arithmetic reaches, and for ours where the time goes. A step lasts from the
end of the one before to its own, where there is a GPU by the GPU's clock: the measurement waits for the last alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import loops
from bench.record import writable
from bench.timing import Marks, chosen_device, device_name, machine_limits, process_peak_mib
from bench.workload import DATA, SHAPES, Workload
from fastdistill.batch import ahead
from fastdistill.data.packing import Sequences
from fastdistill.step import Runtime

WARM_UP = 3  # steps, which compile whatever is to be compiled
POOL = 128  # batches of text, from which our loader draws as from a whole corpus; the others take them in order
LAUNCHED = 2**27  # clock cycles of a GPU, some 70 ms: to launch a step takes less
MACHINE = "machine"  # a job beside the loops'
Result = dict[str, Any]


def model_flops(work: Workload, lengths: Tensor, cached: bool = False) -> float:
    """What the models multiply for sequences of these lengths: the teacher forward, if it is run, the student thrice.

    Of a layer ``2 n (4 h^2 + 2 h i)`` for its weights and ``4 n^2 h`` for scores and values, h being its hidden size
    and i its intermediate size.

    Shapes:
        lengths: ``(B,)`` n, the tokens of every sequence.
    """
    tokens, pairs = int(lengths.sum()), int(lengths.square().sum())

    def forward(name: str) -> float:
        layers, hidden, intermediate = SHAPES[name]
        return layers * (2.0 * tokens * (4 * hidden * hidden + 2 * hidden * intermediate) + 4.0 * pairs * hidden)

    return (0 if cached else forward(work.teacher)) + 3 * forward(work.student)


def measure(name: str, work: Workload, steps: int, runtime: Runtime) -> Result:
    """One loop in this process."""
    work.check()
    sequences = work.sequences((steps + WARM_UP + 1) * work.batch_size, most=POOL * work.batch_size)
    marks = Marks(runtime.device)
    lengths: list[Tensor] = []
    losses: list[Mapping[str, float | Tensor]] = []

    def after(drawn: Tensor, found: Mapping[str, float | Tensor]) -> None:
        marks.set()
        lengths.append(drawn)
        losses.append(found)

    torch.manual_seed(0)
    loops.LOOPS[name](work, sequences, runtime, steps + WARM_UP, after)
    seconds = marks.seconds()[WARM_UP - 1 :]
    total, timed = sum(seconds), torch.cat(lengths[WARM_UP:]).long()
    step_ms = 1000 * statistics.median(seconds)
    return {
        "loop": name,
        "tokens_per_s": int(timed.sum()) / total,
        "sequences_per_s": len(timed) / total,
        "pairs_per_s": int(timed.square().sum()) / total,
        "step_ms": step_ms,
        "flops_per_s": model_flops(work, timed, cached=name == "cached") / total,
        "peak_mib": process_peak_mib(runtime.device),
        "losses": [{term: float(value) for term, value in found.items()} for found in losses],
        **({"parts_ms": parts(work, sequences, runtime, step_ms)} if name == "ours" else {}),
    }


def parts(work: Workload, sequences: Sequences, runtime: Runtime, step_ms: float, steps: int = 10) -> dict[str, float]:
    """Where the `step_ms` of our step go: median milliseconds of its parts, one after the other, and what they leave.

    A GPU is kept waiting until a step has been launched: a part is its kernels alone, and what they leave, the gaps,
    is how long a step lets the GPU wait.
    """
    step = loops.our_step(work, runtime)
    batches = ahead(loops.our_batches(work, sequences), runtime.device)
    found: list[list[float]] = []
    for _ in range(steps + WARM_UP):
        marks = Marks(runtime.device)
        if runtime.device.type == "cuda":
            torch.cuda._sleep(LAUNCHED)
        marks.set()
        batch = next(batches)
        marks.set()
        with runtime.autocast():
            target = step.teach(batch)
            marks.set()
            output = step.student(batch, step.objective.student_taps)
            marks.set()
            loss, _ = step.objective(output, target, batch)
            marks.set()
        loss.backward()
        marks.set()
        step.update(loops.OPTIM.learning_rate)
        marks.set()
        found.append(marks.seconds())
    names = ("data", "teacher", "student forward", "losses", "backward", "update")
    medians = [1000 * statistics.median(column) for column in zip(*found[WARM_UP:], strict=True)]
    return dict(zip(names, medians, strict=True)) | {"gaps": step_ms - sum(medians)}


def machine(device: torch.device) -> Result:
    """What results depend on beside the workload, and what they are held to."""
    return {
        "device": device_name(device.type),
        "torch": torch.__version__,
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        **machine_limits(device.type, torch.bfloat16),
    }


def in_a_process(job: str, options: argparse.Namespace) -> Result:
    """`measure` of a loop, or `machine`, where nothing else has run."""
    given = vars(options) | {"out": None, "child": job}
    flags = [f"--{key}={value}" for key, value in given.items() if value is not None and not isinstance(value, bool)]
    flags += [f"--{key}" for key, value in given.items() if value is True]
    done = subprocess.run([sys.executable, "-m", "bench.step", *flags], capture_output=True, text=True)
    if done.returncode:
        return {"loop": job, "failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def line(result: Result, first: Result, facts: Result) -> str:
    """A measurement in one line."""
    if "failed" in result:
        return f"{result['loop']:<12}failed: {result['failed']}"
    faster = result["tokens_per_s"] / first["tokens_per_s"] if "tokens_per_s" in first else float("nan")
    return (
        f"{result['loop']:<12}{result['tokens_per_s']:>9,.0f} tokens/s {faster:6.2f}x{result['step_ms']:9.1f} ms a step"
        f"{result['peak_mib']:9,.0f} MiB{100 * result['flops_per_s'] / facts['flops_per_s']:6.1f} % of the matrix rate"
    )


def main(argv: list[str] | None = None) -> None:
    defaults = Workload()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpu", action="store_true", help="on the GPU (default where there is one)")
    where.add_argument("--cpu", action="store_true", help="on the CPU")
    parser.add_argument("--teacher", default=defaults.teacher)
    parser.add_argument("--student", default=defaults.student)
    parser.add_argument("--text", default=defaults.text)
    parser.add_argument("--length", type=int, default=defaults.length, help="most tokens of a sequence")
    parser.add_argument("--blocks", action="store_true", help="sequences of exactly that length")
    parser.add_argument("--batch_size", type=int, default=defaults.batch_size)
    parser.add_argument("--soft", action="store_true", help="soft labels of two classes beside the latent losses")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the texts and the tokenizer")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed")
    parser.add_argument(
        "--loops",
        help="which, the first being what others are held to; fused is ours with torch.compile and CUDA graphs "
        "(default published,compiled,textbrewer,ours,cached, and on a GPU fused)",
    )
    parser.add_argument("--out", type=writable, help="write all figures there, as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.steps < 1:
        sys.exit(f"error: --steps {options.steps}: must be 1 or more")
    device = torch.device(chosen_device(options.gpu, options.cpu))
    work = Workload(**{name: value for name, value in vars(options).items() if name in Workload.__dataclass_fields__})
    if options.child:
        runtime = Runtime(device, torch.bfloat16, 20, 200)
        found = machine(device) if options.child == MACHINE else measure(options.child, work, options.steps, runtime)
        print(json.dumps(found))
        return
    usual = "published,compiled,textbrewer,ours,cached" + ",fused" * (device.type == "cuda")
    names = loops.chosen(options.loops or usual, work)
    facts = in_a_process(MACHINE, options)
    if "failed" in facts:
        sys.exit(f"error: {facts['failed']}")
    print(f"products {facts['flops_per_s'] / 1e12:.2f} TFLOP/s in bfloat16", flush=True)
    results: list[Result] = []
    for name in names:
        results.append(in_a_process(name, options))
        print(line(results[-1], results[0], facts), flush=True)
    for part, ms in next((r["parts_ms"] for r in results if "parts_ms" in r), {}).items():
        print(f"  {part:<16}{ms:9.1f} ms")
    if options.out:
        shape = {k: str(v) if isinstance(v, Path) else v for k, v in vars(work).items() if k != "data"}
        options.out.write_text(json.dumps({"machine": facts, "workload": shape, "results": results}, indent=1) + "\n")
    if all("failed" in result for result in results):
        sys.exit("error: no loop ran to its end")


if __name__ == "__main__":
    main()
