"""`attention_score_mse`: the public function, its custom op and its tile."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.op import SCORE_MSE, attention_loss, define_attention_op
from ..attention.packed import Layers, as_layers, check_cu_seqlens
from ..attention.tiled import Maps, MapsLoss, by_tiles
from ..checks import check_floating
from ..device import runs_in_triton
from .joined import WIDEST, columns_together, differences, gram, gram_pays


def attention_score_mse(
    q_s: Layers,
    k_s: Layers,
    q_t: Layers,
    k_t: Layers,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale_s: float | None = None,
    scale_t: float | None = None,
    normalize: str = "tokens",
    algorithm: str = "auto",
) -> Tensor:
    """Mean squared difference of the raw attention scores of student and teacher, in O(T) memory.

    ``mean over (b, h, i, j) of (scale_s q_s . k_s - scale_t q_t . k_t)^2``, before softmax.

    Args:
        q_s, k_s: student, ``(T, heads, d_s)``, any strides, float16, bfloat16, float32 or float64;
            or a sequence of such tensors, one per layer, all alike: the result is the sum of the layers' losses.
        q_t, k_t: teacher, ``(T, heads, d_t)``; a constant, it never receives gradients.
        cu_seqlens: ``(B + 1,)`` int32, cumulative lengths of the sequences, rising from 0 to T. Others are refused on a
            CPU, and make the loss NaN on a GPU, where less than T is allowed at the end: a batch filled up.
        max_seqlen: the longest length; for "padded" the length that all are padded to, which may be more. Too short
            a one is refused on a CPU, and makes the loss NaN on a GPU, which would have to be waited for.
        scale_s, scale_t: factor of the scores; default ``1 / sqrt(head_dim)`` of its side.
        normalize: "tokens" divides by the real entries, ``heads * sum n_b^2``; "padded" by
            ``heads * B * max_seqlen^2``, a mean over padded maps with masked rows and columns at 0. TinyBERT's code
            also adds what its pad queries hold: for that pass padded operands, B sequences of max_seqlen tokens, whose
            keys are 0 where there is padding.
        algorithm: "tiled" works on tiles of scores; "gram" on Gram matrices of the operands, which is linear in the
            length and forms no score, but cancels where student and teacher all but agree; "auto" takes the
            faster, and torch.compile makes a program for each.

    Returns:
        ``()`` float32 (float64 for float64 operands), 0 for an empty batch. Autocast does not lower its arithmetic.

    Raises:
        ValueError: operands of different tokens, heads, dtypes or devices, or a layout that does not fit them; on a
            GPU also heads of more than 256, and for "gram" of more than 256 in student and teacher together.

    Source: TinyBERT (arXiv 1909.10351), equation 7.
    """
    if algorithm not in ("auto", "tiled", "gram"):
        raise ValueError(f"algorithm={algorithm!r}: choose 'auto', 'tiled' or 'gram'")
    check_cu_seqlens(cu_seqlens)
    layers = as_layers(q_s), as_layers(k_s), as_layers(q_t), as_layers(k_t)  # once: each may be a generator
    check_floating("student operands", *layers[0])
    if algorithm == "auto" and all(map(runs_in_triton, layers[0][:1])):
        pays = _gram_pays_on_a_gpu(layers[0], layers[2], cu_seqlens, max_seqlen)
        algorithm = "gram" if pays else "tiled"
    return attention_loss(_OP, *layers, cu_seqlens, max_seqlen, scale_s, scale_t, normalize, algorithm=algorithm)


def _gram_pays_on_a_gpu(q_s: list[Tensor], q_t: list[Tensor], cu_seqlens: Tensor, max_seqlen: int) -> bool:
    """Where the host knows the longest length alone: Gram matrices are made for maps of that length.

    Of bf16 operands alone: others, rounding inside large sums that cancel would leave less exact than tiles are. Nor of
    heads too wide for it.
    """
    if not (q_s and q_t and q_s[0].dim() == q_t[0].dim() == 3):  # refused later, with words
        return False
    few_gaps = (cu_seqlens.numel() - 1) * max_seqlen <= 4 * q_s[0].shape[0]
    in_bf16 = {q_s[0].dtype, q_t[0].dtype} == {torch.bfloat16}
    d_s, d_t = q_s[0].shape[2], q_t[0].shape[2]
    return few_gaps and in_bf16 and columns_together(d_s, d_t) <= WIDEST and gram_pays(max_seqlen, d_s, d_t)


def _tile(scores_s: Tensor, scores_t: Tensor, with_grads: bool) -> tuple[Tensor, Tensor]:
    error = scores_s.sub_(scores_t)
    loss = error.square().sum()
    return loss, error.mul_(2) if with_grads else error


def _auto(maps: Maps, scale_s: float, scale_t: float, with_grads: bool) -> tuple[Tensor, Tensor, Tensor]:
    q_s, _, q_t, *_ = maps
    n, d_s, d_t = q_s.shape[1], q_s.shape[2], q_t.shape[2]
    in_bf16 = {q_s.dtype, q_t.dtype} == {torch.bfloat16} and abs(scale_s) < 1e6 * abs(scale_t)  # which will divide
    pays = gram_pays(n / 2, d_s, d_t)  # the Gram matrices run at half the rate of differences, or less
    chosen: MapsLoss = gram if pays else differences if in_bf16 and n >= 64 else _by_tiles
    return chosen(maps._replace(real=None), scale_s, scale_t, with_grads)  # zeros add nothing


_by_tiles = by_tiles(_tile)
_OP = define_attention_op("attention_score_mse", SCORE_MSE, {"auto": _auto, "tiled": _by_tiles, "gram": gram})
