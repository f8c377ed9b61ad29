"""What a call asks of a device: its launches, counted, and that the host never waits for a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FREE = set(
    "empty empty_strided empty_like new_empty view as_strided unbind select slice expand to detach unsqueeze squeeze "
    "alias transpose t resolve_conj lift_fresh unflatten view_as reshape _reshape_alias permute result_type".split()
)  # views and the like
WAITING = set(
    "item _local_scalar_dense is_nonzero equal nonzero argwhere masked_select unique _unique2 unique_dim".split()
)


@contextmanager
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the kernels that would have been launched; none of them runs."""
    launched: list[str] = []

    class Counted:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            return lambda *_, **__: launched.append(self.name)

    with monkeypatch.context() as patch:
        for module in modules():
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                patch.setattr(module, name, Counted(name))
        yield launched


def modules() -> list[Any]:
    """All that hold kernels; imported where kernels can run alone."""
    from fastdistill_kernels.attention import kernel as attention
    from fastdistill_kernels.attention_score_mse import kernel as gram
    from fastdistill_kernels.hidden_mse import kernel as hidden
    from fastdistill_kernels.shared import kernel as shared
    from fastdistill_kernels.soft_cross_entropy import kernel as soft

    return [attention, gram, hidden, shared, soft]


def count(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """(result, launches of a call): kernels of ours, which do not run, and operations of PyTorch that are no views.

    An operation that is made of others counts as those, at least as one.
    """
    with without_kernels(monkeypatch) as launched, torch.profiler.profile() as profile:
        result = call()
    others: list[str] = []

    def add(event: Any) -> None:
        before = len(others)
        for child in event.cpu_children:
            add(child)
        name = event.name.removeprefix("aten::")
        if event.name.startswith("aten::") and name not in FREE and len(others) == before:
            others.append(name)

    for event in profile.events():
        if event.cpu_parent is None:
            add(event)
    return result, [*launched, *others]


class _Refusing(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in WAITING, f"{func} would wait for the device"
        return func(*args, **kwargs or {})


@contextmanager
def launchers_that_may_not_wait(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the launchers that ran; one that asks for a value of a tensor fails."""
    ran: list[str] = []

    def guarded(name: str, launcher: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            ran.append(name)
            with monkeypatch.context() as patch, _Refusing():
                for reading in ("tolist", "numpy", "cpu"):
                    patch.setattr(Tensor, reading, refused)
                return launcher(*args, **kwargs)

        return run

    def refused(*_: Any) -> None:
        raise AssertionError("a launcher would wait for the device")

    attention, gram, hidden, _, soft = modules()
    with monkeypatch.context() as patch:
        for owner in (attention.Tiled, gram, hidden, soft.SoftLabels):
            for name in ("forward", "backward"):
                patch.setattr(owner, name, guarded(name, getattr(owner, name)))
        yield ran
