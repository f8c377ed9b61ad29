"""What is timed is the pass that is named; memory is what one counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.opponents import EAGER
from bench.timing import Marks, forget_peak, machine_limits, passes, peak_mib, process_peak_mib, timed
from fastdistill_kernels.spec import Shape
from fastdistill_kernels.specs import SOFT_CROSS_ENTROPY

log: list[str] = []


class Square(torch.autograd.Function):
    """Tells which of its passes runs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        log.append("forward")
        ctx.save_for_backward(x)
        return x.square().sum()

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> Tensor:  # type: ignore[override]
        log.append("backward")
        (x,) = ctx.saved_tensors
        return 2 * x * d_loss


@pytest.mark.parametrize(
    ("what", "before", "during"),
    [
        ("both", [], ["forward", "backward"]),
        ("forward", [], ["forward", "without gradients"]),
        ("backward", ["forward"], ["backward"]),
    ],
)
def test_passes(what: str, before: list[str], during: list[str]) -> None:
    def loss(x: Tensor) -> Tensor:
        found: Tensor = Square.apply(x)
        if not found.requires_grad:
            log.append("without gradients")
        return found

    x = torch.ones(3)
    ready = passes(loss, {"x": x}, ("x",))[what]
    for _ in range(2):
        log.clear()
        call = ready()
        assert log == before
        log.clear()
        call()
        assert log == during
    assert x.grad is None


def test_only_the_call_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([5.0, 5.25])

    def ready() -> Any:
        log.append("ready")
        return lambda: log.append("call")

    def now() -> float:
        log.append("clock")
        return next(clock)

    log.clear()
    monkeypatch.setattr("bench.timing.time.perf_counter", now)
    assert timed(ready, "cpu") == 250
    assert log == ["ready", "clock", "call", "clock"]


class Gpu:
    """Two clocks: the host's, and when the GPU will be done with what it was given. Its cache is cold after a flush."""

    def __init__(self) -> None:
        self.host_ms = self.gpu_ms = 0.0
        self.cold = False

    def launch(self, ms: float, host_ms: float = 0.01) -> None:
        self.host_ms += host_ms
        self.gpu_ms = max(self.gpu_ms, self.host_ms) + ms

    def zero_(self) -> None:
        self.launch(0.05)
        self.cold = True

    def synchronize(self) -> None:
        self.host_ms = max(self.host_ms, self.gpu_ms)

    def Event(self, enable_timing: bool) -> Any:  # noqa: N802
        gpu = self

        class Event:
            def record(self) -> None:
                gpu.launch(0)
                self.ms = gpu.gpu_ms

            def synchronize(self) -> None:
                gpu.host_ms = max(gpu.host_ms, self.ms)

            def elapsed_time(self, end: Any) -> float:
                assert gpu.host_ms >= end.ms, "nobody waited for the end"
                return float(end.ms - self.ms)

        return Event()


@pytest.mark.parametrize(("launching_ms", "expected"), [(0.4, 0.1), (10, 7.97)])
def test_on_a_gpu_the_hosts_time_is_left_out(
    launching_ms: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what exceeds the time that the GPU is kept waiting."""
    gpu = Gpu()
    for name in ("synchronize", "Event"):
        monkeypatch.setattr(torch.cuda, name, getattr(gpu, name))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: gpu.launch(cycles / 2e6))  # at 2 GHz
    monkeypatch.setattr("bench.timing._l2_filler", lambda: gpu)
    cold: list[bool] = []

    def call() -> None:
        cold.append(gpu.cold)
        gpu.launch(0.1, launching_ms)
        gpu.cold = False

    assert [timed(lambda: call, "cuda") for _ in range(2)] == pytest.approx([expected] * 2, abs=0.01)
    assert cold == [True, True]


def test_marks_of_a_gpu_wait_for_the_last_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "Event", gpu.Event)
    marks = Marks(torch.device("cuda"))
    marks.set()
    for ms in (1, 2, 3):
        gpu.launch(ms)
        marks.set()
    assert gpu.host_ms < 0.1
    assert marks.seconds() == pytest.approx([0.001, 0.002, 0.003], abs=2e-5)
    assert gpu.host_ms == gpu.gpu_ms


def test_marks_of_a_cpu_are_the_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([5.0, 5.25, 6.25])
    monkeypatch.setattr("bench.timing.time.perf_counter", lambda: next(clock))
    marks = Marks(torch.device("cpu"))
    for _ in range(3):
        marks.set()
    assert marks.seconds() == [0.25, 1.0]


@pytest.mark.filterwarnings("ignore")
def test_backward_pass_of_a_compiled_loss() -> None:
    """Compiled backward passes may give their buffers away: each is run once."""
    inputs = SOFT_CROSS_ENTROPY.inputs(Shape((1,) * 3, classes=5))
    compiled = torch.compile(EAGER["soft_cross_entropy"], dynamic=False)
    expected, actual = (
        passes(function, inputs, SOFT_CROSS_ENTROPY.differentiable)["backward"]()
        for function in (EAGER["soft_cross_entropy"], compiled)
    )
    torch.testing.assert_close(actual(), expected())


def test_peak_memory_counted_by_hand() -> None:
    x = torch.ones(2**18)  # 1 MiB

    def call() -> None:
        a = x + x  # 1
        b = torch.cat([a, a])  # 3
        del a  # 2
        c = b + b  # 4, the peak; scalars and what the profiler itself takes are bytes
        del b, c
        torch.cat([x, x, x])  # 3

    assert peak_mib(call, "cpu") == pytest.approx(4, abs=1e-3)
    assert peak_mib(lambda: None, "cpu") == 0


def test_peak_memory_of_a_backward_pass() -> None:
    """Of sum(exp(x)): exp(x) is kept until its product with the incoming gradient is made."""
    call = passes(lambda x: x.exp().sum(), {"x": torch.ones(2**18)}, ("x",))["both"]()
    assert peak_mib(call, "cpu") == pytest.approx(2, abs=1e-3)


def test_a_peak_is_forgotten() -> None:
    """And what was freed is given back, also in pieces that malloc would hold on to; what is in use stays counted."""
    cpu = torch.device("cpu")
    forget_peak(cpu)
    before = process_peak_mib(cpu)
    pieces = [torch.ones(2**14) for _ in range(6400)]  # 400 MiB in pieces of 64 KiB
    kept = torch.ones(2**24)  # and 64 that stay, above them
    assert process_peak_mib(cpu) == pytest.approx(before + 464, abs=30)
    del pieces
    forget_peak(cpu)
    assert process_peak_mib(cpu) == pytest.approx(before + 64, abs=30)
    assert kept.sum() == 2**24


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_machine_limits_are_those_of_a_machine(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes: list[torch.dtype] = []

    def timed(ready: Any, _: str) -> float:
        dtypes.append(ready()().dtype)
        return 2.0

    monkeypatch.setattr("bench.timing.timed", timed)
    assert machine_limits("cpu", dtype) == {"copy_bytes_per_s": 2**28 / 2e-3, "flops_per_s": 2 * 2048**3 / 2e-3}
    assert dtypes == [torch.float32] * 30 + [dtype] * 60
