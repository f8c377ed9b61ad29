"""What the tiled attention kernels are made of: rows, scores, the map of a program, pieces of a softmax."""

from __future__ import annotations

import triton
import triton.language as tl

from ..shared.kernel import for_product, known

SCORE_MSE, PROB_MSE, KL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
NOWHERE = tl.constexpr(-1e38)  # a score that no softmax sees, far from the end of float32


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
def all_known(a, b, c, d, A: tl.constexpr):
    """Four strides that A divides."""
    return known(a, A), known(b, A), known(c, A), known(d, A)


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
def probability(scores, at, plane, known, mask):
    """``2^(scores - top) / sum`` with the top `at` a place and one over the sum a plane further."""
    top, inverse = tl.load(at, mask=known, other=0.0), tl.load(at + plane, mask=known, other=0.0)
    return exp2_or_zero(scores - top, mask) * inverse
