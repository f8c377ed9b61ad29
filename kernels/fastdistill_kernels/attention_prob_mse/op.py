"""`attention_prob_mse`: the public function, its custom op and its tile."""

from __future__ import annotations

from torch import Tensor

from ..attention.op import PROB_MSE, attention_loss, define_attention_op
from ..attention.packed import Layers
from ..attention.tiled import by_tiles


def attention_prob_mse(
    q_s: Layers,
    k_s: Layers,
    q_t: Layers,
    k_t: Layers,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    temperature: float = 1.0,
    scale_s: float | None = None,
    scale_t: float | None = None,
    normalize: str = "tokens",
) -> Tensor:
    """Mean squared difference of the attention probabilities of student and teacher, in O(T) memory.

    ``mean over (b, h, i, j) of (P_s - P_t)^2``, ``P = softmax over j of (scale / temperature * q . k)``.

    Args:
        q_s, k_s: student, ``(T, heads, d_s)``, any strides, float16, bfloat16, float32 or float64;
            or a sequence of such tensors, one per layer, all alike: the result is the sum of the layers' losses.
        q_t, k_t: teacher, ``(T, heads, d_t)``; a constant, it never receives gradients.
        cu_seqlens: ``(B + 1,)`` int32, cumulative lengths of the sequences, rising from 0 to T. Others are refused on a
            CPU, and make the loss NaN on a GPU, where less than T is allowed at the end: a batch filled up.
        max_seqlen: the longest length; for "padded" the length that all are padded to, which may be more. Too short
            a one is refused on a CPU, and makes the loss NaN on a GPU, which would have to be waited for.
        temperature: divides the scores of both sides; the loss is not multiplied by its square.
        scale_s, scale_t: factor of the scores; default ``1 / sqrt(head_dim)`` of its side.
        normalize: "tokens" divides by the real entries, ``heads * sum n_b^2``; "padded" by
            ``heads * B * max_seqlen^2``, a mean over padded maps with masked rows and columns at 0.

    Returns:
        ``()`` float32 (float64 for float64 operands), 0 for an empty batch. Autocast does not lower its arithmetic.

    Raises:
        ValueError: operands of different tokens, heads, dtypes or devices, a layout that does not fit them, or a
            temperature outside 1e-6 to 1e6; on a GPU also heads of more than 256.

    Source: TinyBERT (arXiv 1909.10351), section 3.1, where it is the alternative to raw scores.
    """
    return attention_loss(_OP, q_s, k_s, q_t, k_t, cu_seqlens, max_seqlen, scale_s, scale_t, normalize, temperature)


def _tile(scores_s: Tensor, scores_t: Tensor, with_grads: bool) -> tuple[Tensor, Tensor]:
    probs_s = scores_s.softmax(-1)
    error = probs_s - scores_t.softmax(-1)
    loss = error.square().sum()
    if not with_grads:
        return loss, error
    # the softmax's backward, 2 P_s (E - sum_j E P_s): a row's error has a part that no score can change
    weighted = error.mul_(probs_s)
    return loss, weighted.sub_(probs_s * weighted.sum(-1, keepdim=True)).mul_(2)


_OP = define_attention_op("attention_prob_mse", PROB_MSE, {"tiled": by_tiles(_tile)})
