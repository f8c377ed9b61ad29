"""What there is of memory and processors, and what a forward pass keeps."""

from __future__ import annotations

import math
import os
import re
import resource
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

LACKING = re.compile(
    "DefaultCPUAllocator: can't allocate"
    "|could not create a primitive(?! descriptor)"  # as oneDNN has it; no descriptor: it knows no way
    "|CUDA error: out of memory"
    r"|Triton Error \[CUDA\]: out of memory"
    "|CUBLAS_STATUS_ALLOC_FAILED"
    "|CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate"  # which found no room for its workspace
)
PROCESS = Path("/proc/self")
CONTROL_GROUPS = Path("/sys/fs/cgroup")
T = TypeVar("T")


def lacks_memory(error: BaseException | None) -> bool:
    """Whether it was raised because memory ran out, on the GPU or the CPU, or while such an error was handled.

    A recording of a CUDA graph in which memory runs out ends with an error of its own.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or LACKING.search(str(error)):
            return True
        error = error.__cause__ if error.__suppress_context__ else error.__context__
    return False


@dataclass
class Portion:
    """How many tokens are computed at once where there are no gradients: half as many from when memory lacks."""

    tokens: int
    say: Callable[[str], None] = print

    def of(self, work: Callable[[int], T], least: int) -> T:
        """What `work(tokens)` returns; never with less than `least`, which are tried before an error is raised."""
        while True:
            try:
                return work(max(self.tokens, least))
            except (RuntimeError, MemoryError) as error:
                if self.tokens <= least or not lacks_memory(error):
                    raise
            failed, self.tokens = self.tokens, max(self.tokens // 2, least)
            if torch.cuda.is_initialized():  # out here, where nothing holds on to the tensors of the failed attempt
                torch.cuda.empty_cache()
            self.say(f"out of memory with {failed:,} tokens at once: going on with {self.tokens:,}")


def free_bytes(device: torch.device) -> float:
    """What this process may still take on `device`, as far as the system tells; infinity where it does not.

    On a CPU the least of what is free and what the process's control groups (version 2, as of a container) leave,
    shared by the ranks of this machine, and its own limit on data.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        ours = torch.cuda.memory_reserved(device)
        share = total * torch.cuda.get_per_process_memory_fraction()
        return min(free, share - ours) + ours - torch.cuda.memory_allocated(device)
    limits = [1024 * _number(PROCESS.parent / "meminfo", "MemAvailable:", math.inf)]
    for group in _control_groups():
        used = _number(group / "memory.current", "", 0)
        cached = sum(_number(group / "memory.stat", name, 0) for name in ("inactive_file", "active_file"))
        limits.append(_number(group / "memory.max", "", math.inf) - used + cached)
    limits = [limit / int(os.environ.get("LOCAL_WORLD_SIZE", "1")) for limit in limits]
    data, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if data != resource.RLIM_INFINITY:
        limits.append(data - 1024 * _number(PROCESS / "status", "VmData:", 0))
    return max(0.0, min(limits))


def processors() -> int:
    """Threads that can run at once: as many as torch would take, and the process's control groups give time for."""
    limits = [float(torch.get_num_threads())]
    for group in _control_groups():
        words = " ".join(_lines(group / "cpu.max")).split()  # microseconds, of how many
        if len(words) == 2 and words[0].isdigit():
            limits.append(int(words[0]) / int(words[1]) / int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(1, int(min(limits)))


def _control_groups() -> list[Path]:
    """The folders of the process's control group and of those above it."""
    found = [line[3:] for line in _lines(PROCESS / "cgroup") if line.startswith("0::/")]
    group = CONTROL_GROUPS / found[0].lstrip("/") if found else CONTROL_GROUPS
    return [group, *(folder for folder in group.parents if folder.is_relative_to(CONTROL_GROUPS))]


def _number(path: Path, name: str, missing: float) -> float:
    """The number behind `name` in one of the system's tables; `missing` where there is none, or no such file."""
    found = [line.removeprefix(name).split() for line in _lines(path) if line.startswith(name)]
    return float(found[0][0]) if found and found[0] and found[0][0].isdigit() else missing


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []


def bytes_kept(forward: Callable[[], object], apart: Iterable[Tensor]) -> int:
    """What `forward` keeps for its backward pass, but for the memory of the tensors `apart`."""
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        _held = forward()  # until it is counted, lest memory be used twice
    for x in apart:
        sizes.pop(x.untyped_storage().data_ptr(), None)
    return sum(sizes.values())
