"""`soft_cross_entropy` in Triton: one program per row, loss and gradient in one kernel.

A program walks over its row three times, and finds it in the cache after the first: for the maxima, for the sums of
exponentials and the losses, for the gradient. One program fills a multiprocessor, so that a vocabulary's row stays in
its first cache. Incoming gradients are folded in before the gradient is rounded, though they are not known yet: the
caller says which are to be expected, and if others arrive, the backward pass makes the gradient anew from the saved
maxima and sums. The device decides that; the host never waits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.kernel import LN2, LOG2E, divisor, known, store
from .numbers import MASKED, Numbers

NOWHERE = tl.constexpr(MASKED)


@triton.jit
def _row(rows, program, logits, HAS_ROWS: tl.constexpr):
    """The row of the logits that a program works on; any row where there is no such one, for all is NaN then."""
    row = tl.load(rows + program).to(tl.int64) if HAS_ROWS else program.to(tl.int64)
    return tl.where((row < 0) | (row >= logits), 0, row)


@triton.jit
def _weight(
    row_weights, labels, row, ignore_index, classes, HAS_WEIGHTS: tl.constexpr, HAS_LABELS: tl.constexpr
):  # fmt: skip
    """(weight, label) of a row: 0 for a row that is ignored, NaN for one whose label is no class, to be noticed."""
    weight = tl.load(row_weights + row).to(tl.float32) if HAS_WEIGHTS else 1.0
    label = tl.load(labels + row) if HAS_LABELS else tl.full([], 0, tl.int64)
    if HAS_LABELS:
        weight = tl.where(label == ignore_index, 0.0, weight)
        outside = (label < 0) | (label >= classes)
        weight = tl.where(outside & (weight != 0.0), float("nan"), weight)
        label = tl.where(outside, 0, label)
    return weight, label


@triton.jit
def _load(pointer, there):
    x = tl.load(pointer, mask=there, other=0.0).to(tl.float32)
    return tl.where(there & ~(x < NOWHERE), x, NOWHERE)  # and NaN stays what it is


@triton.jit
def _write_gradient(
    student, teacher, out, top_s, top_t, sum_s, sum_t, sum_1, label, weight, gain, soft, hard, classes, width,
    scale_s, scale_t, HAS_LABELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row of the gradient, ``weight (gain soft (p_s - p_t) + hard (p_1 - onehot))``."""
    of_s, of_t, of_label = weight * gain * soft / sum_s, weight * gain * soft / sum_t, weight * hard
    of_1 = of_label / sum_1 if HAS_LABELS else 0.0
    for first in range(0, width, BLOCK):
        places = first + tl.arange(0, BLOCK)
        s, t = _load(student + places, places < classes), _load(teacher + places, places < classes) - top_t
        raw = s - top_s
        g = of_s * tl.exp2(raw * scale_s) - of_t * tl.exp2(t * scale_t)
        if HAS_LABELS:
            g += of_1 * tl.exp2(raw * LOG2E) - tl.where(places == label, of_label, 0.0)
        g = tl.where(s == NOWHERE, 0.0, g)
        # what is ignored may hold anything, NaN too
        store(out + places, tl.where(weight != 0.0, g, 0.0), mask=places < width)


@triton.jit(do_not_specialize=["num_rows", "logits", "ignore_index"])
def weight_kernel(
    labels, rows, row_weights, inverse, num_rows, logits, ignore_index,
    HAS_LABELS: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """inverse ``()``: 1 / sum of weights, 0 if no row counts, NaN if one is not among the `logits` rows."""
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, num_rows, BLOCK):
        places = first + tl.arange(0, BLOCK)
        there = places < num_rows
        row = tl.load(rows + places, mask=there, other=0).to(tl.int64) if HAS_ROWS else places.to(tl.int64)
        missing = (row < 0) | (row >= logits)
        row = tl.where(missing, 0, row)
        weight = tl.where(there, 1.0, 0.0)
        if HAS_WEIGHTS:
            weight = tl.load(row_weights + row, mask=there, other=0.0).to(tl.float32)
        if HAS_LABELS:
            label = tl.load(labels + row, mask=there, other=0)
            weight = tl.where(label == ignore_index, 0.0, weight)
        total += tl.where(there & missing, float("nan"), weight)
    everything = tl.sum(total, axis=0)
    tl.store(inverse, tl.where(everything != 0.0, 1.0 / tl.where(everything != 0.0, everything, 1.0), 0.0))


