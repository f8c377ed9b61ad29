"""`hidden_mse` in Triton: the student's states are projected and compared in registers.

What reaches memory is d_p ``(L, T, D_T)``, in the dtype of the products, float32 where there are none: half the
gradient of the summed distances for the projected states ``p = h_s W^T + b``, which is ``p - h_t`` for the squared one.
From it the backward pass takes the gradients for states, W and b. Layers share one weight, or have one each. Directions
are compared a whole row at a time, so that p goes to memory first, into the place of d_p.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.kernel import divisor, finish, for_product, known, pick, precision, room, rounded, store


@triton.jit(do_not_specialize=["num_tokens"])
def forward_kernel(
    h_s, h_t, weight, bias, d_p, partial, num_tokens, stride_s, stride_t,
    L: tl.constexpr, SHARED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    KEEP: tl.constexpr, PROJECT_ONLY: tl.constexpr,
    D_S: tl.constexpr, D_T: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
    A: tl.constexpr,
):  # fmt: skip
    """partial ``(programs,)``: sums of squares of M rows and N columns; d_p if KEEP, or p with PROJECT_ONLY."""
    program = tl.program_id(0)
    stride_s, stride_t = known(stride_s, A), known(stride_t, A)
    column_blocks: tl.constexpr = (D_T + N - 1) // N
    row_blocks = tl.cdiv(num_tokens, M)
    layer = program // (column_blocks * row_blocks)
    rows = program // column_blocks % row_blocks * M + tl.arange(0, M)
    columns = program % column_blocks * N + tl.arange(0, N)
    row, there = rows.to(tl.int64)[:, None], (rows < num_tokens)[:, None]
    real = there & (columns < D_T)[None, :]
    states, target = pick(h_s, layer, L), pick(h_t, layer, L)
    dtype = d_p.dtype.element_ty

    if HAS_WEIGHT:
        matrix = weight[0] if SHARED else pick(weight, layer, L)
        projected = tl.zeros([M, N], tl.float32)
        for first in range(0, D_S, K):
            inner = first + tl.arange(0, K)
            x = tl.load(states + row * stride_s + inner[None, :], mask=there & (inner < D_S)[None, :], other=0.0)
            w = tl.load(
                matrix + columns[None, :] * D_S + inner[:, None],
                mask=(columns < D_T)[None, :] & (inner < D_S)[:, None], other=0.0,
            )  # fmt: skip
            x, w = for_product(rounded(x, dtype)), for_product(rounded(w, dtype))
            projected = tl.dot(x, w, projected, input_precision=PRECISION)
        if HAS_BIAS:
            vector = bias[0] if SHARED else pick(bias, layer, L)
            projected += tl.load(vector + columns, mask=columns < D_T, other=0.0).to(tl.float32)[None, :]
    else:
        projected = tl.load(states + row * stride_s + columns[None, :], mask=real, other=0.0).to(tl.float32)

    at = d_p + (layer.to(tl.int64) * num_tokens + row) * D_T + columns[None, :]
    if PROJECT_ONLY:
        store(at, projected, mask=real)
    else:
        d = projected - tl.load(target + row * stride_t + columns[None, :], mask=real, other=0.0).to(tl.float32)
        d = tl.where(real, d, 0.0)
        tl.store(partial + program, tl.sum(d * d))
        if KEEP:
            store(at, d, mask=real)


@triton.jit
def _direction(x):
    """(x, 1 / lengths of its rows): rows ``(M, D)`` brought to length 1, rows of zeros left alone."""
    length = tl.sqrt(tl.sum(x * x, axis=1))
    inverse = 1.0 / tl.where(length > 0, length, 1.0)
    return x * inverse[:, None], inverse


@triton.jit(do_not_specialize=["num_tokens"])
def directions_kernel(
    h_s, h_t, d_p, partial, num_tokens, stride_s, stride_t,
    L: tl.constexpr, HAS_WEIGHT: tl.constexpr, COSINE: tl.constexpr, KEEP: tl.constexpr,
    D_T: tl.constexpr, BLOCK_D: tl.constexpr, M: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """partial ``(programs,)``: sums of distances of the directions of M rows; if KEEP d_p, in the place of p."""
    program = tl.program_id(0)
    stride_s, stride_t = known(stride_s, A), known(stride_t, A)
    row_blocks = tl.cdiv(num_tokens, M)
    layer = program // row_blocks
    rows, columns = program % row_blocks * M + tl.arange(0, M), tl.arange(0, BLOCK_D)
    row, real = rows.to(tl.int64)[:, None], (rows < num_tokens)[:, None] & (columns < D_T)[None, :]
    at = d_p + (layer.to(tl.int64) * num_tokens + row) * D_T + columns[None, :]
    source = at if HAS_WEIGHT else pick(h_s, layer, L) + row * stride_s + columns[None, :]
    p = tl.load(source, mask=real, other=0.0).to(tl.float32)
    target = pick(h_t, layer, L) + row * stride_t + columns[None, :]
    t = tl.load(target, mask=real, other=0.0).to(tl.float32)
    p, inverse = _direction(p)
    t, _ = _direction(t)
    cosine = tl.sum(p * t, axis=1)
    distance = 1.0 - cosine if COSINE else tl.sum((p - t) * (p - t), axis=1)
    tl.store(partial + program, tl.sum(tl.where(rows < num_tokens, distance, 0.0), axis=0))
    if KEEP:
        d = (cosine[:, None] * p - t) * inverse[:, None]
        store(at, 0.5 * d if COSINE else d, mask=real)


@triton.jit(do_not_specialize=["num_tokens", "coefficient"])
def states_gradient_kernel(
    d_p, weight, d_loss, out, num_tokens, coefficient,
    L: tl.constexpr, SHARED: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    D_S: tl.constexpr, D_T: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out ``(L, T, D_S)`` = ``d_loss coefficient d_p W``."""
    program = tl.program_id(0)
    column_blocks: tl.constexpr = (D_S + N - 1) // N
    row_blocks = tl.cdiv(num_tokens, M)
    layer = program // (column_blocks * row_blocks)
    rows = program // column_blocks % row_blocks * M + tl.arange(0, M)
    columns = program % column_blocks * N + tl.arange(0, N)
    row, there = (layer.to(tl.int64) * num_tokens + rows)[:, None], (rows < num_tokens)[:, None]
    dtype = d_p.dtype.element_ty
    if HAS_WEIGHT:
        matrix = weight[0] if SHARED else pick(weight, layer, L)
        total = tl.zeros([M, N], tl.float32)
        for first in range(0, D_T, K):
            inner = first + tl.arange(0, K)
            d = tl.load(d_p + row * D_T + inner[None, :], mask=there & (inner < D_T)[None, :], other=0.0)
            w = tl.load(
                matrix + inner[:, None] * D_S + columns[None, :],
                mask=(inner < D_T)[:, None] & (columns < D_S)[None, :], other=0.0,
            )  # fmt: skip
            total = tl.dot(for_product(d), for_product(rounded(w, dtype)), total, input_precision=PRECISION)
    else:
        at = d_p + row * D_T + columns[None, :]
        total = tl.load(at, mask=there & (columns < D_T)[None, :], other=0.0).to(tl.float32)
    total *= tl.load(d_loss) * coefficient
    store(out + row * D_S + columns[None, :], total, mask=there & (columns < D_S)[None, :])


