"""The tiled attention losses in Triton: tiles of scores live in registers, the loss and its gradients leave.

B sequences, L layers, H heads; one map is one (sequence, layer, head). A program owns a block of M rows of one map and
walks over blocks of N columns of it. `own` is the side of the rows, `other` that of the columns; operands `a` are
queries, `b` keys, ``_s`` the student's, ``_t`` the teacher's. Scores of rows and columns past a sequence's end are 0,
since what is loaded there is 0. Nothing is added atomically: two runs are equal to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention_prob_mse.kernel import whole_rows_kernel
from ..shared.kernel import (
    KL,
    LN2,
    LOG2E,
    NOWHERE,
    PROB_MSE,
    SCORE_MSE,
    divisor,
    exp2_or_zero,
    finish,
    load_rows,
    map_of,
    operands,
    precision,
    probability,
    product,
    rescale,
    room,
    rounded_to_tf32,
    store,
)


@triton.jit(do_not_specialize=["num_tokens", "blocks"])
def forward_kernel(
    a_s, b_s, a_t, b_t, cu_seqlens, partial, stats,
    num_tokens, blocks, scale_s, scale_t,
    stride_as, stride_bs, stride_at, stride_bt, head_as, head_bs, head_at, head_bt,
    LOSS: tl.constexpr, L: tl.constexpr, H: tl.constexpr, D_S: tl.constexpr, D_T: tl.constexpr,
    BLOCK_DS: tl.constexpr, BLOCK_DT: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION_S: tl.constexpr, PRECISION_T: tl.constexpr, A_S: tl.constexpr, A_T: tl.constexpr,
):  # fmt: skip
    """partial ``(programs,)``: the sum of the loss over M rows; stats ``(0, 4 or 5, L, H, T)``: tops, inverses, delta.

    A probability is ``2^(score - top) inverse`` with the row's largest score and one over the sum of these powers;
    student's before teacher's. As one number, the logarithm of the sum would be rounded away beside a large score.
    Delta is the softmax's own part of the gradient, ``sum_j P_s dL/dP_s``.
    """
    program = tl.program_id(0)
    block, head, layer, start, length = map_of(program, cu_seqlens, num_tokens, blocks, L, H)
    own_s, other_s, stride_as, stride_bs = operands(
        a_s, b_s, layer, head, start, stride_as, stride_bs, head_as, head_bs, L, A_S
    )
    own_t, other_t, stride_at, stride_bt = operands(
        a_t, b_t, layer, head, start, stride_at, stride_bt, head_at, head_bt, L, A_T
    )
    if LOSS != SCORE_MSE:
        scale_s, scale_t = scale_s * LOG2E, scale_t * LOG2E  # softmaxes in powers of two are cheaper
    rows = block * M + tl.arange(0, M)
    x_s = load_rows(own_s, stride_as, rows, length, D_S, BLOCK_DS)
    x_t = load_rows(own_t, stride_at, rows, length, D_T, BLOCK_DT)
    columns_end = tl.where(block * M < length, length, 0)  # an empty block walks nowhere, but writes its zeros

    loss = tl.zeros([M], tl.float32)
    top_s, top_t = tl.full([M], NOWHERE, tl.float32), tl.full([M], NOWHERE, tl.float32)
    sum_s, sum_t = tl.zeros([M], tl.float32), tl.zeros([M], tl.float32)
    for first in range(0, columns_end, N):
        columns = first + tl.arange(0, N)
        s = scale_s * product(x_s, load_rows(other_s, stride_bs, columns, length, D_S, BLOCK_DS), PRECISION_S)
        t = scale_t * product(x_t, load_rows(other_t, stride_bt, columns, length, D_T, BLOCK_DT), PRECISION_T)
        if LOSS == SCORE_MSE:
            loss += tl.sum((s - t) * (s - t), axis=1)
        else:
            visible = (columns < length)[None, :]
            top_s, shrink_s = rescale(top_s, tl.where(visible, s, NOWHERE))
            top_t, shrink_t = rescale(top_t, tl.where(visible, t, NOWHERE))
            sum_s = sum_s * shrink_s + tl.sum(exp2_or_zero(s - top_s[:, None], visible), axis=1)
            weights = exp2_or_zero(t - top_t[:, None], visible)
            sum_t = sum_t * shrink_t + tl.sum(weights, axis=1)
            if LOSS == KL:
                loss = loss * shrink_t + tl.sum(weights * (t - s), axis=1)

    if LOSS != SCORE_MSE:
        full = columns_end > 0
        sum_s, sum_t = tl.where(full, sum_s, 1.0), tl.where(full, sum_t, 1.0)
        inverse_s, inverse_t = 1.0 / sum_s, 1.0 / sum_t
        at = stats + (layer * H + head).to(tl.int64) * num_tokens + start + rows
        plane = num_tokens.to(tl.int64) * (L * H)
        tl.store(at, top_s, mask=rows < length)
        tl.store(at + plane, inverse_s, mask=rows < length)
        tl.store(at + 2 * plane, top_t, mask=rows < length)
        tl.store(at + 3 * plane, inverse_t, mask=rows < length)
        if LOSS == KL:
            loss = loss * inverse_t - (top_t - top_s) - tl.log2(tl.div_rn(sum_t, sum_s))
            loss = LN2 * tl.where(full, loss, 0.0)
        else:
            delta = tl.zeros([M], tl.float32)
            for first in range(0, columns_end, N):
                columns = first + tl.arange(0, N)
                s = scale_s * product(x_s, load_rows(other_s, stride_bs, columns, length, D_S, BLOCK_DS), PRECISION_S)
                t = scale_t * product(x_t, load_rows(other_t, stride_bt, columns, length, D_T, BLOCK_DT), PRECISION_T)
                visible = (columns < length)[None, :]
                p_s = exp2_or_zero(s - top_s[:, None], visible) * inverse_s[:, None]
                error = p_s - exp2_or_zero(t - top_t[:, None], visible) * inverse_t[:, None]
                loss += tl.sum(error * error, axis=1)
                delta += 2 * tl.sum(p_s * error, axis=1)
            tl.store(at + 4 * plane, delta, mask=rows < length)
    tl.store(partial + program, tl.sum(tl.where(rows < length, loss, 0.0), axis=0))


@triton.jit(do_not_specialize=["num_tokens", "blocks"])
def gradient_kernel(
    own_s, other_s, own_t, other_t, cu_seqlens, stats, d_loss, coefficient, out,
    num_tokens, blocks, scale_s, scale_t,
    stride_own_s, stride_other_s, stride_own_t, stride_other_t, head_own_s, head_other_s, head_own_t, head_other_t,
    LOSS: tl.constexpr, OWN_IS_A: tl.constexpr, L: tl.constexpr, H: tl.constexpr,
    D_S: tl.constexpr, D_T: tl.constexpr, BLOCK_DS: tl.constexpr, BLOCK_DT: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
    PRECISION_S: tl.constexpr, PRECISION_T: tl.constexpr, A_S: tl.constexpr, A_T: tl.constexpr,
):  # fmt: skip
    """out ``(L, T, H, D_S)``: ``d_loss coefficient scale_s sum_j dL/ds_ij other_j`` for the rows of `own`.

    With OWN_IS_A rows are queries; without, keys: the same map seen from its other side.
    """
    block, head, layer, start, length = map_of(tl.program_id(0), cu_seqlens, num_tokens, blocks, L, H)
    own_s, other_s, stride_own_s, stride_other_s = operands(
        own_s, other_s, layer, head, start, stride_own_s, stride_other_s, head_own_s, head_other_s, L, A_S
    )
    own_t, other_t, stride_own_t, stride_other_t = operands(
        own_t, other_t, layer, head, start, stride_own_t, stride_other_t, head_own_t, head_other_t, L, A_T
    )
    factor = tl.load(d_loss) * tl.load(coefficient) * scale_s
    if LOSS != SCORE_MSE:
        scale_s, scale_t = scale_s * LOG2E, scale_t * LOG2E
    rows = block * M + tl.arange(0, M)
    x_s = load_rows(own_s, stride_own_s, rows, length, D_S, BLOCK_DS)
    x_t = load_rows(own_t, stride_own_t, rows, length, D_T, BLOCK_DT)
    at = stats + (layer * H + head).to(tl.int64) * num_tokens + start
    plane = num_tokens.to(tl.int64) * (L * H)
    columns_end = tl.where(block * M < length, length, 0)

    total = tl.zeros([M, BLOCK_DS], tl.float32)
    for first in range(0, columns_end, N):
        columns = first + tl.arange(0, N)
        y_s = load_rows(other_s, stride_other_s, columns, length, D_S, BLOCK_DS)
        s = scale_s * product(x_s, y_s, PRECISION_S)
        t = scale_t * product(x_t, load_rows(other_t, stride_other_t, columns, length, D_T, BLOCK_DT), PRECISION_T)
        if LOSS == SCORE_MSE:
            g = 2 * factor * (s - t)
        else:
            real = (rows < length)[:, None] & (columns < length)[None, :]
            queries = rows[:, None] if OWN_IS_A else columns[None, :]
            there = queries < length
            p_s = probability(s, at + queries, plane, there, real)
            p_t = probability(t, at + 2 * plane + queries, plane, there, real)
            if LOSS == KL:
                g = factor * (p_s - p_t)
            else:
                g = factor * p_s * (2 * (p_s - p_t) - tl.load(at + 4 * plane + queries, mask=there, other=0.0))
        if y_s.dtype == tl.float16:  # gradients leave its range; tf32 holds its values exactly
            total += tl.dot(rounded_to_tf32(g), y_s.to(tl.float32), input_precision="tf32")
        else:
            total += tl.dot(g.to(y_s.dtype), y_s, input_precision=PRECISION_S)

    places = tl.arange(0, BLOCK_DS)
    to = out + ((layer.to(tl.int64) * num_tokens + start + rows)[:, None] * H + head) * D_S + places[None, :]
    store(to, total, mask=(rows < length)[:, None] & (places < D_S)[None, :])


@dataclass(frozen=True)
class Tiled:
    """The launchers of one of the losses, `kind`.

    Those of probabilities are compiled without fused multiply-adds, so that scores are rounded alike every time: the
    largest must be the one that was saved.
    """

    kind: int

    def forward(
        self, a_s: list[Tensor], b_s: list[Tensor], a_t: list[Tensor], b_t: list[Tensor],
        cu_seqlens: Tensor, max_seqlen: int, scale_s: float, scale_t: float, normalize: str,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """The loss ``()`` summed over layers, and what `backward` wants: stats ``(planes, L, H, T)``, coefficient."""
        like, num_sequences = a_s[0], cu_seqlens.numel() - 1
        num_tokens, H, _ = like.shape
        L = len(a_s)
        empty = num_sequences == 0 or num_tokens == 0
        loss, coefficient = room(like, empty)
        stats = loss.new_empty(self.saved_shape(L, like.shape, a_t[0].shape, num_sequences))
        if empty:
            return loss, stats, coefficient
        sides = [alike(x) for x in (a_s, b_s, a_t, b_t)]
        whole = self.kind == PROB_MSE.value and max_seqlen <= _longest_whole_rows(like, a_t[0])
        tiles = (_whole_rows if whole else _tiles)(max_seqlen, like, a_t[0])
        blocks = triton.cdiv(max_seqlen, tiles["M"])
        partial = like.new_empty(blocks * H * L * num_sequences, dtype=torch.float32)
        kernel, extra = (whole_rows_kernel, {}) if whole else (forward_kernel, {"LOSS": self.kind})
        kernel[(len(partial),)](
            *(tuple(x) for x in sides), cu_seqlens, partial, stats, num_tokens, blocks, scale_s, scale_t,
            *(x[0].stride(0) for x in sides), *(x[0].stride(1) for x in sides),
            **extra, L=L, H=H, D_S=like.shape[-1], D_T=a_t[0].shape[-1], **tiles,
            PRECISION_S=precision(like.dtype), PRECISION_T=precision(a_t[0].dtype),
            A_S=divisor_of(*sides[:2]), A_T=divisor_of(*sides[2:]), enable_fp_fusion=self.kind == SCORE_MSE.value,
        )  # fmt: skip
        power = 1 if self.kind == KL.value else 2  # a mean over rows, or over their scores
        entries = num_sequences * max_seqlen**power if normalize == "padded" else None
        finish(partial, loss, coefficient, entries, H, cu_seqlens, num_tokens, max_seqlen, power)
        return loss, stats, coefficient

    def backward(
        self, d_loss: Tensor, a_s: list[Tensor], b_s: list[Tensor], a_t: list[Tensor], b_t: list[Tensor],
        cu_seqlens: Tensor, max_seqlen: int, scale_s: float, scale_t: float, stats: Tensor, coefficient: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """da_s, db_s ``(L, T, H, d_s)`` in the operands' dtype, from what `forward` left."""
        like, num_sequences = a_s[0], cu_seqlens.numel() - 1
        num_tokens, H, D_S = like.shape
        L = len(a_s)
        # zeros: whoever fills a batch up to a fixed size has tokens that belong to no sequence
        da, db = (like.new_zeros((L, num_tokens, H, D_S)) for _ in range(2))
        if num_sequences == 0 or num_tokens == 0:
            return da, db
        a_s, b_s, a_t, b_t = (alike(x) for x in (a_s, b_s, a_t, b_t))
        tiles = _tiles(max_seqlen, like, a_t[0])
        blocks = triton.cdiv(max_seqlen, tiles["M"])
        for out, own_is_a, sides in ((da, True, (a_s, b_s, a_t, b_t)), (db, False, (b_s, a_s, b_t, a_t))):
            gradient_kernel[(blocks * H * L * num_sequences,)](
                *(tuple(x) for x in sides), cu_seqlens, stats, d_loss, coefficient, out,
                num_tokens, blocks, scale_s, scale_t,
                *(x[0].stride(0) for x in sides), *(x[0].stride(1) for x in sides),
                LOSS=self.kind, OWN_IS_A=own_is_a, L=L, H=H, D_S=D_S, D_T=a_t[0].shape[-1], **tiles,
                PRECISION_S=precision(like.dtype), PRECISION_T=precision(a_t[0].dtype),
                A_S=divisor_of(*sides[:2]), A_T=divisor_of(*sides[2:]), enable_fp_fusion=self.kind == SCORE_MSE.value,
            )  # fmt: skip
        return da, db

    def saved_shape(self, L: int, student: torch.Size, teacher: torch.Size, num_sequences: int) -> tuple[int, ...]:
        """Of the stats."""
        num_tokens, H, _ = student
        planes = {SCORE_MSE.value: 0, KL.value: 4, PROB_MSE.value: 5}[self.kind]
        return (planes, L, H, num_tokens)


