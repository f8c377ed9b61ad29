"""The squared difference of attention probabilities where rows of scores stay in registers: keys are read once."""

from __future__ import annotations

import triton
import triton.language as tl

from ..shared.kernel import LOG2E, load_rows, map_of, operands, product


@triton.jit
def _scores(
    own, other, scale, stride_own, stride_other, rows, length, end,
    D: tl.constexpr, BLOCK_D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """(tiles ``[M, N]`` of the scores of `rows`, -inf past the `length`, and the largest of each row).

    No product is made from key `end` on. Rows are loaded for each tile, lest they take registers from the scores.
    """
    tiles = ()
    top = tl.full([M], float("-inf"), tl.float32)
    for n in tl.static_range(KEYS // N):
        scores = tl.full([M, N], float("-inf"), tl.float32)
        if n * N < end:
            columns = n * N + tl.arange(0, N)
            x = load_rows(own, stride_own, rows, length, D, BLOCK_D)
            y = load_rows(other, stride_other, columns, length, D, BLOCK_D)
            scores = tl.where((columns < length)[None, :], scale * product(x, y, PRECISION), float("-inf"))
            top = tl.maximum(top, tl.max(scores, axis=1))
        tiles = tiles + (scores,)
    return tiles, top


@triton.jit(do_not_specialize=["num_tokens", "blocks"])
def whole_rows_kernel(
    a_s, b_s, a_t, b_t, cu_seqlens, partial, stats,
    num_tokens, blocks, scale_s, scale_t,
    stride_as, stride_bs, stride_at, stride_bt, head_as, head_bs, head_at, head_bt,
    L: tl.constexpr, H: tl.constexpr, D_S: tl.constexpr, D_T: tl.constexpr,
    BLOCK_DS: tl.constexpr, BLOCK_DT: tl.constexpr, M: tl.constexpr, N: tl.constexpr, KEYS: tl.constexpr,
    PRECISION_S: tl.constexpr, PRECISION_T: tl.constexpr, A_S: tl.constexpr, A_T: tl.constexpr,
):  # fmt: skip
    """What `forward_kernel` makes of PROB_MSE, of sequences of at most KEYS tokens, a multiple of N."""
    program = tl.program_id(0)
    block, head, layer, start, length = map_of(program, cu_seqlens, num_tokens, blocks, L, H)
    own_s, other_s, stride_as, stride_bs = operands(
        a_s, b_s, layer, head, start, stride_as, stride_bs, head_as, head_bs, L, A_S
    )
    own_t, other_t, stride_at, stride_bt = operands(
        a_t, b_t, layer, head, start, stride_at, stride_bt, head_at, head_bt, L, A_T
    )
    scale_s, scale_t = scale_s * LOG2E, scale_t * LOG2E
    rows = block * M + tl.arange(0, M)
    end = tl.where(block * M < length, length, 0)

    scores_s, top_s = _scores(
        own_s, other_s, scale_s, stride_as, stride_bs, rows, length, end, D_S, BLOCK_DS, M, N, KEYS, PRECISION_S
    )
    scores_t, top_t = _scores(
        own_t, other_t, scale_t, stride_at, stride_bt, rows, length, end, D_T, BLOCK_DT, M, N, KEYS, PRECISION_T
    )

    sum_s, sum_t = tl.zeros([M], tl.float32), tl.zeros([M], tl.float32)
    weights_s, weights_t = (), ()
    for n in tl.static_range(KEYS // N):
        w_s, w_t = tl.zeros([M, N], tl.float32), tl.zeros([M, N], tl.float32)
        if n * N < end:
            w_s, w_t = tl.exp2(scores_s[n] - top_s[:, None]), tl.exp2(scores_t[n] - top_t[:, None])
            sum_s, sum_t = sum_s + tl.sum(w_s, axis=1), sum_t + tl.sum(w_t, axis=1)
        weights_s, weights_t = weights_s + (w_s,), weights_t + (w_t,)

    loss, delta = tl.zeros([M], tl.float32), tl.zeros([M], tl.float32)
    # of an empty block nothing is kept, but the interpreter minds a division by 0
    inverse_s, inverse_t = 1.0 / tl.where(end > 0, sum_s, 1.0), 1.0 / tl.where(end > 0, sum_t, 1.0)
    for n in tl.static_range(KEYS // N):
        if n * N < end:
            p_s = weights_s[n] * inverse_s[:, None]
            error = p_s - weights_t[n] * inverse_t[:, None]
            loss += tl.sum(error * error, axis=1)
            delta += 2 * tl.sum(p_s * error, axis=1)

    real = rows < length
    at = stats + (layer * H + head).to(tl.int64) * num_tokens + start + rows
    plane = num_tokens.to(tl.int64) * (L * H)
    tl.store(at, top_s, mask=real)
    tl.store(at + plane, inverse_s, mask=real)
    tl.store(at + 2 * plane, top_t, mask=real)
    tl.store(at + 3 * plane, inverse_t, mask=real)
    tl.store(at + 4 * plane, delta, mask=real)
    tl.store(partial + program, tl.sum(loss, axis=0))  # rows past the end have the same scores on both sides
