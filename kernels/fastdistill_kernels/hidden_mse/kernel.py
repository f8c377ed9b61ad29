"""`hidden_mse` in Triton: the student's states are projected and compared in registers.

What reaches memory is d_p ``(L, T, D_T)``, in the dtype of the products, float32 where there are none: half the
gradient of the summed distances for the projected states ``p = h_s W^T + b``, which is ``p - h_t`` for the squared one.
From it the backward pass takes the gradients for states, W and b. Layers share one weight, or have one each. Directions
want sums over whole rows first: projected states are made once for these and once again, and never reach memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.kernel import divisor, finish, for_product, known, pick, precision, room, rounded, store

SQUARED, NORMALIZED, COSINE, MOMENTS = (tl.constexpr(kind) for kind in range(4))
SMALLEST = tl.constexpr(2.0**-126)  # number of float32 with all its digits
KINDS = {"squared": SQUARED.value, "normalized": NORMALIZED.value, "cosine": COSINE.value}


@triton.jit
def _inverse_length(square):
    """1 over the length of rows whose squares add up to `square`; NaN where these have left float32.

    Rows of zeros are left alone, and so are those whose squares a GPU's square root takes for 0.
    """
    inverse = 1.0 / tl.sqrt(tl.where(square < SMALLEST, 1.0, square))
    return tl.where(square < float("inf"), inverse, float("nan"))


@triton.jit
def _distance(e, pp, tt, counted, COSINE: tl.constexpr):
    """``()``: of differences of directions ``(M, N)`` |e|^2, or ``1 - p . t``, its half but for the rows of zeros.

    These are counted where it is said, lest each block of columns does.
    """
    square = tl.sum(e * e)
    zeros = (pp < SMALLEST).to(tl.float32) + (tt < SMALLEST).to(tl.float32)
    return 0.5 * (square + tl.sum(tl.where(counted, zeros, 0.0), axis=0)) if COSINE else square


@triton.jit(do_not_specialize=["num_tokens"])
def forward_kernel(
    h_s, h_t, weight, bias, moments, d_p, partial, num_tokens, stride_s, stride_t,
    KIND: tl.constexpr, L: tl.constexpr, SHARED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    KEEP: tl.constexpr, D_S: tl.constexpr, D_T: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """partial ``(programs,)``: sums of distances of M rows and N columns; d_p if KEEP.

    With MOMENTS instead what distances of directions read, moments ``(D_T / N, 3, L, T)``: sums over N columns of p p,
    t t and p t.
    """
    program = tl.program_id(0)
    stride_s, stride_t = known(stride_s, A), known(stride_t, A)
    column_blocks: tl.constexpr = (D_T + N - 1) // N
    column_block = program % column_blocks
    row_blocks = tl.cdiv(num_tokens, M)
    layer = program // (column_blocks * row_blocks)
    rows = program // column_blocks % row_blocks * M + tl.arange(0, M)
    columns = column_block * N + tl.arange(0, N)
    row, there = rows.to(tl.int64)[:, None], (rows < num_tokens)[:, None]
    real = there & (columns < D_T)[None, :]
    states, target = pick(h_s, layer, L), pick(h_t, layer, L)
    dtype = d_p.dtype.element_ty

    if HAS_WEIGHT:
        matrix = weight[0] if SHARED else pick(weight, layer, L)
        p = tl.zeros([M, N], tl.float32)
        for first in range(0, D_S, K):
            inner = first + tl.arange(0, K)
            x = tl.load(states + row * stride_s + inner[None, :], mask=there & (inner < D_S)[None, :], other=0.0)
            w = tl.load(
                matrix + columns[None, :] * D_S + inner[:, None],
                mask=(columns < D_T)[None, :] & (inner < D_S)[:, None], other=0.0,
            )  # fmt: skip
            x, w = for_product(rounded(x, dtype)), for_product(rounded(w, dtype))
            p = tl.dot(x, w, p, input_precision=PRECISION)
        if HAS_BIAS:
            vector = bias[0] if SHARED else pick(bias, layer, L)
            p += tl.load(vector + columns, mask=columns < D_T, other=0.0).to(tl.float32)[None, :]
        p = tl.where(real, p, 0.0)
    else:
        p = tl.load(states + row * stride_s + columns[None, :], mask=real, other=0.0).to(tl.float32)
    t = tl.load(target + row * stride_t + columns[None, :], mask=real, other=0.0).to(tl.float32)

    own = rows < num_tokens
    plane = num_tokens.to(tl.int64) * L
    sums = moments + layer.to(tl.int64) * num_tokens + rows
    if KIND == MOMENTS:
        sums += 3 * column_block * plane
        tl.store(sums, tl.sum(p * p, axis=1), mask=own)
        tl.store(sums + plane, tl.sum(t * t, axis=1), mask=own)
        tl.store(sums + 2 * plane, tl.sum(p * t, axis=1), mask=own)
    else:
        d = p - t
        if KIND == SQUARED:
            distance = tl.sum(d * d)
        else:
            pp, tt, pt = tl.zeros([M], tl.float32), tl.zeros([M], tl.float32), tl.zeros([M], tl.float32)
            for _ in range(column_blocks):
                pp += tl.load(sums, mask=own, other=0.0)
                tt += tl.load(sums + plane, mask=own, other=0.0)
                pt += tl.load(sums + 2 * plane, mask=own, other=0.0)
                sums += 3 * plane
            inverse, inverse_t = _inverse_length(pp), _inverse_length(tt)
            p, t = p * inverse[:, None], t * inverse_t[:, None]
            distance = _distance(p - t, pp, tt, own & (column_block == 0), KIND == COSINE)
            cosine = pt * inverse * inverse_t
            d = (cosine[:, None] * p - t) * (0.5 * inverse if KIND == COSINE else inverse)[:, None]
        tl.store(partial + program, distance)
        if KEEP:
            store(d_p + (layer.to(tl.int64) * num_tokens + row) * D_T + columns[None, :], d, mask=real)


@triton.jit(do_not_specialize=["num_tokens"])
def directions_kernel(
    h_s, h_t, d_p, partial, num_tokens, stride_s, stride_t,
    KIND: tl.constexpr, L: tl.constexpr, KEEP: tl.constexpr,
    D_T: tl.constexpr, BLOCK_D: tl.constexpr, M: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """What `forward_kernel` makes of directions, of states without a projection, whole rows at a time."""
    program = tl.program_id(0)
    stride_s, stride_t = known(stride_s, A), known(stride_t, A)
    row_blocks = tl.cdiv(num_tokens, M)
    layer = program // row_blocks
    rows, columns = program % row_blocks * M + tl.arange(0, M), tl.arange(0, BLOCK_D)
    row, real = rows.to(tl.int64)[:, None], (rows < num_tokens)[:, None] & (columns < D_T)[None, :]
    p = tl.load(pick(h_s, layer, L) + row * stride_s + columns[None, :], mask=real, other=0.0).to(tl.float32)
    t = tl.load(pick(h_t, layer, L) + row * stride_t + columns[None, :], mask=real, other=0.0).to(tl.float32)
    pp, tt = tl.sum(p * p, axis=1), tl.sum(t * t, axis=1)
    inverse = _inverse_length(pp)
    p *= inverse[:, None]
    e = p - t * _inverse_length(tt)[:, None]
    tl.store(partial + program, _distance(e, pp, tt, rows < num_tokens, KIND == COSINE))
    if KEEP:
        d = e - p * tl.sum(p * e, axis=1)[:, None]
        at = d_p + (layer.to(tl.int64) * num_tokens + row) * D_T + columns[None, :]
        store(at, d * (0.5 * inverse if KIND == COSINE else inverse)[:, None], mask=real)


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
    d_p = h_s[0].new_empty((L, num_tokens, D_T) if keep else 0, dtype=dtype)
    if num_tokens == 0:
        return loss, d_p
    h_s, h_t = _alike(h_s), _alike(h_t)
    states, layout = (tuple(h_s), tuple(h_t)), (num_tokens, h_s[0].stride(0), h_t[0].stride(0))
    kind, strides = KINDS[distance], {"A": divisor(h_s[0].stride(0), h_t[0].stride(0))}
    if distance == "squared" or weight:
        projection = [tuple(x.contiguous() for x in tensors) or (h_s[0],) for tensors in (weight, bias)]
        columns = triton.cdiv(D_T, TILES["N"])
        programs = triton.cdiv(num_tokens, TILES["M"]) * columns * L
        partial = loss.new_empty(programs)
        moments = loss.new_empty((0 if distance == "squared" else columns, 3, L, num_tokens))
        for step in (kind,) if distance == "squared" else (MOMENTS.value, kind):
            forward_kernel[(programs,)](
                *states, *projection, moments, d_p, partial, *layout, **strides, KIND=step, L=L,
                SHARED=len(weight) < 2, HAS_WEIGHT=bool(weight), HAS_BIAS=bool(bias), KEEP=keep, D_S=D_S, D_T=D_T,
                PRECISION=precision(dtype), **TILES,
            )  # fmt: skip
    else:
        rows = _rows(D_T)
        programs = triton.cdiv(num_tokens, rows["M"]) * L
        partial = loss.new_empty(programs)
        directions_kernel[(programs,)](
            *states, d_p, partial, *layout, **strides, KIND=kind, L=L, KEEP=keep, D_T=D_T, **rows
        )
    finish(partial, loss, coefficient, entries)
    return loss, d_p


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
