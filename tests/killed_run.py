"""Run the miniature job and kill -9 the process at a chosen moment.

    python -m tests.killed_run WORLD OUT MOMENT COUNT [resume | overwrite | tad]

Moments: step (before the COUNT-th optimiser step of all), write (at the COUNT-th file flushed while something is
written), stage (the same, of tsd's folder), rename (right after the COUNT-th folder got another name), report (at its
loss curves), none. What OUT holds is resumed, overwritten, or run again from stage tad on.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastdistill import checkpoint, report
from fastdistill.runner import run
from tests.tiny import tiny_recipe


def kill_at(count: int, function: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(*args, **kwargs) if after or calls != count else None
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return counted


if __name__ == "__main__":
    world, out, moment, count = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    torch.set_num_threads(1)
    if moment == "step":
        torch.optim.AdamW.step = kill_at(count, torch.optim.AdamW.step, after=False)  # type: ignore[method-assign]
    if moment == "write":
        checkpoint._flush = kill_at(count, checkpoint._flush, after=False)
    if moment == "stage":
        flush = checkpoint._flush
        last = kill_at(count, flush, after=False)
        checkpoint._flush = lambda path: (last if path.parent.name == ".tsd.tmp" else flush)(path)
    if moment == "rename":
        Path.rename = kill_at(count, Path.rename, after=True)  # type: ignore[method-assign]
    if moment == "report":
        report.loss_curves = kill_at(count, report.loss_curves, after=False)
    how: dict[str, Any] = {"tad": {"from_stage": "tad"}, "overwrite": {"overwrite": True}, "resume": {"resume": True}}
    run(tiny_recipe(world, out), **how[sys.argv[5] if len(sys.argv) > 5 else "resume"])
