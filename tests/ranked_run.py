"""A run of one stage, gd, with two batches a step, as one process of several, and what may happen to it in step 5.

Events: none, killed (every rank), gone (rank 1 alone, by kill -9), nan (rank 0's losses), disk (rank 0 cannot write its
checkpoint).
"""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastdistill import checkpoint, main, ranks
from fastdistill.runner import run as run  # and all that it imports: once, not in every process
from fastdistill.step import Step
from fastdistill.teacher_cache import Cached
from tests.tiny import only, tiny_recipe


def ranked_run(world: Path, out: Path, event: str, options: list[str], said: Path, environment: dict[str, str]) -> None:
    """Run it with what torchrun tells a process by `environment`; all that is printed goes to the file `said`."""
    os.environ.update(environment)
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    recipe = only(tiny_recipe(world, out), "gd")
    gd = replace(recipe.stages["gd"], gradient_accumulation_steps=2)
    recipe = replace(recipe, stages={"gd": gd}, task=replace(recipe.task, path=None))
    forward, flush, fill = Step.forward, checkpoint._flush, Cached.fill

    def eventful(step: Step, *batches: Any) -> Any:
        loss, values = forward(step, *batches)
        begun = any(float(state["step"]) >= 4 for state in step.optimizer.state.values())
        if begun and (event == "killed" or event == "gone" and ranks.rank() == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return (loss * math.nan if begun and event == "nan" and ranks.rank() == 0 else loss), values

    def full(path: Path) -> None:
        if event == "disk" and ranks.rank() == 0 and path.parent.name.startswith(".gd-"):
            raise OSError(28, "No space left on device")
        flush(path)

    def told(cache: Cached, *arguments: Any) -> Any:
        print("the teacher is asked", flush=True)
        return fill(cache, *arguments)

    Cached.fill = told  # type: ignore[method-assign]
    Step.forward, checkpoint._flush = eventful, full  # type: ignore[method-assign,assignment]
    main(recipe, "", argv=options)
