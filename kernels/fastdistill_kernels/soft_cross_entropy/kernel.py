"""`soft_cross_entropy` in Triton: one program per row, the logits are read once forward and once backward.

The forward pass keeps three numbers of a row, the log-sum-exps of its softmaxes; the backward pass makes the gradient
from them and the logits with the incoming gradients folded in, so that it is rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.kernel import store

NOWHERE = tl.constexpr(-1e38)  # a logit that no softmax sees, far from the end of float32


@triton.jit
def _row(rows, program, HAS_ROWS: tl.constexpr):
    """The row of the logits that a program works on."""
    return tl.load(rows + program).to(tl.int64) if HAS_ROWS else program.to(tl.int64)


@triton.jit
def _weight(row_weights, labels, row, ignore_index, HAS_WEIGHTS: tl.constexpr, HAS_LABELS: tl.constexpr):
    """(weight, label) of a row; a row that is ignored weighs nothing and has label -1."""
    weight = tl.load(row_weights + row).to(tl.float32) if HAS_WEIGHTS else 1.0
    label = tl.load(labels + row) if HAS_LABELS else tl.full([], -1, tl.int64)
    if HAS_LABELS:
        weight = tl.where(label == ignore_index, 0.0, weight)
        label = tl.where(label == ignore_index, -1, label)
    return weight, label


@triton.jit
def _nowhere(BLOCK: tl.constexpr):
    return tl.full([BLOCK], NOWHERE, tl.float32)


@triton.jit
def _rescale(top, x, there):
    """(the lanes' new maxima, what brings sums made with the old ones to them, the new terms of the sums)."""
    new = tl.maximum(top, tl.where(there, x, NOWHERE))
    return new, tl.exp(top - new), tl.where(there, tl.exp(tl.where(there, x - new, 0.0)), 0.0)


@triton.jit
def _meet(top, total, weighted):
    """(log-sum-exp of all lanes, mean of what `weighted` adds up)."""
    biggest = tl.max(top, axis=0)
    shrink = tl.exp(top - biggest)
    everything = tl.sum(total * shrink, axis=0)
    return biggest + tl.log(everything), tl.sum(weighted * shrink, axis=0) / everything


@triton.jit(do_not_specialize=["num_rows", "classes", "ignore_index"])
def forward_kernel(
    z_s, z_t, labels, rows, row_weights, stats, sums,
    num_rows, classes, stride_s, stride_t, inverse_s, inverse_t, ignore_index,
    KL: tl.constexpr, HAS_LABELS: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """stats: log-sum-exps of z_s and z_t over their temperatures and, with labels, of z_s; sums: soft, hard, weight."""
    program = tl.program_id(0)
    row = _row(rows, program, HAS_ROWS)
    weight, label = _weight(row_weights, labels, row, ignore_index, HAS_WEIGHTS, HAS_LABELS)
    student, teacher = z_s + row * stride_s, z_t + row * stride_t
    places = tl.arange(0, BLOCK)
    # every lane keeps a maximum and sums of its own; lanes meet once, at the end
    top_s, top_t, top_1 = _nowhere(BLOCK), _nowhere(BLOCK), _nowhere(BLOCK)
    sum_s, sum_t, sum_1 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    cross = tl.zeros([BLOCK], tl.float32)
    for first in range(0, classes, BLOCK):
        there = first + places < classes
        raw = tl.load(student + first + places, mask=there, other=0.0).to(tl.float32)
        s, t = raw * inverse_s, tl.load(teacher + first + places, mask=there, other=0.0).to(tl.float32) * inverse_t
        top_s, shrink, weights = _rescale(top_s, s, there)
        sum_s = sum_s * shrink + weights
        top_t, shrink, weights = _rescale(top_t, t, there)
        sum_t = sum_t * shrink + weights
        # of -log p_s, or of log p_t - log p_s, the part that depends on the class
        cross = cross * shrink + weights * (t - s if KL else -s)
        if HAS_LABELS:
            top_1, shrink, weights = _rescale(top_1, raw, there)
            sum_1 = sum_1 * shrink + weights
    lse_s, _ = _meet(top_s, sum_s, sum_s)
    lse_t, mean = _meet(top_t, sum_t, cross)
    tl.store(stats + program, lse_s)
    tl.store(stats + num_rows + program, lse_t)
    soft = mean + lse_s - (lse_t if KL else 0.0)
    hard = 0.0
    if HAS_LABELS:
        lse_1, _ = _meet(top_1, sum_1, sum_1)
        tl.store(stats + 2 * num_rows + program, lse_1)
        of_label = tl.load(student + label, mask=(label >= 0) & (label < classes), other=0.0).to(tl.float32)
        hard = tl.where(label >= 0, lse_1 - of_label, 0.0)
    counts = weight != 0.0  # what is ignored may hold anything, NaN too
    tl.store(sums + program, tl.where(counts, soft * weight, 0.0))
    tl.store(sums + num_rows + program, tl.where(counts, hard * weight, 0.0))
    tl.store(sums + 2 * num_rows + program, weight)


@triton.jit(do_not_specialize=["num_rows"])
def finish_kernel(sums, losses, inverse, num_rows, factor, BLOCK: tl.constexpr):
    """losses ``(2,)``: means over rows of soft (times `factor`) and hard; inverse ``()``: 1 / sum of weights."""
    places = tl.arange(0, BLOCK)
    soft = tl.zeros([BLOCK], tl.float32)
    hard = tl.zeros([BLOCK], tl.float32)
    weight = tl.zeros([BLOCK], tl.float32)
    for first in range(0, num_rows, BLOCK):
        there = first + places < num_rows
        soft += tl.load(sums + first + places, mask=there, other=0.0)
        hard += tl.load(sums + num_rows + first + places, mask=there, other=0.0)
        weight += tl.load(sums + 2 * num_rows + first + places, mask=there, other=0.0)
    total = tl.sum(weight, axis=0)
    one_over = tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)
    tl.store(losses, tl.sum(soft, axis=0) * one_over * factor)
    tl.store(losses + 1, tl.sum(hard, axis=0) * one_over)
    tl.store(inverse, one_over)


@triton.jit(do_not_specialize=["num_rows", "classes", "width", "ignore_index"])
def gradient_kernel(
    z_s, z_t, labels, rows, row_weights, stats, inverse, d_soft, d_hard, out,
    num_rows, classes, width, stride_s, stride_t, inverse_s, inverse_t, factor, ignore_index,
    HAS_LABELS: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out ``(rows, width)``: the gradient for the student's logits; 0 in columns past `classes` and in ignored rows."""
    program = tl.program_id(0)
    row = _row(rows, program, HAS_ROWS)
    weight, label = _weight(row_weights, labels, row, ignore_index, HAS_WEIGHTS, HAS_LABELS)
    weight *= tl.load(inverse)
    soft = tl.load(d_soft) * factor * inverse_s * weight
    hard = tl.load(d_hard) * weight
    lse_s, lse_t = tl.load(stats + program), tl.load(stats + num_rows + program)
    student, teacher = z_s + row * stride_s, z_t + row * stride_t
    for first in range(0, width, BLOCK):
        places = first + tl.arange(0, BLOCK)
        there = places < classes
        raw = tl.load(student + places, mask=there, other=0.0).to(tl.float32)
        t = tl.load(teacher + places, mask=there, other=0.0).to(tl.float32) * inverse_t
        p_s = tl.exp(tl.where(there, raw * inverse_s - lse_s, NOWHERE))
        g = soft * (p_s - tl.exp(tl.where(there, t - lse_t, NOWHERE)))
        if HAS_LABELS:
            p = tl.exp(tl.where(there, raw - tl.load(stats + 2 * num_rows + program), NOWHERE))
            g += hard * (p - tl.where(places == label, 1.0, 0.0))
        store(out + row * width + places, tl.where(weight != 0.0, g, 0.0), mask=places < width)


def forward(
    z_s: Tensor, z_t: Tensor, labels: Tensor | None, rows: Tensor | None, row_weights: Tensor | None,
    classes: int, temperature_s: float, temperature_t: float, kl: bool, factor: float, ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """losses ``(2,)``, and for `backward` stats ``(2 or 3, R)`` and inverse ``()``; logits are ``(N, width)``."""
    z_s, z_t = _rowwise(z_s), _rowwise(z_t)
    num_rows = len(z_s) if rows is None else len(rows)
    sums = z_s.new_empty((3, num_rows), dtype=torch.float32)
    stats = sums.new_empty((2 if labels is None else 3, num_rows))
    losses, inverse = sums.new_empty(2), sums.new_empty(())
    if num_rows > 0:
        forward_kernel[(num_rows,)](
            z_s, z_t, *(stats if x is None else x for x in (labels, rows, row_weights)), stats, sums,
            num_rows, classes, z_s.stride(0), z_t.stride(0), 1.0 / temperature_s, 1.0 / temperature_t, ignore_index,
            KL=kl, HAS_LABELS=labels is not None, HAS_ROWS=rows is not None, HAS_WEIGHTS=row_weights is not None,
            **_blocks(classes),
        )  # fmt: skip
    finish_kernel[(1,)](sums, losses, inverse, num_rows, factor, BLOCK=1024)
    return losses, stats, inverse


def backward(
    d_soft: Tensor, d_hard: Tensor, z_s: Tensor, z_t: Tensor, labels: Tensor | None, rows: Tensor | None,
    row_weights: Tensor | None, stats: Tensor, inverse: Tensor,
    classes: int, temperature_s: float, temperature_t: float, factor: float, ignore_index: int,
) -> Tensor:  # fmt: skip
    """The gradient for the student's logits, ``(N, width)`` in their dtype."""
    out = z_s.new_empty(z_s.shape) if rows is None else z_s.new_zeros(z_s.shape)
    z_s, z_t = _rowwise(z_s), _rowwise(z_t)
    num_rows, width = stats.shape[1], z_s.shape[1]
    if num_rows > 0:
        gradient_kernel[(num_rows,)](
            z_s, z_t, *(stats if x is None else x for x in (labels, rows, row_weights)), stats, inverse,
            d_soft, d_hard, out, num_rows, classes, width, z_s.stride(0), z_t.stride(0),
            1.0 / temperature_s, 1.0 / temperature_t, factor, ignore_index,
            HAS_LABELS=labels is not None, HAS_ROWS=rows is not None, HAS_WEIGHTS=row_weights is not None,
            **_blocks(width),
        )  # fmt: skip
    return out


def _rowwise(z: Tensor) -> Tensor:
    """Logits whose classes lie side by side."""
    return z if z.stride(-1) == 1 else z.contiguous()


def _blocks(classes: int) -> dict[str, int]:
    """A whole row where it is short, 4096 logits at a time of a vocabulary."""
    block = min(4096, max(16, triton.next_power_of_2(classes)))
    return {"BLOCK": block, "num_warps": 8 if block == 4096 else 4 if block > 256 else 1}
