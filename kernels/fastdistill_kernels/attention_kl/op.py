"""`attention_kl`: the public function, its custom op and its tile."""

from __future__ import annotations

from torch import Tensor

from ..attention.op import KL, attention_loss, define_attention_op
from ..attention.packed import Layers, as_layers
from ..attention.tiled import by_tiles
from .relation_heads import split_heads


def attention_kl(
    a_s: Layers,
    b_s: Layers,
    a_t: Layers,
    b_t: Layers,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    num_relation_heads: int | None = None,
    temperature: float = 1.0,
    scale_s: float | None = None,
    scale_t: float | None = None,
    normalize: str = "tokens",
) -> Tensor:
    """Mean KL divergence between the relation rows of teacher and student, in O(T) memory.

    ``mean over (b, h, i) of KL(P_t || P_s)``, ``P = softmax over j of (scale / temperature * a . b)``. Operands are any
    pair of one side's q, k, v: (q, k) is attention, (v, v) the value relation; both may be the same tensor.

    Args:
        a_s, b_s: student, ``(T, heads, d_s)``, any strides, float16, bfloat16, float32 or float64;
            or a sequence of such tensors, one per layer, all alike: the result is the sum of the layers' losses.
        a_t, b_t: teacher, ``(T, heads, d_t)``; a constant, it never receives gradients.
        cu_seqlens: ``(B + 1,)`` int32, cumulative lengths of the sequences, rising from 0 to T. Others are refused on a
            CPU, and make the loss NaN on a GPU, where less than T is allowed at the end: a batch filled up.
        max_seqlen: the longest length; for "padded" the length that all are padded to, which may be more. Too short
            a one is refused on a CPU, and makes the loss NaN on a GPU, which would have to be waited for.
        num_relation_heads: re-split both sides into this many heads, ``(T, R, heads * d / R)``; head counts may then
            differ. Default: compare head by head.
        temperature: divides the scores of both sides; the loss is not multiplied by its square.
        scale_s, scale_t: factor of the scores; default ``1 / sqrt(head_dim)`` of its side, after the re-split.
        normalize: "tokens" divides by the real rows, ``heads * sum n_b``; "padded" by ``heads * B * max_seqlen``.

    Returns:
        ``()`` float32 (float64 for float64 operands), 0 for an empty batch. Autocast does not lower its arithmetic.

    Raises:
        ValueError: operands of different tokens, heads, dtypes or devices, a layout that does not fit them, relation
            heads that do not divide a hidden size, or a temperature outside 1e-6 to 1e6; on a GPU also heads of
            more than 256.

    Source: MiniLM (arXiv 2002.10957), sections 3.1 and 3.2; MiniLMv2 (arXiv 2012.15828), section 3.1.
    """
    a_s, b_s, a_t, b_t = ([split_heads(x, num_relation_heads) for x in as_layers(y)] for y in (a_s, b_s, a_t, b_t))
    return attention_loss(_OP, a_s, b_s, a_t, b_t, cu_seqlens, max_seqlen, scale_s, scale_t, normalize, temperature)


def _tile(scores_s: Tensor, scores_t: Tensor, with_grads: bool) -> tuple[Tensor, Tensor]:
    log_probs_s, log_probs_t = scores_s.log_softmax(-1), scores_t.log_softmax(-1)
    probs_t = log_probs_t.exp()
    loss = log_probs_t.sub_(log_probs_s).mul_(probs_t).sum()
    return loss, log_probs_s.exp_().sub_(probs_t) if with_grads else log_probs_s


_OP = define_attention_op("attention_kl", KL, {"tiled": by_tiles(_tile)})
