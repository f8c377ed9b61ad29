"""The processes of a run, as torchrun starts them: what each has to know of the others.

All ranks run the same program. What is decided, said or written is rank 0's, inside `agree` or `first`, which are not
nested; an error there is raised on all. In a run of one process they are plain calls.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
FROM_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LONGEST_WAIT = timedelta(days=7)  # for what rank 0 does alone; the end of a process is noticed at once
# of errors, as one rank tells them to another; the rest are told as a RuntimeError
KINDS = (torch.OutOfMemoryError, MemoryError, FloatingPointError, OSError, ValueError, KeyboardInterrupt)


class ToldError(Exception):
    """The cause of an error that rank 0 had, and said, on a rank that was told of it."""


def join() -> None:
    """Meet the processes that were started beside this one; does nothing the second time, or where there are none.

    Raises:
        ValueError: WORLD_SIZE says that there are some, and nothing says where.
    """
    if (os.environ.get("WORLD_SIZE") or "1") == "1" or dist.is_initialized():
        return
    if missing := [name for name in FROM_TORCHRUN if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {', '.join(missing)} not set: start the processes with "
            "torchrun, or unset WORLD_SIZE"
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, timeout=LONGEST_WAIT)


def leave() -> None:
    """Part from the other ranks, after work that went well on all of them."""
    if world_size() > 1:
        dist.destroy_process_group()


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this process is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def take_gpu() -> None:
    """Make this rank's GPU the current one.

    Raises:
        ValueError: there are fewer GPUs than ranks on this machine.
    """
    if world_size() > 1:
        here, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if here >= gpus:
            raise ValueError(f"there are {gpus} GPUs for {here + 1} processes or more: set --nproc_per_node to {gpus}")
        torch.cuda.set_device(here)


def agree(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, which alone does it; the others wait, and return or raise the same."""
    if world_size() == 1:
        return work()
    told: list[Any] = [None, None]  # the result, the error
    try:
        if rank() == 0:
            told[0] = work()
    except BaseException as error:
        told[1] = next((kind for kind in KINDS if isinstance(error, kind)), RuntimeError), str(error)
        raise
    finally:
        with _others_there():
            dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        kind, text = told[1]
        raise kind(text) from ToldError()
    result: T = told[0]
    return result


def first(work: Callable[[], T]) -> T:
    """What `work` returns, done by rank 0 before the others begin; what it raises there is raised on all."""
    done: list[T] = []
    agree(lambda: done.append(work()))
    return done[0] if done else work()


def total(number: int) -> int:
    """The sum of every rank's `number`."""
    if world_size() == 1:
        return number
    numbers = torch.tensor(number)
    with _others_there():
        dist.all_reduce(numbers)
    return int(numbers)


def mean_(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by its mean over the ranks, which all have tensors of these shapes; sparse on CPUs too."""
    if world_size() == 1:
        return
    dense = [t for t in tensors if not t.is_sparse]
    flat = torch.cat([t.flatten() for t in dense])
    with _others_there():
        for tensor in (flat, *(t for t in tensors if t.is_sparse)):
            dist.all_reduce(tensor)
            tensor /= world_size()
    parts = flat.split([t.numel() for t in dense])
    torch._foreach_copy_(dense, [part.view_as(t) for part, t in zip(parts, dense, strict=True)])


@contextmanager
def _others_there() -> Iterator[None]:
    """A rank that ended, and said why, ends this one too."""
    try:
        yield
    except RuntimeError as error:
        raise SystemExit(f"rank {rank()} ends, for another rank is gone ({error})") from error
