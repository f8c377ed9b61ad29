"""What every op refuses, by looking at shapes and dtypes alone, never at what a tensor holds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TEMPERATURES = (1e-6, 1e6)  # beyond, scores or their squares leave what float32 can hold


def check_floating(name: str, *tensors: Any) -> None:
    """Raise ValueError where one is no tensor, or of a dtype that no op computes with."""
    for x in tensors:
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: {type(x).__name__} is given, pass tensors")
        if x.dtype not in FLOATING:
            raise ValueError(f"{name}: {x.dtype} is given, pass float16, bfloat16, float32 or float64")


def check_devices(first: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError where one of `others`, by name, is not on the device of the student's tensor `first`."""
    for name, x in others.items():
        if x is not None and x.device != first.device:
            raise ValueError(f"{name} is on {x.device}, the student's tensors on {first.device}: move it there")


def check_temperature(temperature: float) -> None:
    low, high = TEMPERATURES
    if not low <= temperature <= high:
        raise ValueError(f"temperature={temperature}: must be from {low:g} to {high:g}")


def check_finite(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not -math.inf < value < math.inf:
            raise ValueError(f"{name}={value}: must be finite")


def check_whole(**numbers: Any) -> None:
    """Raise ValueError where one is neither a whole number nor, while shapes are traced, a symbol of one."""
    for name, value in numbers.items():
        if value is not None and not (isinstance(value, int | torch.SymInt) and not isinstance(value, bool)):
            raise ValueError(f"{name}={value!r}: must be a whole number")
