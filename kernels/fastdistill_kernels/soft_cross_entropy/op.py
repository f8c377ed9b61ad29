"""`soft_cross_entropy`: the public function and its custom ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_devices, check_finite, check_floating, check_temperature, check_whole
from ..device import runs_in_triton
from . import chunked


def soft_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    form: str = "ce",
    scale_by_temperature_squared: bool = False,
    ignore_index: int = -100,
    rows: Tensor | None = None,
    row_weights: Tensor | None = None,
    num_classes: int | None = None,
    expected_gradients: tuple[float, float] = (1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Cross-entropy with the teacher's softened distribution, and with the gold labels of the same rows.

    ``soft = mean over rows of -softmax(z_t / teacher_temperature) . log_softmax(z_s / temperature)`` and
    ``hard = mean over rows of -log_softmax(z_s)[label]``; the caller weighs the two.

    Args:
        student_logits: ``(..., C)``; those below -1e30, -inf too, are taken for -1e30 and receive no gradient: a class
            which both sides mask adds nothing.
        teacher_logits: ``(..., C)``; a constant, it never receives gradients.
        labels: ``(...)`` int64 gold classes; a row labelled `ignore_index` takes part in neither mean. A label that is
            no class is refused on a CPU, and makes results NaN on a GPU, which would have to be waited for.
        temperature: softens both distributions of the soft term; from 1e-6 to 1e6; above some 300 the KL
            divergence, whose terms nearly cancel, keeps few digits.
        teacher_temperature: softens the teacher's instead, where it is to differ.
        form: "ce", or "kl" for KL(p_t || p_s), which has the same gradient and is 0 for equal logits.
        scale_by_temperature_squared: multiply the soft term by temperature^2 (by temperature * teacher_temperature
            where they differ), so that its gradient keeps its size.
        ignore_index: the label of rows to leave out.
        rows: ``(R,)`` int64, the rows (of all leading dimensions as one) that take part, each once; default all. One
            that there is not is refused on a CPU, and makes all results NaN on a GPU; one that comes twice is refused
            on a CPU, and has the gradient of one on a GPU.
        row_weights: ``(...)``, constant weights of the rows in both means, which are divided by the weights' sum.
        num_classes: classes that are real, where logits are padded to other widths; default the width of both.
        expected_gradients: the weights that soft and hard will have in what is differentiated. The forward pass
            makes the gradient for these; if backward brings others it is made a second time, so a wrong
            expectation costs time and changes nothing.

    Returns:
        ``(soft, hard)``, each ``()`` float32 (float64 for float64 logits). Hard is 0 without labels; both are 0 where
        no row takes part.

    Raises:
        ValueError: logits, labels, rows or weights of shapes, dtypes or devices that do not fit, an unknown form, or a
            temperature out of its range; on a CPU rows that there are not or that come twice.
        IndexError: on a CPU, a label that is no class.

    Source: Hinton et al. (arXiv 1503.02531), section 2; TinyBERT (arXiv 1909.10351), equation 10.
    """
    temperature_t = temperature if teacher_temperature is None else teacher_temperature
    tensors = student_logits, teacher_logits, labels, rows, row_weights
    _check(*tensors, num_classes, ignore_index, form, temperature, temperature_t)
    if not isinstance(expected_gradients, Sequence) or len(expected_gradients) != 2:
        raise ValueError(f"expected_gradients={expected_gradients}: pass two, of soft and of hard")
    check_finite(**{"expected_gradients[0]": expected_gradients[0], "expected_gradients[1]": expected_gradients[1]})
    classes = student_logits.shape[-1] if num_classes is None else num_classes
    factor = temperature * temperature_t if scale_by_temperature_squared else 1.0
    z_s, z_t = student_logits.flatten(0, -2), teacher_logits.detach().flatten(0, -2)
    labels, rows, row_weights = (
        None if x is None else x.detach().flatten().contiguous() for x in (labels, rows, row_weights)
    )
    inputs = (z_s, z_t, labels, rows, row_weights, classes, ignore_index)
    numbers = [float(x) for x in (temperature, temperature_t, factor, *expected_gradients)]
    with_gradient = torch.is_grad_enabled() and z_s.requires_grad
    soft, hard, *_ = _forward(*inputs, numbers, form == "kl", with_gradient)
    return soft, hard


def _program(z_s: Tensor, classes: int, ignore_index: int, numbers: Sequence[float]) -> Any:
    """What computes: Triton kernels, or plain PyTorch."""
    if runs_in_triton(z_s):
        from .kernel import SoftLabels

        return SoftLabels(classes, ignore_index, *numbers)
    return chunked.SoftLabels(classes, ignore_index, *numbers)