@triton.jit(do_not_specialize=["num_rows", "logits", "classes", "width", "ignore_index"])
def loss_kernel(
    z_s, z_t, labels, rows, row_weights, inverse, stats, sums, out,
    num_rows, logits, classes, width, stride_s, stride_t, inverse_s, inverse_t, factor, expected_soft, expected_hard,
    ignore_index,
    KL: tl.constexpr, HAS_LABELS: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_WEIGHTS: tl.constexpr,
    WITH_GRADIENT: tl.constexpr, BLOCK: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """stats ``(4 or 5, R)``: maxima of z_s and z_t, sums of exponentials over temperatures, of z_s alone; sums: losses.

    With WITH_GRADIENT also out ``(N, width)``: the gradient for the student's logits if the expected ones arrive.
    """
    program = tl.program_id(0)
    classes, width, stride_s, stride_t = known(classes, A), known(width, A), known(stride_s, A), known(stride_t, A)
    row = _row(rows, program, logits, HAS_ROWS)
    weight, label = _weight(row_weights, labels, row, ignore_index, classes, HAS_WEIGHTS, HAS_LABELS)
    student, teacher = z_s + row * stride_s, z_t + row * stride_t
    places = tl.arange(0, BLOCK)
    scale_s, scale_t = inverse_s * LOG2E, inverse_t * LOG2E  # powers of two are cheaper
    most_s, most_t = tl.full([BLOCK], NOWHERE, tl.float32), tl.full([BLOCK], NOWHERE, tl.float32)
    for first in range(0, classes, BLOCK):
        there = first + places < classes
        most_s = tl.maximum(most_s, _load(student + first + places, there))
        most_t = tl.maximum(most_t, _load(teacher + first + places, there))
    top_s, top_t = tl.max(most_s, axis=0), tl.max(most_t, axis=0)

    of_s, of_t, of_1 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    crosses = tl.zeros([BLOCK], tl.float32)
    for first in range(0, classes, BLOCK):
        there = first + places < classes
        raw = _load(student + first + places, there) - top_s
        x_s, x_t = raw * scale_s, (_load(teacher + first + places, there) - top_t) * scale_t
        # where a row is masked as a whole, what lies past the classes would look like one of them
        weights = tl.where(there, tl.exp2(x_t), 0.0)
        of_t += weights
        of_s += tl.where(there, tl.exp2(x_s), 0.0)
        crosses += weights * (x_t - x_s if KL else -x_s)
        if HAS_LABELS:
            of_1 += tl.where(there, tl.exp2(raw * LOG2E), 0.0)
    sum_s, sum_t, sum_1 = tl.sum(of_s, axis=0), tl.sum(of_t, axis=0), tl.sum(of_1, axis=0)
    soft = tl.sum(crosses, axis=0) / sum_t + tl.log2(
        tl.div_rn(sum_s, sum_t) if KL else sum_s
    )  # a ratio near 1 keeps its digits
    hard = 0.0
    if HAS_LABELS:
        of_label = _load(student + label, True)
        hard = tl.log2(sum_1) - (of_label - top_s) * LOG2E
        tl.store(stats + 4 * num_rows + program, sum_1)
    tl.store(stats + program, top_s)
    tl.store(stats + num_rows + program, top_t)
    tl.store(stats + 2 * num_rows + program, sum_s)
    tl.store(stats + 3 * num_rows + program, sum_t)
    tl.store(sums + program, tl.where(weight != 0.0, soft * LN2 * weight, 0.0))
    tl.store(sums + num_rows + program, tl.where(weight != 0.0, hard * LN2 * weight, 0.0))
    if WITH_GRADIENT:
        _write_gradient(
            student, teacher, out + row * width, top_s, top_t, sum_s, sum_t, sum_1, label, weight * tl.load(inverse),
            inverse_s * factor, expected_soft, expected_hard, classes, width, scale_s, scale_t, HAS_LABELS, BLOCK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def finish_kernel(sums, inverse, soft, hard, num_rows, factor, BLOCK: tl.constexpr):
    """soft (times `factor`) and hard ``()``: means over rows."""
    places = tl.arange(0, BLOCK)
    sum_soft, sum_hard = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for first in range(0, num_rows, BLOCK):
        there = first + places < num_rows
        sum_soft += tl.load(sums + first + places, mask=there, other=0.0)
        sum_hard += tl.load(sums + num_rows + first + places, mask=there, other=0.0)
    one_over = tl.load(inverse)
    tl.store(soft, tl.sum(sum_soft, axis=0) * one_over * factor)
    tl.store(hard, tl.sum(sum_hard, axis=0) * one_over)


@triton.jit(do_not_specialize=["num_rows", "logits", "classes", "width", "ignore_index"])
def gradient_kernel(
    z_s, z_t, labels, rows, row_weights, inverse, stats, d_soft, d_hard, out,
    num_rows, logits, classes, width, stride_s, stride_t, inverse_s, inverse_t, factor, expected_soft, expected_hard,
    ignore_index,
    HAS_D_SOFT: tl.constexpr, HAS_D_HARD: tl.constexpr, IN_PLACE: tl.constexpr,
    HAS_LABELS: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """out ``(N, width)``: the gradient for the student's logits; 0 in columns past `classes` and in ignored rows.

    With IN_PLACE `out` holds it already if d_soft and d_hard are the expected ones: then there is nothing to walk over.
    """
    program = tl.program_id(0)
    classes, width, stride_s, stride_t = known(classes, A), known(width, A), known(stride_s, A), known(stride_t, A)
    row = _row(rows, program, logits, HAS_ROWS)
    weight, label = _weight(row_weights, labels, row, ignore_index, classes, HAS_WEIGHTS, HAS_LABELS)
    weight *= tl.load(inverse)
    soft = tl.load(d_soft) if HAS_D_SOFT else 0.0
    hard = tl.load(d_hard) if HAS_D_HARD else 0.0
    columns = width
    if IN_PLACE:
        as_expected = (soft == expected_soft) & ((hard == expected_hard) | (not HAS_LABELS))
        columns = tl.where(as_expected, 0, width)
    top_s, top_t = tl.load(stats + program), tl.load(stats + num_rows + program)
    sum_s, sum_t = tl.load(stats + 2 * num_rows + program), tl.load(stats + 3 * num_rows + program)
    sum_1 = tl.load(stats + 4 * num_rows + program) if HAS_LABELS else 1.0
    _write_gradient(
        z_s + row * stride_s, z_t + row * stride_t, out + row * width, top_s, top_t, sum_s, sum_t, sum_1, label, weight,
        inverse_s * factor, soft, hard, classes, columns, inverse_s * LOG2E, inverse_t * LOG2E, HAS_LABELS, BLOCK,
    )  # fmt: skip


class SoftLabels(Numbers):
    """The launchers for logits ``(N, width)``, of which R rows and the first `classes` columns count."""

    def forward(
        self, z_s: Tensor, z_t: Tensor, labels: Tensor | None, rows: Tensor | None, row_weights: Tensor | None,
        kl: bool, with_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """soft and hard ``()``, out ``(N, width)`` or ``(0,)``, and for `backward` stats ``(4 or 5, R)``, inverse."""
        num_rows = len(z_s) if rows is None else len(rows)
        sums = z_s.new_empty((2, num_rows), dtype=torch.float32)
        stats = sums.new_empty((4 if labels is None else 5, num_rows))
        soft, hard, inverse = (sums.new_empty(()) for _ in range(3))
        out = _room(z_s, rows) if with_gradient else z_s.new_empty(0)
        optional, flags = _optional(labels, rows, row_weights, stats)
        weight_kernel[(1,)](*optional, inverse, num_rows, len(z_s), self.ignore_index, **flags, BLOCK=2048, num_warps=8)
        if num_rows > 0:
            z_s, z_t = _rowwise(z_s), _rowwise(z_t)
            loss_kernel[(num_rows,)](
                z_s, z_t, *optional, inverse, stats, sums, out, num_rows, *self._numbers(z_s, z_t),
                KL=kl, WITH_GRADIENT=with_gradient, **flags, **_blocks(self.classes), A=self._divisor(z_s, z_t),
            )  # fmt: skip
        finish_kernel[(1,)](sums, inverse, soft, hard, num_rows, self.factor, BLOCK=2048, num_warps=8)
        return soft, hard, out, stats, inverse

    def backward(
        self, out: Tensor | None, d_soft: Tensor | None, d_hard: Tensor | None,
        z_s: Tensor, z_t: Tensor, labels: Tensor | None, rows: Tensor | None, row_weights: Tensor | None,
        stats: Tensor, inverse: Tensor,
    ) -> Tensor:  # fmt: skip
        """The gradient for the student's logits, ``(N, width)``: `out` of `forward` set right, or a new one."""
        in_place = out is not None
        out = _room(z_s, rows) if out is None else out
        num_rows = stats.shape[1]
        if num_rows > 0:
            z_s, z_t = _rowwise(z_s), _rowwise(z_t)
            optional, flags = _optional(labels, rows, row_weights, stats)
            gradient_kernel[(num_rows,)](
                z_s, z_t, *optional, inverse, stats, *(stats if x is None else x for x in (d_soft, d_hard)), out,
                num_rows, *self._numbers(z_s, z_t),
                HAS_D_SOFT=d_soft is not None, HAS_D_HARD=d_hard is not None, IN_PLACE=in_place,
                **flags, **_blocks(self.classes), A=self._divisor(z_s, z_t),
            )  # fmt: skip
        return out

    def _divisor(self, z_s: Tensor, z_t: Tensor) -> int:
        """Of all that decides where rows and masks end."""
        return divisor(self.classes, z_s.shape[1], z_s.stride(0), z_t.stride(0))

    def _numbers(self, z_s: Tensor, z_t: Tensor) -> tuple[float, ...]:
        """From `logits` to `ignore_index`, as both kernels take them."""
        return (
            len(z_s), self.classes, z_s.shape[1], z_s.stride(0), z_t.stride(0), 1.0 / self.temperature_s,
            1.0 / self.temperature_t, self.factor, self.expected_soft, self.expected_hard, self.ignore_index,
        )  # fmt: skip


def _room(z_s: Tensor, rows: Tensor | None) -> Tensor:
    """For the gradient, 0 in rows that take no part."""
    return z_s.new_empty(z_s.shape) if rows is None else z_s.new_zeros(z_s.shape)


def _optional(
    labels: Tensor | None, rows: Tensor | None, row_weights: Tensor | None, other: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, bool]]:
    """What the kernels take for tensors that may be missing (`other` is not read), and the flags that say which are."""
    flags = {"HAS_LABELS": labels is not None, "HAS_ROWS": rows is not None, "HAS_WEIGHTS": row_weights is not None}
    a, b, c = (other if x is None else x for x in (labels, rows, row_weights))
    return (a, b, c), flags


def _rowwise(z: Tensor) -> Tensor:
    """Logits whose classes lie side by side."""
    return z if z.stride(-1) == 1 else z.contiguous()


def _blocks(classes: int) -> dict[str, int]:
    """A whole row where it is short; of a vocabulary 4096 logits at a time, by one program to a multiprocessor."""
    block = min(4096, max(16, triton.next_power_of_2(classes)))
    if block < 4096:
        return {"BLOCK": block, "num_warps": 4 if block > 256 else 1}
    alone = {} if torch.version.hip else {"maxnreg": 128}  # else registers are spilled to make room for a second one
    return {"BLOCK": block, "num_warps": 16, **alone}
