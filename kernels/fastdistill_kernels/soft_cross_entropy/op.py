"""`soft_cross_entropy`: the public function and its custom ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..device import runs_in_triton
from .masked import weighted_means


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
) -> tuple[Tensor, Tensor]:
    """Cross-entropy with the teacher's softened distribution, and with the gold labels of the same rows.

    ``soft = mean over rows of -softmax(z_t / teacher_temperature) . log_softmax(z_s / temperature)`` and
    ``hard = mean over rows of -log_softmax(z_s)[label]``; the caller weighs the two.

    Args:
        student_logits: ``(..., C)``.
        teacher_logits: ``(..., C)``; a constant, it never receives gradients.
        labels: ``(...)`` int64 gold classes; a row labelled `ignore_index` takes part in neither mean.
        temperature: softens both distributions of the soft term.
        teacher_temperature: softens the teacher's instead, where it is to differ.
        form: "ce", or "kl" for KL(p_t || p_s), which has the same gradient and is 0 for equal logits.
        scale_by_temperature_squared: multiply the soft term by temperature^2 (by temperature * teacher_temperature
            where they differ), so that its gradient keeps its size.
        ignore_index: the label of rows to leave out.
        rows: ``(R,)`` int64, the rows (of all leading dimensions as one) that take part, each once; default all.
        row_weights: ``(...)``, weights of the rows in both means, which are divided by the sum of the weights.
        num_classes: classes that are real, where logits are padded to other widths; default the width of both.

    Returns:
        ``(soft, hard)``, each ``()`` float32 (float64 for float64 logits). Hard is 0 without labels; both are 0 where
        no row takes part.

    Raises:
        ValueError: logits, labels or weights of shapes that do not fit, an unknown form, or a temperature that is not
            positive.

    Source: Hinton et al. (arXiv 1503.02531), section 2; TinyBERT (arXiv 1909.10351), equation 10.
    """
    temperature_t = temperature if teacher_temperature is None else teacher_temperature
    _check(student_logits, teacher_logits, labels, row_weights, num_classes, form, temperature, temperature_t)
    classes = student_logits.shape[-1] if num_classes is None else num_classes
    factor = temperature * temperature_t if scale_by_temperature_squared else 1.0
    z_s, z_t = student_logits.flatten(0, -2), teacher_logits.flatten(0, -2)
    labels, rows, row_weights = (None if x is None else x.flatten() for x in (labels, rows, row_weights))
    numbers = (float(temperature), float(temperature_t), float(factor), ignore_index)
    if runs_in_triton(z_s):
        losses, _, _ = _forward(z_s, z_t, labels, rows, row_weights, classes, *numbers, form == "kl")
        return losses[0], losses[1]
    return weighted_means(z_s, z_t, labels, rows, row_weights, classes, *numbers, form == "kl")


@torch.library.custom_op("fastdistill::soft_cross_entropy", mutates_args=())
def _forward(
    z_s: Tensor,
    z_t: Tensor,
    labels: Tensor | None,
    rows: Tensor | None,
    row_weights: Tensor | None,
    classes: int,
    temperature_s: float,
    temperature_t: float,
    factor: float,
    ignore_index: int,
    kl: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """losses ``(2,)``, and what the backward pass needs of the rows: stats ``(2 or 3, R)``, inverse ``()``."""
    from . import kernel

    optional = (labels, rows, row_weights)
    return kernel.forward(z_s, z_t, *optional, classes, temperature_s, temperature_t, kl, factor, ignore_index)


@_forward.register_fake
def _(z_s: Tensor, z_t: Tensor, labels: Tensor | None, rows: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    num_rows = z_s.shape[0] if rows is None else rows.shape[0]
    stats = z_s.new_empty((2 if labels is None else 3, num_rows), dtype=torch.float32)
    return stats.new_empty(2), stats, stats.new_empty(())


@torch.library.custom_op("fastdistill::soft_cross_entropy_backward", mutates_args=())
def _backward(
    d_losses: Tensor,
    z_s: Tensor,
    z_t: Tensor,
    labels: Tensor | None,
    rows: Tensor | None,
    row_weights: Tensor | None,
    stats: Tensor,
    inverse: Tensor,
    classes: int,
    temperature_s: float,
    temperature_t: float,
    factor: float,
    ignore_index: int,
) -> Tensor:
    """The gradient for the student's logits."""
    from . import kernel

    saved = (z_s, z_t, labels, rows, row_weights, stats, inverse)
    return kernel.backward(
        d_losses[0], d_losses[1], *saved, classes, temperature_s, temperature_t, factor, ignore_index
    )


@_backward.register_fake
def _(d_losses: Tensor, z_s: Tensor, *_: Any) -> Tensor:
    return z_s.new_empty(z_s.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, classes, temperature_s, temperature_t, factor, ignore_index, _ = inputs
    _, stats, inverse = output
    ctx.mark_non_differentiable(stats, inverse)
    ctx.set_materialize_grads(False)
    ctx.numbers = (classes, temperature_s, temperature_t, factor, ignore_index)
    ctx.save_for_backward(*tensors, stats, inverse)


def _differentiate(ctx: Any, d_losses: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    return _backward(d_losses, *ctx.saved_tensors, *ctx.numbers), *[None] * 10


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def _check(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None,
    row_weights: Tensor | None,
    num_classes: int | None,
    form: str,
    *temperatures: float,
) -> None:
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
    for name, x in (("labels", labels), ("row_weights", row_weights)):
        if x is not None and x.shape != student_logits.shape[:-1]:
            raise ValueError(f"{name} are {tuple(x.shape)}: must be {tuple(student_logits.shape[:-1])}, one per row")
    if form not in ("ce", "kl"):
        raise ValueError(f"form={form!r}: choose 'ce' or 'kl'")
    for temperature in temperatures:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: must be positive")
