"""Memory: what there is of it, what a forward pass keeps of it, and whether an error says that it ran out."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

LACKING = (
    "DefaultCPUAllocator: can't allocate",
    "could not create a primitive",  # as oneDNN has it
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
CONTROL_GROUP = Path("/sys/fs/cgroup")


def lacks_memory(error: Exception) -> bool:
    """Whether it was raised because memory ran out, on the GPU or the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in LACKING)


def free_bytes(device: torch.device) -> float:
    """What this process may still take on `device`, as far as the system tells; infinity where it does not.

    The least of what is free and what the process's control group (a container) leaves, shared by the ranks of this
    machine, and its own limit on data.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        ours = torch.cuda.memory_reserved(device)
        share = total * torch.cuda.get_per_process_memory_fraction(device)
        return min(free, share - ours) + ours - torch.cuda.memory_allocated(device)
    limits = [_field(Path("/proc/meminfo"), "MemAvailable:", 1024)]
    most = CONTROL_GROUP / "memory.max"
    if most.exists() and (text := most.read_text().strip()).isdigit():
        used = int((CONTROL_GROUP / "memory.current").read_text())
        limits.append(int(text) - used + _field(CONTROL_GROUP / "memory.stat", "inactive_file", 1, missing=0))
    limits = [limit / int(os.environ.get("LOCAL_WORLD_SIZE", "1")) for limit in limits]
    data, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if data != resource.RLIM_INFINITY:
        limits.append(data - _field(Path("/proc/self/status"), "VmData:", 1024, missing=0))
    return max(0.0, min(limits))


def _field(path: Path, name: str, unit: int, missing: float = math.inf) -> float:
    """The number behind `name` in one of the system's tables, in bytes."""
    lines = path.read_text().splitlines() if path.exists() else []
    return next((unit * int(line.split()[1]) for line in lines if line.startswith(name)), missing)


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
