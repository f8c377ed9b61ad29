"""fastdistill: distil any Hugging Face encoder into a student many times smaller.

The vocabulary (`Recipe` and its parts, the stages) is imported at once; `run` and the losses, which need torch, on
first use, so that a command line answers before torch is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastdistill.cli import main as main
from fastdistill.recipe import Augment as Augment
from fastdistill.recipe import Corpus as Corpus
from fastdistill.recipe import Losses as Losses
from fastdistill.recipe import Optim as Optim
from fastdistill.recipe import Recipe as Recipe
from fastdistill.recipe import Stage as Stage
from fastdistill.recipe import Student as Student
from fastdistill.recipe import Task as Task
from fastdistill.recipe import Teacher as Teacher
from fastdistill.stages import CONTROL as CONTROL
from fastdistill.stages import ERNIE_TINY as ERNIE_TINY
from fastdistill.stages import FINETUNE as FINETUNE

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastdistill.models.encoder import Encoder as Encoder
    from fastdistill.runner import run as run


def __getattr__(name: str) -> Any:
    if name == "run":
        from fastdistill.runner import run

        return run
    if name == "Encoder":
        from fastdistill.models.encoder import Encoder

        return Encoder
    raise AttributeError(f"module 'fastdistill' has no attribute {name!r}")
