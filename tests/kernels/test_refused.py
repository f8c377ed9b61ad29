"""What the losses over attention maps refuse, and how they say it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import RAGGED, cpu_path, each_spec
from torch import Tensor

from fastdistill_kernels.spec import Spec


@each_spec
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalize": "mean"}, "normalize='mean'"),
        ({"cu_seqlens": torch.tensor([0, 35])}, "torch.int64"),
        ({"cu_seqlens": torch.zeros(2, 2, dtype=torch.int32)}, r"cu_seqlens is \(2, 2\)"),
        ({"cu_seqlens": torch.zeros(0, dtype=torch.int32)}, r"cu_seqlens is \(0,\)"),
        ({"max_seqlen": -1}, "max_seqlen=-1"),
        ({"max_seqlen": 12.5}, "max_seqlen=12.5: must be a whole number"),
        ({"scale_s": float("nan")}, "scale_s=nan: must be finite"),
        ({"scale_t": float("inf")}, "scale_t=inf: must be finite"),
        ({0: None}, "student operands: NoneType is given, pass tensors"),
        (dict.fromkeys((0, 1), torch.zeros(35, 3, 8, dtype=torch.float8_e4m3fn)), "torch.float8_e4m3fn is given"),
        ({1: (torch.zeros(35, 3, 8),) * 2}, "1, 2, 1 and 1 layers"),
        (dict.fromkeys((0, 1), torch.zeros(35, 24)), "student operands are"),
        (dict.fromkeys((2, 3), torch.zeros(35, 3, 16, dtype=torch.int64)), "teacher operands: torch.int64 is given"),
        (
            dict.fromkeys((0, 1), (torch.zeros(35, 3, 8), torch.zeros(35, 3, 9)))
            | dict.fromkeys((2, 3), (torch.zeros(35, 3, 8),) * 2),
            r"student layers are \(35, 3, 8\) torch.float32 and \(35, 3, 9\)",
        ),
        (
            dict.fromkeys((0, 1), (torch.zeros(35, 3, 8), torch.zeros(35, 3, 8).half()))
            | dict.fromkeys((2, 3), (torch.zeros(35, 3, 8),) * 2),
            r"student layers are \(35, 3, 8\) torch.float32 and \(35, 3, 8\) torch.float16",
        ),
        ({0: torch.zeros(35, 3, 9)}, r"student operands are \(35, 3, 9\)"),
        ({1: torch.zeros(35, 3, 8, dtype=torch.bfloat16)}, "torch.bfloat16"),
        ({2: torch.zeros(34, 3, 16), 3: torch.zeros(34, 3, 16)}, "teacher 34"),
        ({2: torch.zeros(35, 4, 16), 3: torch.zeros(35, 4, 16)}, "student has 3 heads, teacher 4.*num_relation_heads"),
    ],
)
def test_errors_name_the_value(spec: Spec, change: dict[Any, Any], message: str) -> None:
    inputs = spec.inputs(RAGGED)
    names = list(inputs)
    with pytest.raises(ValueError, match=message):
        spec.op(**{**inputs, **{names[k] if isinstance(k, int) else k: v for k, v in change.items()}})


@each_spec
def test_no_layer_is_refused(spec: Spec) -> None:
    layers: list[list[Tensor]] = [[], [], [], []]
    with pytest.raises(ValueError, match="0, 0, 0 and 0 layers"):
        spec.op(*layers, **RAGGED.layout(torch.device("cpu")))


@cpu_path
@each_spec
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 34], dtype=torch.int32)}, "number of tokens, 35"),
        ({"cu_seqlens": torch.tensor([0, 36, 35], dtype=torch.int32)}, "must rise"),
        ({"cu_seqlens": torch.tensor([1, 12, 35], dtype=torch.int32)}, "must rise from 0"),
        ({"max_seqlen": 11}, "longest sequence has 12 tokens"),
    ],
)
def test_lengths_are_checked_where_the_host_reads_them(spec: Spec, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec.op(**{**spec.inputs(RAGGED), **change})