@triton.jit(do_not_specialize=["num_tokens", "tokens_each"])
def weight_gradient_kernel(
    d_p, h_s, partial, num_tokens, tokens_each, stride_s,
    L: tl.constexpr, SHARED: tl.constexpr, D_S: tl.constexpr, D_T: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """partial ``(splits, weights, D_T (D_S + 1))``: of some tokens ``d_p^T h_s``, then the sum of d_p."""
    stride_s = known(stride_s, A)
    blocks_s: tl.constexpr = (D_S + N - 1) // N
    tile, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    outs = tile // blocks_s * M + tl.arange(0, M)  # rows of W
    ins = tile % blocks_s * N + tl.arange(0, N)
    total, sums = tl.zeros([M, N], tl.float32), tl.zeros([M], tl.float32)
    last = tl.minimum(num_tokens, (split + 1) * tokens_each)
    for part in range(L if SHARED else 1):
        layer = part if SHARED else group
        states = pick(h_s, layer, L)
        for first in range(split * tokens_each, last, K):
            tokens = first + tl.arange(0, K)
            token, there = tokens.to(tl.int64), tokens < last
            at = d_p + (layer * num_tokens.to(tl.int64) + token)[:, None] * D_T + outs[None, :]
            d = tl.load(at, mask=there[:, None] & (outs < D_T)[None, :], other=0.0)
            x = tl.load(
                states + token[:, None] * stride_s + ins[None, :], mask=there[:, None] & (ins < D_S)[None, :], other=0.0
            )
            sums += tl.sum(d.to(tl.float32), axis=0)
            x = for_product(rounded(x, d_p.dtype.element_ty))
            total = tl.dot(tl.trans(for_product(d)), x, total, input_precision=PRECISION)
    to = partial + (split * tl.num_programs(1) + group).to(tl.int64) * (D_T * (D_S + 1))
    tl.store(to + outs[:, None] * D_S + ins[None, :], total, mask=(outs < D_T)[:, None] & (ins < D_S)[None, :])
    if tile % blocks_s == 0:
        tl.store(to + D_T * D_S + outs, sums, mask=outs < D_T)


@triton.jit(do_not_specialize=["coefficient"])
def reduce_kernel(partial, d_loss, out, splits, entries, coefficient, BLOCK: tl.constexpr):
    """out ``(entries,)``: the sum of partial ``(splits, entries)`` times ``d_loss coefficient``."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    at = partial + places
    for _ in range(splits):
        total += tl.load(at, mask=places < entries, other=0.0)
        at += entries
    tl.store(out + places, total * tl.load(d_loss) * coefficient, mask=places < entries)


TILES = {"M": 64, "N": 64, "K": 32, "num_warps": 4}
SPLITS = 8  # of the tokens, for the gradient of a weight: enough programs to fill a GPU with a small matrix


def forward(
    h_s: list[Tensor], h_t: list[Tensor], weight: list[Tensor], bias: list[Tensor],
    entries: int, distance: str, dtype: torch.dtype, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The loss ``()``, a sum of distances over `entries`, and d_p ``(L, T, D_T)`` in `dtype` if `keep`."""
    (num_tokens, D_S), D_T, L = h_s[0].shape, h_t[0].shape[1], len(h_s)
    loss, coefficient = room(h_s[0], num_tokens == 0)
    squared, nothing = distance == "squared", h_s[0].new_empty(0, dtype=dtype)
    d_p = h_s[0].new_empty((L, num_tokens, D_T), dtype=dtype) if keep or (weight and not squared) else nothing
    if num_tokens == 0:
        return loss, d_p if keep else nothing
    h_s, h_t = _alike(h_s), _alike(h_t)
    weight, bias = ([x.contiguous() for x in tensors] for tensors in (weight, bias))
    states = (tuple(h_s), tuple(h_t))
    layout = (num_tokens, h_s[0].stride(0), h_t[0].stride(0))
    A = divisor(h_s[0].stride(0), h_t[0].stride(0))
    common = {"L": L, "HAS_WEIGHT": bool(weight), "KEEP": keep, "D_T": D_T, "A": A}
    programs = triton.cdiv(num_tokens, TILES["M"]) * triton.cdiv(D_T, TILES["N"]) * L
    partial = loss.new_empty(programs)
    if squared or weight:
        forward_kernel[(programs,)](
            *states, tuple(weight) or (h_s[0],), tuple(bias) or (h_s[0],), d_p, partial, *layout, **common,
            SHARED=len(weight) < 2, HAS_BIAS=bool(bias), PROJECT_ONLY=not squared, D_S=D_S,
            PRECISION=precision(dtype), **TILES,
        )  # fmt: skip
    if not squared:
        rows = _rows(D_T)
        programs = triton.cdiv(num_tokens, rows["M"]) * L
        partial = loss.new_empty(programs)
        directions_kernel[(programs,)](*states, d_p, partial, *layout, **common, COSINE=distance == "cosine", **rows)
    finish(partial, loss, coefficient, entries)
    return loss, d_p if keep else nothing


def backward(
    d_loss: Tensor, h_s: list[Tensor], weight: list[Tensor], d_p: Tensor, entries: int
) -> tuple[Tensor, Tensor]:
    """Gradients of the states ``(L, T, D_S)``, and of G weights and biases, flat, ``(G, D_T (D_S + 1))`` float32."""
    like, L, D_T = h_s[0], len(h_s), d_p.shape[-1]
    num_tokens, D_S = like.shape
    G, coefficient = len(weight), 2.0 / entries
    dh = like.new_empty((L, num_tokens, D_S))
    new = like.new_empty if num_tokens > 0 else like.new_zeros
    flat = new((G, D_T * (D_S + 1)), dtype=torch.float32)
    if num_tokens > 0:
        h_s, weight = _alike(h_s), [w.contiguous() for w in weight]
        common = {"L": L, "SHARED": G < 2, "D_S": D_S, "D_T": D_T, "PRECISION": precision(d_p.dtype), **TILES}
        programs = triton.cdiv(num_tokens, TILES["M"]) * triton.cdiv(D_S, TILES["N"]) * L
        states_gradient_kernel[(programs,)](
            d_p, tuple(weight) or (like,), d_loss, dh, num_tokens, coefficient, HAS_WEIGHT=G > 0, **common
        )
        if G > 0:
            partial = flat.new_empty((SPLITS, *flat.shape))
            grid = (triton.cdiv(D_T, TILES["M"]) * triton.cdiv(D_S, TILES["N"]), G, SPLITS)
            weight_gradient_kernel[grid](
                d_p,
                tuple(h_s),
                partial,
                num_tokens,
                triton.cdiv(num_tokens, SPLITS),
                h_s[0].stride(0),
                A=divisor(h_s[0].stride(0)),
                **common,
            )
            reduce_kernel[(triton.cdiv(flat.numel(), 1024),)](
                partial, d_loss, flat, SPLITS, flat.numel(), coefficient, BLOCK=1024
            )
    return dh, flat


def _alike(layers: list[Tensor]) -> list[Tensor]:
    """The same states with one row stride and the elements of a row side by side."""
    if layers[0].stride(-1) == 1 and all(x.stride() == layers[0].stride() for x in layers):
        return layers
    return [x.contiguous() for x in layers]


def _rows(D_T: int) -> dict[str, int]:
    """Block sizes for whole rows: some 2048 elements a program."""
    block = max(16, triton.next_power_of_2(D_T))
    return {"BLOCK_D": block, "M": max(1, 2048 // block), "num_warps": 4 if block <= 4096 else 16}