def alike(layers: list[Tensor]) -> list[Tensor]:
    """The same layers with strides that one launch can share and elements of a head side by side."""
    if layers[0].stride(-1) == 1 and all(x.stride() == layers[0].stride() for x in layers):
        return layers
    return [x.contiguous() for x in layers]


def divisor_of(*operands: list[Tensor]) -> int:
    """Of their strides; one for tokens, one for heads."""
    return divisor(*(stride for x in operands for stride in x[0].stride()[:2]))


def _tiles(max_seqlen: int, student: Tensor, teacher: Tensor) -> dict[str, int]:
    """Block sizes: powers of two, so that few kernels are compiled; products want 16 at least, registers are few.

    Raises:
        ValueError: a head too wide for any.
    """
    pads = [max(16, triton.next_power_of_2(x.shape[-1])) for x in (student, teacher)]
    if max(pads) > 256:
        raise ValueError(f"head size {max(student.shape[-1], teacher.shape[-1])}: at most 256 fit; use more heads")
    single, room_for = _single(student, teacher), shared_memory(student)
    most = (4096 if single else 8192) // max(pads)
    side = max(16, min(64, triton.next_power_of_2(max_seqlen), most if room_for > 64 * 1024 else most // 2))
    return {
        "BLOCK_DS": pads[0],
        "BLOCK_DT": pads[1],
        "M": side,
        "N": max(16, side // 2) if single else side,
        "num_warps": 8 if side == 64 or (single and side == 32) else 4,
        "num_stages": {64: 1, 16: 3 if room_for > 128 * 1024 else 1}.get(side, 2) if single else 2,
    }


def _longest_whole_rows(student: Tensor, teacher: Tensor) -> int:
    """The keys for which registers have room; MI300 has less of it.

    float32, whose last digits show, wants the gradient's tiles, of 64 rows, where products are rounded alike.
    """
    if max(student.shape[-1], teacher.shape[-1]) > 64:
        return 0
    return 64 if _single(student, teacher) or torch.version.hip else 512


def _whole_rows(max_seqlen: int, student: Tensor, teacher: Tensor) -> dict[str, int]:
    """Block sizes of `whole_rows_kernel`."""
    keys = max(16, triton.next_power_of_2(max_seqlen))
    tiles = _tiles(max_seqlen, student, teacher) | {"KEYS": keys, "num_stages": 1}
    return tiles if _single(student, teacher) else tiles | {"M": min(64, keys, 16384 // keys)}


def _single(student: Tensor, teacher: Tensor) -> bool:
    return max(student.dtype.itemsize, teacher.dtype.itemsize) > 2


def shared_memory(x: Tensor) -> int:
    """What may decide the tiles: bytes that a block may have where `x` is; AMD's compiler wants none for them."""
    if torch.version.hip or not x.is_cuda:
        return 227 * 1024
    return _shared_memory_of(x.get_device())


@cache
def _shared_memory_of(device: int) -> int:
    return int(triton.runtime.driver.active.utils.get_device_properties(device)["max_shared_mem"])
