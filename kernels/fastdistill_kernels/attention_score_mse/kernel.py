"""The Gram form of `attention_score_mse` in Triton; see `joined.py` for the algebra.

With ``x = [q_s, q_t]``, ``y = [k_s, k_t]`` of one map and ``c = [scale_s, ..., -scale_t, ...]`` the loss is
``sum of c_i c_j (x^T x)_ij (y^T y)_ij`` and the gradients are the first d_s columns of ``2 scale_s (c x) (y^T y)`` and
``2 scale_s (c y) (x^T x)``. All sums are float32, and products of float32 numbers round like float32: where
student and teacher all but agree, large numbers cancel. The teacher's columns begin at FROM, which is d_s or a little
more, so that they are read 16 bytes at a time; W is ``FROM + d_t``, padded to a power of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.kernel import alike, divisor_of
from ..shared.kernel import finish, for_product, known, map_of, operands, pick, precision, room, store
from .joined import WIDEST, columns_together, first_of_teacher

EXACT = tl.constexpr(precision(torch.float32))
STRETCH = 1024  # tokens whose Gram matrix one program makes


@triton.jit
def _load_both(s, t, stride_s, stride_t, rows, end, columns, D_S: tl.constexpr, FROM: tl.constexpr, D_T: tl.constexpr):
    """``[R, C]``: student's and teacher's states of `rows` side by side, zeros from `end` on and where neither is."""
    row, there, columns = rows.to(tl.int64)[:, None], (rows < end)[:, None], columns[None, :]
    of_s = tl.load(s + row * stride_s + columns, mask=there & (columns < D_S), other=0.0)
    is_t = (columns >= FROM) & (columns < FROM + D_T)
    of_t = tl.load(t + row * stride_t + (columns - FROM), mask=there & is_t, other=0.0)
    if of_s.dtype != of_t.dtype:
        of_s, of_t = of_s.to(tl.float32), of_t.to(tl.float32)
    return for_product(of_s) + for_product(of_t)  # one of the two is 0


@triton.jit
def _signs(places, scale_s, scale_t, D_S: tl.constexpr):
    return tl.where(places < D_S, scale_s, -scale_t)


@triton.jit(do_not_specialize=["num_tokens", "stretches"])
def gram_kernel(
    a_s, b_s, a_t, b_t, cu_seqlens, grams, sums, partial, num_tokens, stretches, scale_s, scale_t,
    stride_as, stride_bs, stride_at, stride_bt, head_as, head_bs, head_at, head_bt,
    L: tl.constexpr, H: tl.constexpr, D_S: tl.constexpr, FROM: tl.constexpr, D_T: tl.constexpr,
    A_S: tl.constexpr, A_T: tl.constexpr,
    BLOCK_DS: tl.constexpr, W: tl.constexpr, C: tl.constexpr, M: tl.constexpr, STRETCH: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """grams ``(2, programs, W, W)``: C columns of ``x^T x`` and ``y^T y`` of a stretch of one map's tokens.

    If one stretch is the WHOLE map, what `multiply_kernel` makes of them instead.
    """
    program, programs = tl.program_id(0), tl.num_programs(0).to(tl.int64)
    stretch, head, layer, start, length = map_of(program, cu_seqlens, num_tokens, stretches, L, H)
    q_s, k_s, stride_as, stride_bs = operands(
        a_s, b_s, layer, head, start, stride_as, stride_bs, head_as, head_bs, L, A_S
    )
    q_t, k_t, stride_at, stride_bt = operands(
        a_t, b_t, layer, head, start, stride_at, stride_bt, head_at, head_bt, L, A_T
    )
    end = tl.minimum(length, (stretch + 1) * STRETCH)
    rows, columns = tl.arange(0, W), tl.program_id(1) * C + tl.arange(0, C)
    xx, yy = tl.zeros([W, C], tl.float32), tl.zeros([W, C], tl.float32)
    for first in range(stretch * STRETCH, end, M):
        tokens = first + tl.arange(0, M)
        x = _load_both(q_s, q_t, stride_as, stride_at, tokens, end, rows, D_S, FROM, D_T)
        y = _load_both(k_s, k_t, stride_bs, stride_bt, tokens, end, rows, D_S, FROM, D_T)
        x_c = _load_both(q_s, q_t, stride_as, stride_at, tokens, end, columns, D_S, FROM, D_T)
        y_c = _load_both(k_s, k_t, stride_bs, stride_bt, tokens, end, columns, D_S, FROM, D_T)
        xx = tl.dot(tl.trans(x), x_c, xx, input_precision=EXACT)
        yy = tl.dot(tl.trans(y), y_c, yy, input_precision=EXACT)
    if WHOLE:
        to = sums + program.to(tl.int64) * (W * BLOCK_DS) + rows[:, None] * BLOCK_DS + columns[None, :]
        tl.store(to, xx, mask=(columns < BLOCK_DS)[None, :])
        tl.store(to + programs * (W * BLOCK_DS), yy, mask=(columns < BLOCK_DS)[None, :])
        xx *= _signs(rows, scale_s, scale_t, D_S)[:, None]
        yy *= _signs(columns, scale_s, scale_t, D_S)[None, :]
        tl.store(partial + program * (W // C) + tl.program_id(1), tl.sum(xx * yy))
    else:
        to = grams + program.to(tl.int64) * (W * W) + rows[:, None] * W + columns[None, :]
        tl.store(to, xx)
        tl.store(to + programs * (W * W), yy)


@triton.jit(do_not_specialize=["stretches"])
def multiply_kernel(
    grams, sums, partial, stretches, scale_s, scale_t,
    D_S: tl.constexpr, BLOCK_DS: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """partial ``(maps,)``: a map's sum of squared differences; sums ``(2, maps, W, BLOCK_DS)``: what gradients need.

    The stretches of a map are added up; a gradient is made of the first columns alone.
    """
    program, maps = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    columns = tl.arange(0, W)
    loss = tl.zeros([ROWS], tl.float32)
    for first in range(0, W, ROWS):
        rows = first + tl.arange(0, ROWS)
        at = rows[:, None] * W + columns[None, :]
        x, y = tl.zeros([ROWS, W], tl.float32), tl.zeros([ROWS, W], tl.float32)
        for stretch in range(stretches):
            offset = (program * stretches + stretch) * (W * W)
            x += tl.load(grams + offset + at)
            y += tl.load(grams + maps * stretches * (W * W) + offset + at)
        to = sums + program * (W * BLOCK_DS) + rows[:, None] * BLOCK_DS + columns[None, :]
        tl.store(to, x, mask=(columns < BLOCK_DS)[None, :])
        tl.store(to + maps * (W * BLOCK_DS), y, mask=(columns < BLOCK_DS)[None, :])
        signs = _signs(rows, scale_s, scale_t, D_S)[:, None] * _signs(columns, scale_s, scale_t, D_S)[None, :]
        loss += tl.sum(signs * x * y, axis=1)
    tl.store(partial + program, tl.sum(loss, axis=0))


@triton.jit(do_not_specialize=["num_tokens", "blocks"])
def gradient_kernel(
    states_s, states_t, cu_seqlens, sums, d_loss, coefficient, da, db, num_tokens, blocks, scale_s, scale_t,
    stride_as, stride_bs, stride_at, stride_bt, head_as, head_bs, head_at, head_bt,
    L: tl.constexpr, H: tl.constexpr, D_S: tl.constexpr, FROM: tl.constexpr, D_T: tl.constexpr,
    A_S: tl.constexpr, A_T: tl.constexpr,
    BLOCK_DS: tl.constexpr, W: tl.constexpr, M: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """da, db ``(L, T, H, D_S)``: ``2 d_loss coefficient scale_s (c x) sums``, sums being the other side's.

    States are those of L layers' queries a, then of their keys b; the grid's second axis is the side.
    """
    program, maps, side = tl.program_id(0), tl.num_programs(0) // blocks, tl.program_id(1)
    block, head, layer, start, length = map_of(program, cu_seqlens, num_tokens, blocks, L, H)
    is_b = side == 1
    stride_s, stride_t = (
        known(tl.where(is_b, stride_bs, stride_as), A_S),
        known(tl.where(is_b, stride_bt, stride_at), A_T),
    )
    head_s, head_t = known(tl.where(is_b, head_bs, head_as), A_S), known(tl.where(is_b, head_bt, head_at), A_T)
    s = pick(states_s, side * L + layer, 2 * L) + start * stride_s + head * head_s
    t = pick(states_t, side * L + layer, 2 * L) + start * stride_t + head * head_t
    rows, columns = block * M + tl.arange(0, M), tl.arange(0, BLOCK_DS)
    of_map = sums + ((1 - side) * maps + program // blocks).to(tl.int64) * (W * BLOCK_DS)
    total = tl.zeros([M, BLOCK_DS], tl.float32)
    for first in range(0, W, K):
        inner = first + tl.arange(0, K)
        x = _load_both(s, t, stride_s, stride_t, rows, length, inner, D_S, FROM, D_T).to(tl.float32)
        gram = tl.load(of_map + inner[:, None] * BLOCK_DS + columns[None, :])
        gram *= _signs(inner, scale_s, scale_t, D_S)[:, None]
        total = tl.dot(x, gram, total, input_precision=EXACT)
    total *= 2 * scale_s * tl.load(d_loss) * tl.load(coefficient)
    out = db if is_b else da
    to = out + ((layer.to(tl.int64) * num_tokens + start + rows)[:, None] * H + head) * D_S + columns[None, :]
    store(to, total, mask=(rows < length)[:, None] & (columns < D_S)[None, :])


def forward(
    a_s: list[Tensor], b_s: list[Tensor], a_t: list[Tensor], b_t: list[Tensor],
    cu_seqlens: Tensor, max_seqlen: int, scale_s: float, scale_t: float, normalize: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss ``()`` summed over layers, and for `backward` columns of the Gram matrices and the coefficient."""
    like, num_sequences = a_s[0], cu_seqlens.numel() - 1
    (num_tokens, H, _), L = like.shape, len(a_s)
    maps = num_sequences * L * H
    empty = maps == 0 or num_tokens == 0
    loss, coefficient = room(like, empty)
    sums = loss.new_empty(saved_shape(L, like.shape, a_t[0].shape, num_sequences))
    if empty:
        return loss, sums, coefficient
    _, _, W, BLOCK_DS = sums.shape
    stretches = triton.cdiv(max_seqlen, STRETCH)
    whole = stretches == 1
    grams = sums if whole else loss.new_empty((2, maps * stretches, W, W))
    tiles = _tiles(like, a_t[0], W)
    C = tiles["C"]
    partial = loss.new_empty(maps * (W // C) if whole else maps)
    sides = [alike(x) for x in (a_s, b_s, a_t, b_t)]
    gram_kernel[(maps * stretches, W // C)](
        *(tuple(x) for x in sides), cu_seqlens, grams, sums, partial, num_tokens, stretches, scale_s, scale_t,
        *(x[0].stride(0) for x in sides), *(x[0].stride(1) for x in sides),
        **sizes(*sides), BLOCK_DS=BLOCK_DS, W=W, STRETCH=STRETCH, WHOLE=whole, **tiles,
    )  # fmt: skip
    if not whole:
        multiply_kernel[(maps,)](
            grams, sums, partial, stretches, scale_s, scale_t,
            D_S=like.shape[-1], BLOCK_DS=BLOCK_DS, W=W, ROWS=16, num_warps=4,
        )  # fmt: skip
    entries = num_sequences * max_seqlen**2 if normalize == "padded" else None
    finish(partial, loss, coefficient, entries, H, cu_seqlens, num_tokens, max_seqlen)
    return loss, sums, coefficient


def backward(
    d_loss: Tensor, a_s: list[Tensor], b_s: list[Tensor], a_t: list[Tensor], b_t: list[Tensor],
    cu_seqlens: Tensor, max_seqlen: int, scale_s: float, scale_t: float, sums: Tensor, coefficient: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """da_s, db_s ``(L, T, H, d_s)`` in the operands' dtype, from what `forward` left."""
    like, num_sequences = a_s[0], cu_seqlens.numel() - 1
    (num_tokens, H, D_S), L = like.shape, len(a_s)
    da, db = (like.new_zeros((L, num_tokens, H, D_S)) for _ in range(2))  # zeros: see the tiled form
    if num_sequences == 0 or num_tokens == 0:
        return da, db
    _, maps, W, BLOCK_DS = sums.shape
    blocks = triton.cdiv(max_seqlen, 64)
    sides = [alike(x) for x in (a_s, b_s, a_t, b_t)]
    gradient_kernel[(blocks * maps, 2)](
        (*sides[0], *sides[1]), (*sides[2], *sides[3]), cu_seqlens, sums, d_loss, coefficient, da, db,
        num_tokens, blocks, scale_s, scale_t, *(x[0].stride(0) for x in sides), *(x[0].stride(1) for x in sides),
        **sizes(*sides), BLOCK_DS=BLOCK_DS, W=W, M=64, K=min(32, W), num_warps=4,
    )  # fmt: skip
    return da, db


def sizes(a_s: list[Tensor], b_s: list[Tensor], a_t: list[Tensor], b_t: list[Tensor]) -> dict[str, int]:
    """What kernels are told of their operands."""
    _, H, d_s = a_s[0].shape
    of = {"L": len(a_s), "H": H, "D_S": d_s, "FROM": first_of_teacher(d_s), "D_T": a_t[0].shape[2]}
    return of | {"A_S": divisor_of(a_s, b_s), "A_T": divisor_of(a_t, b_t)}


def saved_shape(L: int, student: torch.Size, teacher: torch.Size, num_sequences: int) -> tuple[int, ...]:
    """Of the Gram matrices' columns that belong to the student, in powers of two: ``(2, maps, W, BLOCK_DS)``.

    Raises:
        ValueError: heads so wide that a GPU has no room for a block of them.
    """
    _, H, d_s = student
    W, BLOCK_DS = (max(16, triton.next_power_of_2(d)) for d in (columns_together(d_s, teacher[2]), d_s))
    if W > WIDEST:
        raise ValueError(
            f"head sizes {d_s} and {teacher[2]}: Gram matrices have room for {WIDEST} together; use 'tiled'"
        )
    return (2, num_sequences * L * H, W, BLOCK_DS)


def _tiles(student: Tensor, teacher: Tensor, W: int) -> dict[str, int]:
    """How many tokens a product sums over at a time, and columns of it a program makes.

    Registers suffice, and so do 64 KiB of shared memory and, where six products are one of float32, tensor memory.
    """
    single = max(student.dtype.itemsize, teacher.dtype.itemsize) > 2
    columns = min(32 if single else 64, W, (4096 if single else 8192) // W)
    return {"M": 16 if single or W == WIDEST else 32, "C": columns, "num_warps": 8, "num_stages": 2}
