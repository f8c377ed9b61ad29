"""The CPU paths of the ops as benchmark cases: pytest bench --benchmark-only"""

from __future__ import annotations

from typing import Any

import pytest

from bench.opponents import EAGER
from bench.timing import passes
from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import SPECS

SHAPE = Shape((64,) * 32, heads=12, head_dim_s=26, head_dim_t=32, classes=1000)


@pytest.mark.parametrize("what", ["forward", "backward", "both"])
@pytest.mark.parametrize("way", ["ours", "eager"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_op(spec: Spec, way: str, what: str, benchmark: Any) -> None:
    benchmark.group = f"{spec.name}, {what}"
    function = spec.op if way == "ours" else EAGER[spec.name]
    ready = passes(function, spec.inputs(SHAPE), spec.differentiable)[what]
    if what == "backward":  # of a loss made for it
        benchmark.pedantic(lambda call: call(), setup=lambda: ((ready(),), {}), rounds=20)
    else:
        benchmark(ready())
