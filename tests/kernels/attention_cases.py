"""What the tests of all losses over attention maps share: a batch, and what they are run for."""

from __future__ import annotations

from typing import Any

import pytest
from parity import GRAM
from torch import Tensor

from fastdistill_kernels.device import INTERPRETED
from fastdistill_kernels.spec import Shape
from fastdistill_kernels.specs import ATTENTION_SPECS

RAGGED = Shape((2, 7, 7, 7, 12), heads=3, head_dim_s=8, head_dim_t=16)

cpu_path = pytest.mark.skipif(INTERPRETED, reason="about the CPU's path, and kernels are interpreted")
each_spec = pytest.mark.parametrize("spec", ATTENTION_SPECS, ids=lambda spec: spec.name)
each_algorithm = pytest.mark.parametrize(
    "spec", [*ATTENTION_SPECS, GRAM], ids=[*(spec.name for spec in ATTENTION_SPECS), "gram"]
)


def operands(inputs: dict[str, Any]) -> list[Tensor]:
    """a_s, b_s, a_t, b_t, whatever the op calls them."""
    return list(inputs.values())[:4]
