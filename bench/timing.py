"""How a call is measured, or a program's steps: time, memory; and what the machine could do at best."""

from __future__ import annotations

import ctypes
import functools
import gc
import platform
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.accuracy import leaves, loss_of

Call = Callable[[], object]
Ready = Callable[[], Call]
"""Makes ready, outside of the timing, what is then timed."""

HEAD_START = 2**22  # clock cycles of a GPU, about 2 ms: to launch a call takes less


def passes(function: Callable[..., Any], inputs: dict[str, Any], differentiable: tuple[str, ...]) -> dict[str, Ready]:
    """What is timed: both passes, the forward pass without gradients, the backward pass of a loss made just before.

    An op that makes its gradient in the forward pass has little left for "backward": only "both" compares it.
    """
    flat = leaves(inputs, differentiable)

    def both() -> None:
        torch.autograd.grad(loss_of(function, inputs), flat)

    def forward() -> None:
        with torch.no_grad():
            loss_of(function, inputs)

    return {
        "both": lambda: both,
        "forward": lambda: forward,
        "backward": lambda: functools.partial(torch.autograd.grad, loss_of(function, inputs), flat),
    }


def warmed_up(ready: Ready) -> Ready:
    """`ready` after three calls, which compile whatever is to be compiled."""
    for _ in range(3):
        ready()()
    return ready


def timed(ready: Ready, device: str) -> float:
    """Milliseconds of one call; on a GPU of its kernels, with nothing in the L2 cache.

    They are launched while the GPU is kept waiting: the host's own time counts only where it takes longer than that.
    """
    call = ready()
    if device == "cuda":
        filler = _l2_filler()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(HEAD_START)
        filler.zero_()
        start.record()  # the host has waited for nothing since the GPU fell asleep
        call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))
    start_s = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start_s)


@functools.cache
def _l2_filler() -> Tensor:
    """Four times the GPU's L2 cache: twice would do if it always gave up what is oldest."""
    size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.empty(4 * size, dtype=torch.uint8, device="cuda")


class Marks:
    """Moments in the work of a device: a GPU notes the time when it comes to them, and is not waited for.

    So what a program launches ahead of its GPU is timed where it is done. On a CPU they are read from the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.events: list[Any] = []
        self.clock: list[float] = []

    def set(self) -> None:
        """One more moment: now, or when all that has been launched is done."""
        if self.on_gpu:
            self.events.append(torch.cuda.Event(enable_timing=True))
            self.events[-1].record()
        else:
            self.clock.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From each moment to the next; waits for the last one, once."""
        if self.on_gpu:
            self.events[-1].synchronize()
            return [a.elapsed_time(b) / 1000 for a, b in pairwise(self.events)]
        return [b - a for a, b in pairwise(self.clock)]


def process_peak_mib(device: torch.device) -> float:
    """The most memory that this process has held since `forget_peak`: on the GPU, or else altogether."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**10


def forget_peak(device: torch.device) -> None:
    """Count the most memory of this process from what it holds now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # glibc holds on to what was freed
        Path("/proc/self/clear_refs").write_text("5")  # as proc(5) has it


def peak_mib(call: Call, device: str) -> float:
    """Memory that a call takes beside its inputs, as PyTorch's allocator counts it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    assert profile.kineto_results is not None
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    taken = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        taken += event.nbytes()  # negative where memory is given back
        most = max(most, taken)
    return most / 2**20


def captured(call: Call) -> Ready:
    """The kernels of `call` as one CUDA graph: replaying it launches once."""
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # puts the current stream back, also where a capture fails halfway
        for _ in range(3):
            call()
        gc.collect()  # what Python frees during a capture may break it
        with torch.cuda.graph(graph):
            call()
    torch.cuda.synchronize()
    return lambda: graph.replay


def machine_limits(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Copy bandwidth, and rate of matrix products in `dtype`, at their best of 30 tries, and of two sizes of product:
    oneDNN leaves one of two threads idle in some."""
    size = 2**28 if device == "cuda" else 2**25
    source = torch.ones(size, device=device)
    target = torch.empty_like(source)
    sides = (4096, 8192) if device == "cuda" else (1024, 2048)

    def best(call: Call) -> float:
        ready = warmed_up(lambda: call)
        return min(timed(ready, device) for _ in range(30))

    def rate(side: int) -> float:
        # zeros and ones would run cooler
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        return 2 * side**3 / best(lambda: a @ b) * 1000

    copy = best(lambda: target.copy_(source))
    return {"copy_bytes_per_s": 2 * 4 * size / copy * 1000, "flops_per_s": max(map(rate, sides))}


def chosen_device(gpu: bool, cpu: bool) -> str:
    """The GPU where there is one, unless `cpu`; ends the program where `gpu` asks for one that is not there."""
    there = torch.cuda.is_available()
    if gpu and not there:
        sys.exit("error: --gpu, but torch sees no GPU: leave it out, or pass --cpu")
    return "cuda" if there and not cpu else "cpu"


def device_name(device: str) -> str:
    """What the machine calls its GPU or its processor, whose family tells apart what hypervisors call by one name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    for line in info.read_text().splitlines() if info.exists() else []:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    name, threads = facts.get("model name", platform.machine()), torch.get_num_threads()
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return f"{name}, {threads} thread{'s' * (threads > 1)}"
