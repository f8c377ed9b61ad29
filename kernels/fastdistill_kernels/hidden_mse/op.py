"""`hidden_mse`: the public function and its custom ops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.packed import Layers, as_layers, check_cu_seqlens, check_normalize, sequence_lengths
from ..checks import check_devices, check_floating, check_whole
from ..device import runs_in_triton

DISTANCES = ("squared", "normalized", "cosine")


def hidden_mse(
    h_s: Layers,
    h_t: Layers,
    weight: Layers | None = None,
    bias: Layers | None = None,
    *,
    distance: str = "squared",
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    normalize: str = "tokens",
) -> Tensor:
    """Mean distance of projected student states and teacher states.

    ``mean of (h_s W^T + b - h_t)^2``, or a distance of directions. The projection multiplies in the dtype of `h_s`, or
    in autocast's. On a CPU its result is rounded to that; Triton's is not (and is made in float32 for directions of
    float16), so that what overflows float16 here is finite there. It is compared and summed in float32.

    Args:
        h_s: student states, ``(T, D_s)``; or a sequence of such tensors, one per layer, all alike: the result is the
            sum of the layers' losses.
        h_t: teacher states, ``(T, D_t)``, as many; a constant, it never receives gradients.
        weight, bias: the projection as in `torch.nn.Linear`, ``(D_t, D_s)`` and ``(D_t,)``: one for all layers, or a
            sequence with one for each; None for equal sizes.
        distance: "squared"; or, of rows p of projected and t of teacher states, "normalized" for
            ``mean of |p / |p| - t / |t||^2`` and "cosine" for ``mean of 1 - cos(p, t)``, means over rows, for which a
            row of zeros stays zero; in float32 so may one shorter than 1e-18, and one longer than 1e19 is NaN.
        cu_seqlens, max_seqlen: the packed layout, ``(B + 1,)`` int32 and the length that all sequences are padded to;
            for "padded" only. Lengths that are not those of the states are refused on a CPU; a GPU, which would have
            to be waited for, notices only that they are too few.
        normalize: "tokens" divides by ``T * D_t`` (by T where directions are compared); "padded" puts
            ``B * max_seqlen`` for T, the mean that TinyBERT's code would take over padded states if their pad rows were
            equal, which they are not.

    Returns:
        ``()`` float32 (float64 for float64 states), 0 for an empty batch.

    Raises:
        ValueError: states or a projection whose shapes, dtypes or devices do not fit, an unknown distance, or "padded"
            without the layout, or with one that cannot be that of the states.

    Source: TinyBERT (arXiv 1909.10351), equations 8 and 9; Patient-KD (arXiv 1908.09355), section 3.2; DistilBERT
        (arXiv 1910.01108), section 2.
    """
    states, targets = as_layers(h_s), as_layers(h_t)
    weights, biases = ([] if x is None else as_layers(x) for x in (weight, bias))
    _check(states, targets, weights, biases)
    targets = [x.detach() for x in targets]
    check_normalize(normalize)
    if distance not in DISTANCES:
        raise ValueError(f"distance={distance!r}: choose one of {', '.join(DISTANCES)}")
    num_rows, device = states[0].shape[0], states[0].device.type
    if normalize == "padded":
        if cu_seqlens is None or max_seqlen is None:
            raise ValueError("normalize='padded' counts padded rows: pass cu_seqlens and max_seqlen")
        check_cu_seqlens(cu_seqlens)
        check_whole(max_seqlen=max_seqlen)
        if states[0].device.type == "cpu" and not torch.compiler.is_compiling():
            sequence_lengths(cu_seqlens, num_rows, max_seqlen)
        if (cu_seqlens.numel() - 1) * max_seqlen < num_rows:
            raise ValueError(
                f"{cu_seqlens.numel() - 1} sequences of max_seqlen={max_seqlen} have no room for {num_rows} tokens: "
                "pass the length that all are padded to"
            )
        num_rows = (cu_seqlens.numel() - 1) * max_seqlen
    num_entries = max(1, num_rows * (targets[0].shape[-1] if distance == "squared" else 1))
    if runs_in_triton(states[0]):
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states[0].dtype
        if not weights or (distance != "squared" and dtype == torch.float16):
            dtype = torch.float32  # nothing is rounded before the gradient itself; 1 / |p| may be too much for float16
        with_grads = torch.is_grad_enabled() and any(x.requires_grad for x in (*states, *weights, *biases))
        loss: Tensor
        loss, _ = _forward(states, targets, weights, biases, num_entries, distance, dtype, with_grads)
        return loss
    losses = []
    for layer, (x, y) in enumerate(zip(states, targets, strict=True)):
        if weights:
            x = F.linear(x, *(p[layer if len(p) > 1 else 0].to(x.dtype) for p in (weights, biases) if p))
        losses.append(_sum_of_distances(x, y, distance))
    return torch.stack(losses).sum() / num_entries


def _sum_of_distances(p: Tensor, t: Tensor, distance: str) -> Tensor:
    dtype = torch.promote_types(p.dtype, torch.float32)
    p, t = p.to(dtype), t.to(dtype)
    if distance == "squared":
        return F.mse_loss(p, t, reduction="sum")
    p, t = _direction(p), _direction(t)
    return (p - t).square().sum() if distance == "normalized" else (1 - (p * t).sum(-1)).sum()


def _direction(x: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays zero, one whose squares overflow is NaN."""
    length = x.norm(dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0).masked_fill(length == math.inf, math.nan)


