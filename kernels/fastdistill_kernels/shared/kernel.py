"""What several ops' kernels use: layers, maps and their rows, rounding, pieces of a softmax, adding up partial sums."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import INTERPRETED

LOG2E, LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
UPCAST = tl.constexpr(INTERPRETED)  # the interpreter would multiply the bit patterns of bf16
SCORE_MSE, PROB_MSE, KL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
NOWHERE = tl.constexpr(-1e38)  # a score that no softmax sees, far from the end of float32


@triton.jit
def pick(pointers, layer, L: tl.constexpr):
    """``pointers[layer]`` of a tuple of L."""
    pointer = pointers[0]
    for n in tl.static_range(1, L):
        if layer == n:
            pointer = pointers[n]
    return pointer


@triton.jit
def known(number, A: tl.constexpr):
    """`number`, of which the compiler now knows that A divides it: what is read A apart can be read at once."""
    return number // A * A


@triton.jit
def for_product(x):
    """`x` as ``tl.dot`` may take it; float64, which a teacher may have, is float32 from here on."""
    return x.to(tl.float32) if UPCAST or x.dtype == tl.float64 else x


@triton.jit
def rounded_to_tf32(x):
    """`x` to the nearest of tf32's numbers, where tensor cores would cut the bits off; inf and NaN as they are."""
    nearest = (x.to(tl.int32, bitcast=True) + 0x1000).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(x) < float("inf"), nearest, x)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """`x` in `dtype`, rounded to nearest."""
    if UPCAST and dtype == tl.bfloat16 and x.dtype == tl.float32:  # the interpreter would cut the bits off
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def store(pointer, x, mask):
    """Stores float32 in the dtype of `pointer`, rounded to nearest."""
    tl.store(pointer, rounded(x, pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_rows(pointer, stride, rows, length, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """``[R, BLOCK_D]``: those of `rows` that are below `length`, padded with zeros."""
    columns = tl.arange(0, BLOCK_D)
    at = pointer + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    x = tl.load(at, mask=(rows < length)[:, None] & (columns < D)[None, :], other=0.0)
    return for_product(x)


@triton.jit
def product(x, y, PRECISION: tl.constexpr):
    """``x @ y.T`` in float32: ``[R, D]`` and ``[C, D]`` -> ``[R, C]``."""
    return tl.dot(x, tl.trans(y), input_precision=PRECISION)


@triton.jit
def map_of(program, cu_seqlens, num_tokens, blocks, L: tl.constexpr, H: tl.constexpr):
    """(block, head, layer, first token, length) of a program.

    Whatever `cu_seqlens` holds, these are tokens that are there; `finish_kernel` sees what is wrong with it.
    """
    block = program % blocks
    head = (program // blocks % H).to(tl.int64)
    layer = program // (blocks * H) % L
    sequence = program // (blocks * H * L)
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence), 0), num_tokens)
    end = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence + 1), start), num_tokens)
    return block, head, layer, start.to(tl.int64), end - start


@triton.jit
def operands(
    a, b, layer, head, start, stride_a, stride_b, head_a, head_b, L: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """Where the rows of a and b of one map begin, and how far apart they are; A divides all strides."""
    stride_a, stride_b = known(stride_a, A), known(stride_b, A)
    a = pick(a, layer, L) + start * stride_a + head * known(head_a, A)
    b = pick(b, layer, L) + start * stride_b + head * known(head_b, A)
    return a, b, stride_a, stride_b


@triton.jit
def rescale(biggest, scores):
    """The running row maximum with a block of scores, and the factor that brings sums made with the old one to it."""
    bigger = tl.maximum(biggest, tl.max(scores, axis=1))
    return bigger, tl.exp2(biggest - bigger)


@triton.jit
def exp2_or_zero(x, mask):
    """``2^x``, 0 outside of `mask`, where nothing may overflow."""
    return tl.exp2(tl.where(mask, x, NOWHERE))


@triton.jit
def probability(scores, at, plane, there, mask):
    """``2^(scores - top) / sum`` with the top `at` a place and one over the sum a plane further."""
    top, inverse = tl.load(at, mask=there, other=0.0), tl.load(at + plane, mask=there, other=0.0)
    return exp2_or_zero(scores - top, mask) * inverse


@triton.jit(do_not_specialize=["num_partials", "entries", "num_sequences", "num_tokens", "max_seqlen"])
def finish_kernel(
    partial, loss, coefficient, num_partials, entries, heads, cu_seqlens, num_sequences, num_tokens, max_seqlen,
    POWER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """loss ``()`` = the sum of `partial` times coefficient ``()`` = ``1 / (heads * entries)``.

    With a POWER of 1 or 2 the entries are counted here, ``sum_b n_b^POWER``: the host need not know the lengths. Both
    are NaN where bounds do not rise from 0 to at most `num_tokens`, or a sequence is longer than `max_seqlen`: what was
    looked at are not the sequences.
    """
    places = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, num_partials, BLOCK):
        total += tl.load(partial + first + places, mask=first + places < num_partials, other=0.0)
    count, wrong = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.int32)
    for first in range(0, num_sequences, BLOCK):
        there = first + places < num_sequences
        starts = tl.load(cu_seqlens + first + places, mask=there, other=0)
        ends = tl.load(cu_seqlens + 1 + first + places, mask=there, other=0)
        lengths = ends - starts
        outside = (ends < starts) | (ends > num_tokens) | ((first + places == 0) & (starts != 0))
        wrong = tl.maximum(wrong, (outside | (lengths > max_seqlen)).to(tl.int32))
        count += lengths.to(tl.float32) * (lengths.to(tl.float32) if POWER == 2 else 1.0)
    if POWER > 0:
        entries = tl.maximum(tl.sum(count, axis=0), 1.0)
    inverse = tl.where(tl.max(wrong, axis=0) > 0, float("nan"), 1.0 / (heads * entries))
    tl.store(loss, tl.sum(total, axis=0) * inverse)
    tl.store(coefficient, inverse)


def divisor(*numbers: int) -> int:
    """The greatest power of two up to 16 that divides all of them, for `known`."""
    return math.gcd(16, *numbers)


def room(like: Tensor, empty: bool) -> tuple[Tensor, Tensor]:
    """Two float32 scalars for `finish`, 0 already for an empty batch, where nothing will be launched."""
    new = like.new_zeros if empty else like.new_empty
    return new((), dtype=torch.float32), new((), dtype=torch.float32)


def finish(
    partial: Tensor,
    loss: Tensor,
    coefficient: Tensor,
    entries: int | None,
    heads: int = 1,
    cu_seqlens: Tensor | None = None,
    num_tokens: int = 0,
    max_seqlen: int = 0,
    power: int = 2,
) -> None:
    """Add up `partial` and divide; see `finish_kernel`. `entries` is None where they are to be counted by `power`."""
    layout = (partial, 0) if cu_seqlens is None else (cu_seqlens, cu_seqlens.numel() - 1)
    finish_kernel[(1,)](
        partial, loss, coefficient, partial.numel(), float(entries or 1), heads, *layout, num_tokens, max_seqlen,
        POWER=power if entries is None else 0, BLOCK=4096,
    )  # fmt: skip


def precision(dtype: torch.dtype) -> str:
    """Of the products: fp32 operands as sums of three bf16 numbers, which round like fp32 on tensor cores."""
    if INTERPRETED:
        return "ieee"
    return "tf32" if dtype.itemsize == 2 else "bf16x6"
