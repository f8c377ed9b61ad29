"""What must survive a kill: folders that appear whole or not at all, and the state from which a stage continues."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

HOST = socket.gethostname().replace(".", "-")


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Create `folder` whole or not at all: `write` fills a temporary neighbour, which is flushed and renamed.

    Raises:
        OSError: the disk is full or unwritable; what was there before is untouched.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        for path in (*temporary.rglob("*"), temporary):
            _flush(path)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        _flush(folder.parent)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors wrap the system's error
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{folder} could not be written ({error}); free the disk, then go on (runs: --resume)") from error


def publish_file(path: Path, write: Callable[[Path], object]) -> None:
    """Create the file `path` whole or not at all, or replace it so.

    Raises:
        OSError: the disk is full or unwritable; what was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")  # another run may write the same
    try:
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written ({error})") from error


def sweep(folder: Path) -> None:
    """Delete what `publish_file` was about to write below `folder` when its process, on this machine, was killed."""
    for path in folder.rglob(f".*.{HOST}.*.tmp"):
        try:
            os.kill(int(path.name.split(".")[-2]), 0)  # asks whether there is such a process, and does nothing to it
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (PermissionError, ValueError, OverflowError):  # OverflowError: no number of a process
            continue


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass
class Progress:
    """How far a stage has come; the scalars of a checkpoint.

    `log_offset` is the length in bytes of the log when the checkpoint was written; what a killed run logged after it
    is cut. `most_tokens` is what memory has been found to have room for, with activations kept or computed again;
    `lacks_room_for_graphs`, that it had none for CUDA graphs besides.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_score: float | None = None
    log_offset: int = 0
    most_tokens: float = math.inf
    recomputes: bool = False
    lacks_room_for_graphs: bool = False


@dataclass
class TrainingState:
    """All that a stage needs to continue exactly: saved and restored as one. Batches bring their own randomness."""

    student: nn.Module
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    progress: Progress
    best: dict[str, Tensor] | None = None

    def save(self, folder: Path) -> None:
        save_file(weights(self.student), folder / "student.safetensors")
        save_file(weights(self.objective), folder / "objective.safetensors")
        if self.best is not None:
            save_file(self.best, folder / "best.safetensors")
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        (folder / "progress.json").write_text(json.dumps(asdict(self.progress)))

    def restore(self, folder: Path) -> None:
        self.student.load_state_dict(load_file(folder / "student.safetensors"))
        self.objective.load_state_dict(load_file(folder / "objective.safetensors"))
        best = folder / "best.safetensors"
        self.best = load_file(best) if best.exists() else None
        saved = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        # the options are those of the recipe as it is now
        self.optimizer.load_state_dict(saved | {"param_groups": self.optimizer.state_dict()["param_groups"]})
        self.progress = Progress(**json.loads((folder / "progress.json").read_text()))


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's state on the CPU, each tensor with memory of its own (tied weights are written twice)."""
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}


def take_fitting(module: nn.Module, path: Path) -> None:
    """Load those tensors of a file, where there is one, whose names and shapes the module has."""
    if path.exists():
        own = module.state_dict()
        fitting = {k: v for k, v in load_file(path).items() if k in own and own[k].shape == v.shape}
        module.load_state_dict(own | fitting)


class Checkpoints:
    """The numbered checkpoints of one stage; only the newest is kept."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.folder, self.stage = folder, stage

    def latest(self) -> Path | None:
        found = self._all()
        return found[-1] if found else None

    def _all(self) -> list[Path]:
        """From the oldest to the newest."""
        return sorted(self.folder.glob(f"{self.stage}-{'[0-9]' * 8}"))

    def save(self, state: TrainingState) -> None:
        publish(self.folder / f"{self.stage}-{state.progress.step:08d}", state.save)
        for old in self._all()[:-1]:
            shutil.rmtree(old)

    def clear(self) -> None:
        for path in self._all():
            shutil.rmtree(path)