@torch.library.custom_op("fastdistill::hidden_mse", mutates_args=())
def _forward(
    h_s: Sequence[Tensor],
    h_t: Sequence[Tensor],
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    num_entries: int,
    distance: str,
    dtype: torch.dtype,
    with_grads: bool,
) -> tuple[Tensor, Tensor]:
    """The loss and, for the backward pass, d_p ``(L, T, D_t)`` in `dtype`; see the kernel."""
    from . import kernel

    with torch.cuda.device_of(h_s[0]):
        return kernel.forward(list(h_s), list(h_t), list(weight), list(bias), num_entries, distance, dtype, with_grads)


@_forward.register_fake
def _(
    h_s: Sequence[Tensor],
    h_t: Sequence[Tensor],
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    num_entries: int,
    distance: str,
    dtype: torch.dtype,
    with_grads: bool,
) -> tuple[Tensor, Tensor]:
    d_p = h_t[0].new_empty((len(h_t), *h_t[0].shape) if with_grads else (0,), dtype=dtype)
    return h_s[0].new_empty((), dtype=torch.float32), d_p


@torch.library.custom_op("fastdistill::hidden_mse_backward", mutates_args=())
def _backward(
    d_loss: Tensor, h_s: Sequence[Tensor], weight: Sequence[Tensor], d_p: Tensor, num_entries: int
) -> tuple[Tensor, Tensor]:
    """Gradients of all states ``(L, T, D_s)``, and of weights and biases, flat, ``(G, D_t (D_s + 1))`` float32."""
    from . import kernel

    with torch.cuda.device_of(h_s[0]):
        return kernel.backward(d_loss, list(h_s), list(weight), d_p, num_entries)


@_backward.register_fake
def _(
    d_loss: Tensor, h_s: Sequence[Tensor], weight: Sequence[Tensor], d_p: Tensor, num_entries: int
) -> tuple[Tensor, Tensor]:
    G, D_T, D_S = len(weight), d_p.shape[-1], h_s[0].shape[-1]
    dh = h_s[0].new_empty((len(h_s), *h_s[0].shape))
    return dh, d_loss.new_empty((G, D_T * (D_S + 1)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    h_s, _, weight, bias, ctx.num_entries, *_ = inputs
    _, d_p = output
    ctx.mark_non_differentiable(d_p)
    ctx.set_materialize_grads(False)
    ctx.sizes = len(h_s), len(weight), len(bias)
    ctx.dtypes = [x[0].dtype if x else None for x in (weight, bias)]
    ctx.save_for_backward(*h_s, *weight, d_p)


def _differentiate(ctx: Any, d_loss: Tensor, _: None) -> tuple[Any, ...]:
    num_layers, num_weights, num_biases = ctx.sizes
    *tensors, d_p = ctx.saved_tensors
    dh, flat = _backward(d_loss, tensors[:num_layers], tensors[num_layers:], d_p, ctx.num_entries)
    D_T, D_S = d_p.shape[-1], dh.shape[-1]
    dw, db = flat[:, : D_T * D_S].unflatten(1, (D_T, D_S)), flat[:, D_T * D_S :]
    weights = list(dw.to(ctx.dtypes[0]).unbind()) if num_weights else []
    biases = list(db.to(ctx.dtypes[1]).unbind()) if num_biases else []
    return list(dh.unbind()), [None] * num_layers, weights, biases, *[None] * 4


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def _check(h_s: list[Tensor], h_t: list[Tensor], weight: list[Tensor], bias: list[Tensor]) -> None:
    if len(h_s) != len(h_t) or not h_s:
        raise ValueError(f"{len(h_s)} student and {len(h_t)} teacher layers: pass as many of each, at least one")
    check_floating("states", *h_s, *h_t)
    check_floating("weight and bias", *weight, *bias)
    for x, y in zip(h_s, h_t, strict=True):
        check_devices(h_s[0], states=x, targets=y)
        if x.dim() != 2 or y.dim() != 2 or x.shape[0] != y.shape[0]:
            raise ValueError(
                f"states are {tuple(x.shape)} and {tuple(y.shape)}: pass (tokens, size), the same tokens on both sides"
            )
        for side, first, other in (("student", h_s[0], x), ("teacher", h_t[0], y)):
            if (first.shape, first.dtype) != (other.shape, other.dtype):
                raise ValueError(
                    f"{side} layers are {tuple(first.shape)} {first.dtype} and {tuple(other.shape)} {other.dtype}: all "
                    "layers must be alike"
                )
    size_s, size_t = h_s[0].shape[1], h_t[0].shape[1]
    if not weight and (size_s != size_t or bias):
        raise ValueError(f"student size {size_s}, teacher size {size_t}: pass weight ({size_t}, {size_s}), then bias")
    for name, found in (("weights", weight), ("biases", bias)):
        if len(found) not in (0, 1, len(h_s)) or (bias and len(weight) != len(bias)):
            raise ValueError(f"{len(found)} {name} for {len(h_s)} layers: pass one, or one for each layer")
    if 0 in (size_s, size_t):
        raise ValueError(f"student size {size_s}, teacher size {size_t}: states must have components")
    for parameter in (*weight, *bias):
        check_devices(h_s[0], parameter=parameter)
    for name, parameters in (("weights", weight), ("biases", bias)):
        if len({x.dtype for x in parameters}) > 1:
            raise ValueError(f"{name} are {' and '.join(str(x.dtype) for x in parameters)}: give all one dtype")
    for w in weight:
        if w.shape != (size_t, size_s):
            raise ValueError(f"weight is {tuple(w.shape)}: torch.nn.Linear's layout here is ({size_t}, {size_s})")
    for b in bias:
        if b.shape != (size_t,):
            raise ValueError(f"bias is {tuple(b.shape)}: must be ({size_t},)")
