"""The Gram form of `attention_score_mse` in Triton; see `gram.py` for the algebra.

With ``x = [q_s, q_t]``, ``y = [k_s, k_t]`` of one map and ``c = [scale_s, ..., -scale_t, ...]`` the loss is
``sum of c_i c_j (x^T x)_ij (y^T y)_ij`` and the gradients are the first d_s columns of ``2 scale_s (c x) (y^T y)`` and
``2 scale_s (c y) (x^T x)``. All sums are float32, and products of float32 numbers round like float32: where
student and teacher all but agree, large numbers cancel. W is ``d_s + d_t``, padded to a power of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.kernel import alike, map_of
from ..shared.kernel import finish, for_product, pick, precision, room, store

EXACT = tl.constexpr(precision(torch.float32))
STRETCH = 2048  # tokens whose Gram matrix one program makes


@triton.jit
def _load_both(s, t, stride_s, stride_t, rows, end, D_S: tl.constexpr, D_T: tl.constexpr, W: tl.constexpr):
    """``[R, W]``: student's and teacher's states of `rows` side by side, zeros from `end` on and past ``d_s + d_t``."""
    row, there, columns = rows.to(tl.int64)[:, None], (rows < end)[:, None], tl.arange(0, W)[None, :]
    of_s = tl.load(s + row * stride_s + columns, mask=there & (columns < D_S), other=0.0)
    is_t = (columns >= D_S) & (columns < D_S + D_T)
    of_t = tl.load(t + row * stride_t + (columns - D_S), mask=there & is_t, other=0.0)
    if of_s.dtype != of_t.dtype:
        of_s, of_t = of_s.to(tl.float32), of_t.to(tl.float32)
    return for_product(of_s) + for_product(of_t)  # one of the two is 0


@triton.jit
def _signs(places, scale_s, scale_t, D_S: tl.constexpr):
    return tl.where(places < D_S, scale_s, -scale_t)


@triton.jit(do_not_specialize=["stretches"])
def gram_kernel(
    states_s, states_t, cu_seqlens, grams, stretches,
    stride_as, stride_bs, stride_at, stride_bt, head_as, head_bs, head_at, head_bt,
    L: tl.constexpr, H: tl.constexpr, D_S: tl.constexpr, D_T: tl.constexpr,
    W: tl.constexpr, M: tl.constexpr, STRETCH: tl.constexpr,
):  # fmt: skip
    """grams ``(2, programs, W, W)``: ``x^T x`` and ``y^T y`` of a stretch of one map's tokens.

    States are those of the queries a, L layers, then those of the keys b.
    """
    program, side = tl.program_id(0), tl.program_id(1)
    is_b = side == 1
    stretch, head, layer, start, length = map_of(program, cu_seqlens, stretches, L, H)
    stride_s, stride_t = tl.where(is_b, stride_bs, stride_as), tl.where(is_b, stride_bt, stride_at)
    head_s, head_t = tl.where(is_b, head_bs, head_as), tl.where(is_b, head_bt, head_at)
    s = pick(states_s, side * L + layer, 2 * L) + start * stride_s + head * head_s
    t = pick(states_t, side * L + layer, 2 * L) + start * stride_t + head * head_t
    end = tl.minimum(length, (stretch + 1) * STRETCH)
    total = tl.zeros([W, W], tl.float32)
    for first in range(stretch * STRETCH, end, M):
        x = _load_both(s, t, stride_s, stride_t, first + tl.arange(0, M), end, D_S, D_T, W)
        total = tl.dot(tl.trans(x), x, total, input_precision=EXACT)
    places = tl.arange(0, W)
    to = grams + (side * tl.num_programs(0) + program).to(tl.int64) * (W * W)
    tl.store(to + places[:, None] * W + places[None, :], total)


@triton.jit(do_not_specialize=["stretches"])
def multiply_kernel(
    grams_x, grams_y, sums_x, sums_y, partial, stretches, scale_s, scale_t,
    D_S: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """sums ``(maps, W, W)``: the stretches of a map added up; partial ``(maps,)``: its sum of squared differences."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, W)
    loss = tl.zeros([ROWS], tl.float32)
    for first in range(0, W, ROWS):
        rows = first + tl.arange(0, ROWS)
        at = rows[:, None] * W + columns[None, :]
        x, y = tl.zeros([ROWS, W], tl.float32), tl.zeros([ROWS, W], tl.float32)
        for stretch in range(stretches):
            offset = (program * stretches + stretch) * (W * W)
            x += tl.load(grams_x + offset + at)
            y += tl.load(grams_y + offset + at)
        tl.store(sums_x + program * (W * W) + at, x)
        tl.store(sums_y + program * (W * W) + at, y)
        signs = _signs(rows, scale_s, scale_t, D_S)[:, None] * _signs(columns, scale_s, scale_t, D_S)[None, :]
        loss += tl.sum(signs * x * y, axis=1)
    tl.store(partial + program, tl.sum(loss, axis=0))


