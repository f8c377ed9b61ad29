"""Run as a program: how far each attention loss raises this process's high-water mark, forward and backward.

Takes two lengths and prints two numbers of bytes: the ops at the first length, then the references at the second.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from parity import loss_and_gradients

from fastdistill_kernels.spec import Shape
from fastdistill_kernels.specs import ATTENTION_SPECS


def high_water_mark() -> int:
    """Of this program alone: getrusage would count what its parent held when it started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def main() -> None:
    torch.set_num_threads(1)
    for kind, length in zip(("op", "reference"), sys.argv[1:], strict=True):
        for n in (64, int(length)):  # the short run pays for what is allocated once
            before = high_water_mark()
            for spec in ATTENTION_SPECS:
                inputs = spec.inputs(Shape((n,), heads=1, head_dim_s=8, head_dim_t=8))
                loss_and_gradients(getattr(spec, kind), inputs, spec.differentiable)
        print(high_water_mark() - before)


if __name__ == "__main__":
    main()