@torch.library.custom_op("fastdistill::soft_cross_entropy", mutates_args=())
def _forward(
    z_s: Tensor,
    z_t: Tensor,
    labels: Tensor | None,
    rows: Tensor | None,
    row_weights: Tensor | None,
    classes: int,
    ignore_index: int,
    numbers: Sequence[float],
    kl: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """soft, hard, the expected gradient, and stats ``(4 or 5, R)`` and inverse ``()``, which may correct it."""
    with torch.cuda.device_of(z_s):
        return _program(z_s, classes, ignore_index, numbers).forward(
            z_s, z_t, labels, rows, row_weights, kl, with_gradient
        )


@_forward.register_fake
def _(
    z_s: Tensor, z_t: Tensor, labels: Tensor | None, rows: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *_, with_gradient = rest
    num_rows = z_s.shape[0] if rows is None else rows.shape[0]
    stats = z_s.new_empty((4 if labels is None else 5, num_rows), dtype=torch.float32)
    dtype = torch.promote_types(z_s.dtype, torch.float32)
    soft, hard, inverse = (z_s.new_empty((), dtype=dtype) for _ in range(3))
    return soft, hard, z_s.new_empty(z_s.shape if with_gradient else (0,)), stats, inverse


@torch.library.custom_op("fastdistill::soft_cross_entropy_backward", mutates_args=())
def _backward(
    d_soft: Tensor | None,
    d_hard: Tensor | None,
    z_s: Tensor,
    z_t: Tensor,
    labels: Tensor | None,
    rows: Tensor | None,
    row_weights: Tensor | None,
    stats: Tensor,
    inverse: Tensor,
    classes: int,
    ignore_index: int,
    numbers: Sequence[float],
) -> Tensor:
    """The gradient for the student's logits."""
    saved = (z_s, z_t, labels, rows, row_weights, stats, inverse)
    with torch.cuda.device_of(z_s):
        return _program(z_s, classes, ignore_index, numbers).backward(None, d_soft, d_hard, *saved)


@_backward.register_fake
def _(d_soft: Tensor | None, d_hard: Tensor | None, z_s: Tensor, *_: Any) -> Tensor:
    return z_s.new_empty(z_s.shape)


@torch.library.custom_op("fastdistill::soft_cross_entropy_correct", mutates_args=("gradient",))
def _correct(
    gradient: Tensor,
    d_soft: Tensor | None,
    d_hard: Tensor | None,
    z_s: Tensor,
    z_t: Tensor,
    labels: Tensor | None,
    rows: Tensor | None,
    row_weights: Tensor | None,
    stats: Tensor,
    inverse: Tensor,
    classes: int,
    ignore_index: int,
    numbers: Sequence[float],
) -> None:
    """Write `gradient` anew unless d_soft and d_hard are what it was made for."""
    saved = (z_s, z_t, labels, rows, row_weights, stats, inverse)
    with torch.cuda.device_of(z_s):
        _program(z_s, classes, ignore_index, numbers).backward(gradient, d_soft, d_hard, *saved)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, classes, ignore_index, numbers, _, with_gradient = inputs
    _, _, gradient, stats, inverse = output
    ctx.mark_non_differentiable(gradient, stats, inverse)
    ctx.set_materialize_grads(False)
    ctx.numbers = classes, ignore_index, numbers
    ctx.gradient = gradient if with_gradient else None
    ctx.save_for_backward(*tensors, stats, inverse)


def _differentiate(ctx: Any, d_soft: Tensor | None, d_hard: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    """The first backward pass takes the gradient of the forward pass away; what comes later makes its own."""
    gradient, ctx.gradient = ctx.gradient, None
    incoming = (d_soft, d_hard, *ctx.saved_tensors, *ctx.numbers)
    if gradient is None or torch.is_grad_enabled():  # the latter asks for a second derivative, which is refused there
        gradient = _backward(*incoming)
    else:
        _correct(gradient, *incoming)
    return gradient, *[None] * 9


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def _check(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None,
    rows: Tensor | None,
    row_weights: Tensor | None,
    num_classes: int | None,
    ignore_index: int,
    form: str,
    *temperatures: float,
) -> None:
    check_floating("logits", student_logits, teacher_logits)
    for name, x in (("labels", labels), ("rows", rows), ("row_weights", row_weights)):
        if x is not None and not isinstance(x, Tensor):
            raise ValueError(f"{name}: {type(x).__name__} is given, pass a tensor")
    check_devices(student_logits, teacher_logits=teacher_logits, labels=labels, rows=rows, row_weights=row_weights)
    check_whole(num_classes=num_classes, ignore_index=ignore_index)
    if student_logits.dim() < 2 or student_logits.shape[:-1] != teacher_logits.shape[:-1]:
        raise ValueError(
            f"logits are {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}: pass (..., classes) for the "
            "same rows, and give student and teacher the same classes"
        )
    widths = {student_logits.shape[-1], teacher_logits.shape[-1]}
    if num_classes is None and len(widths) > 1:
        raise ValueError(
            f"logits are {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}: give student and teacher the "
            "same classes, or pass num_classes if what is beyond them is padding"
        )
    if num_classes is not None and not 0 < num_classes <= min(widths):
        raise ValueError(f"num_classes={num_classes}: must be from 1 to the narrower width, {min(widths)}")
    if 0 in widths:
        raise ValueError(f"logits are {tuple(student_logits.shape)}: there must be classes")
    for name, x in (("labels", labels), ("row_weights", row_weights)):
        if x is not None and x.shape != student_logits.shape[:-1]:
            raise ValueError(f"{name} are {tuple(x.shape)}: must be {tuple(student_logits.shape[:-1])}, one per row")
    for name, x in (("labels", labels), ("rows", rows)):
        if x is not None and x.dtype != torch.int64:
            remedy = "mask.flatten().nonzero()[:, 0]" if x.dtype == torch.bool else ".long()"
            raise ValueError(f"{name} are {x.dtype}: pass int64, with {remedy}")
    num_rows = student_logits.shape[:-1].numel()
    if rows is not None and (rows.dim() != 1 or len(rows) > num_rows):
        raise ValueError(f"rows are {tuple(rows.shape)}: pass (R,), each of the {num_rows} rows at most once")
    if form not in ("ce", "kl"):
        raise ValueError(f"form={form!r}: choose 'ce' or 'kl'")
    if row_weights is not None and row_weights.is_complex():
        raise ValueError(f"row_weights are {row_weights.dtype}: pass real numbers")
    for temperature in temperatures:
        check_temperature(temperature)