@triton.jit(do_not_specialize=["num_tokens", "blocks"])
def gradient_kernel(
    own_s, own_t, cu_seqlens, sums, d_loss, coefficient, out, num_tokens, blocks, scale_s, scale_t,
    stride_s, stride_t, head_s, head_t,
    L: tl.constexpr, H: tl.constexpr, D_S: tl.constexpr, D_T: tl.constexpr,
    BLOCK_DS: tl.constexpr, W: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """out ``(L, T, H, D_S)``: ``2 d_loss coefficient scale_s (c x) sums``, sums being the other side's."""
    program = tl.program_id(0)
    block, head, layer, start, length = map_of(program, cu_seqlens, blocks, L, H)
    rows, inner, columns = block * M + tl.arange(0, M), tl.arange(0, W), tl.arange(0, BLOCK_DS)
    s = pick(own_s, layer, L) + start * stride_s + head * head_s
    t = pick(own_t, layer, L) + start * stride_t + head * head_t
    x = _load_both(s, t, stride_s, stride_t, rows, length, D_S, D_T, W).to(tl.float32)
    at = sums + (program // blocks).to(tl.int64) * (W * W) + inner[:, None] * W + columns[None, :]
    gram = tl.load(at) * _signs(inner, scale_s, scale_t, D_S)[:, None]
    total = tl.dot(x, gram, input_precision=EXACT)
    total *= 2 * scale_s * tl.load(d_loss) * tl.load(coefficient)
    to = out + ((layer.to(tl.int64) * num_tokens + start + rows)[:, None] * H + head) * D_S + columns[None, :]
    store(to, total, mask=(rows < length)[:, None] & (columns < D_S)[None, :])


def forward(
    a_s: list[Tensor], b_s: list[Tensor], a_t: list[Tensor], b_t: list[Tensor],
    cu_seqlens: Tensor, max_seqlen: int, scale_s: float, scale_t: float, normalize: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss ``()`` summed over layers, and for `backward` the Gram matrices ``(2, maps, W, W)`` and coefficient."""
    like, num_sequences = a_s[0], cu_seqlens.numel() - 1
    (num_tokens, H, D_S), D_T, L = like.shape, a_t[0].shape[-1], len(a_s)
    maps, W = num_sequences * L * H, _width(D_S, D_T)
    empty = maps == 0 or num_tokens == 0
    loss, coefficient = room(like, empty)
    sums = loss.new_empty(saved_shape(L, like.shape, a_t[0].shape, num_sequences))
    if empty:
        return loss, sums, coefficient
    stretches = triton.cdiv(max_seqlen, STRETCH)
    grams = loss.new_empty((2, maps * stretches, W, W))
    sides = [alike(x) for x in (a_s, b_s, a_t, b_t)]
    gram_kernel[(maps * stretches, 2)](
        (*sides[0], *sides[1]), (*sides[2], *sides[3]), cu_seqlens, grams, stretches,
        *(x[0].stride(0) for x in sides), *(x[0].stride(1) for x in sides),
        L=L, H=H, D_S=D_S, D_T=D_T, W=W, M=32, STRETCH=STRETCH, num_warps=8,
    )  # fmt: skip
    partial = loss.new_empty(maps)
    multiply_kernel[(maps,)](
        grams[0], grams[1], sums[0], sums[1], partial, stretches, scale_s, scale_t, D_S=D_S, W=W, ROWS=16, num_warps=4
    )
    entries = num_sequences * max_seqlen**2 if normalize == "padded" else None
    finish(partial, cu_seqlens, loss, coefficient, entries, H)
    return loss, sums, coefficient


def backward(
    d_loss: Tensor, a_s: list[Tensor], b_s: list[Tensor], a_t: list[Tensor], b_t: list[Tensor],
    cu_seqlens: Tensor, max_seqlen: int, scale_s: float, scale_t: float, sums: Tensor, coefficient: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """da_s, db_s ``(L, T, H, d_s)`` in the operands' dtype, from what `forward` left."""
    like, num_sequences = a_s[0], cu_seqlens.numel() - 1
    (num_tokens, H, D_S), D_T, L = like.shape, a_t[0].shape[-1], len(a_s)
    da, db = (like.new_empty((L, num_tokens, H, D_S)) for _ in range(2))
    if num_sequences == 0 or num_tokens == 0:
        return da, db
    blocks = triton.cdiv(max_seqlen, 64)
    for out, s, t, other in ((da, a_s, a_t, sums[1]), (db, b_s, b_t, sums[0])):
        s, t = alike(s), alike(t)
        gradient_kernel[(blocks * H * L * num_sequences,)](
            tuple(s), tuple(t), cu_seqlens, other, d_loss, coefficient, out, num_tokens, blocks, scale_s, scale_t,
            s[0].stride(0), t[0].stride(0), s[0].stride(1), t[0].stride(1),
            L=L, H=H, D_S=D_S, D_T=D_T, BLOCK_DS=max(16, triton.next_power_of_2(D_S)), W=_width(D_S, D_T), M=64,
            num_warps=8,
        )  # fmt: skip
    return da, db


def saved_shape(L: int, student: torch.Size, teacher: torch.Size, num_sequences: int) -> tuple[int, ...]:
    """Of the Gram matrices."""
    _, H, d_s = student
    W = _width(d_s, teacher[2])
    return (2, num_sequences * L * H, W, W)


def _width(d_s: int, d_t: int) -> int:
    return max(16, triton.next_power_of_2(d_s + d_t))
