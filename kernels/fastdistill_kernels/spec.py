"""What an op is, in one description that tests and benchmarks both read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """A packed batch and the two models that look at it; every op reads what it needs."""

    lengths: tuple[int, ...]
    heads: int = 12
    head_dim_s: int = 26
    head_dim_t: int = 64
    layers: int = 1
    classes: int = 2

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def pairs(self) -> int:
        """Entries of all attention maps of one head."""
        return sum(n * n for n in self.lengths)

    @property
    def hidden_size_s(self) -> int:
        return self.heads * self.head_dim_s

    @property
    def hidden_size_t(self) -> int:
        return self.heads * self.head_dim_t

    def layout(self, device: torch.device) -> dict[str, Any]:
        """``cu_seqlens`` and ``max_seqlen``."""
        lengths = torch.tensor([0, *self.lengths], dtype=torch.int32)
        cu_seqlens = lengths.cumsum(0, dtype=torch.int32).to(device)
        return {"cu_seqlens": cu_seqlens, "max_seqlen": max(self.lengths, default=0)}


@dataclass(frozen=True)
class Draw:
    """Where inputs come from: normal values from a seeded CPU generator, so that every machine sees the same ones."""

    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)


@dataclass(frozen=True)
class Spec:
    """One op.

    Attributes:
        op, reference: the public function and its definition; same arguments, same results.
        make_inputs: keyword arguments of a call for a shape.
        differentiable: the arguments that receive gradients.
        bytes_moved: least traffic of one forward and backward: every input read once, every gradient written once.
        flops: arithmetic of one forward and backward, matrix products only (elementwise work where there are none).
    """

    name: str
    op: Callable[..., Any]
    reference: Callable[..., Any]
    make_inputs: Callable[[Shape, Draw], dict[str, Any]]
    differentiable: tuple[str, ...]
    bytes_moved: Callable[[Shape, torch.dtype], int]
    flops: Callable[[Shape], int]

    def inputs(
        self, shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
    ) -> dict[str, Any]:
        """Seeded keyword arguments for `op` and `reference`."""
        generator = torch.Generator().manual_seed(seed)
        return self.make_inputs(shape, Draw(dtype, torch.device(device), generator))


def attention_spec(
    name: str, op: Callable[..., Tensor], reference: Callable[..., Tensor], operands: tuple[str, str, str, str]
) -> Spec:
    """The description shared by losses over attention maps; `operands` names a_s, b_s, a_t, b_t as `op` does."""
    return Spec(
        name,
        op,
        reference,
        make_inputs=partial(_attention_inputs, operands),
        differentiable=operands[:2],
        bytes_moved=_attention_bytes,
        flops=_attention_flops,
    )


def _attention_inputs(operands: tuple[str, str, str, str], shape: Shape, draw: Draw) -> dict[str, Any]:
    head_dims = (shape.head_dim_s, shape.head_dim_s, shape.head_dim_t, shape.head_dim_t)
    layers = {
        name: tuple(draw(shape.tokens, shape.heads, d) for _ in range(shape.layers))
        for name, d in zip(operands, head_dims, strict=True)
    }
    return {**{name: x if len(x) > 1 else x[0] for name, x in layers.items()}, **shape.layout(draw.device)}


def _attention_bytes(shape: Shape, dtype: torch.dtype) -> int:
    return shape.layers * shape.tokens * shape.heads * (4 * shape.head_dim_s + 2 * shape.head_dim_t) * dtype.itemsize


def _attention_flops(shape: Shape) -> int:
    return 2 * shape.layers * shape.heads * shape.pairs * (3 * shape.head_dim_s + shape.head_dim_t)
