"""One process of a run of one stage, gd, with two batches a step, and with something that happens to a rank in step 5.

    python -m tests.ranked_run WORLD OUT EVENT [OPTION ...]

Events: none, killed (every rank), gone (rank 1 alone, by kill -9), nan (rank 0's losses), disk (rank 0 cannot write its
checkpoint).
"""

import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastdistill import checkpoint, main, ranks
from fastdistill.step import Step
from tests.tiny import only, tiny_recipe

if __name__ == "__main__":
    world, out, event = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    recipe = only(tiny_recipe(world, out), "gd")
    gd = replace(recipe.stages["gd"], gradient_accumulation_steps=2)
    recipe = replace(recipe, stages={"gd": gd}, task=replace(recipe.task, path=None))
    forward, flush, steps = Step.forward, checkpoint._flush, 0

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

    Step.forward, checkpoint._flush = eventful, full  # type: ignore[method-assign,assignment]
    main(recipe, "", argv=sys.argv[4:])
