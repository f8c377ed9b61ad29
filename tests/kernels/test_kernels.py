"""What can be said of the kernels only where they run: outputs written whole, ways that agree, rows far away."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from launches import launchers_that_may_not_wait, without_kernels
from on_device import DEVICE, KERNELS_RUN, empty, full, ones, rand, randint, randn, tensor, zeros
from parity import GRAM, GRAM_BOUND, HALF_AND_SINGLE, TILED, assert_exact_within, loss_and_gradients
from torch import Tensor

from fastdistill_kernels import soft_cross_entropy
from fastdistill_kernels.device import INTERPRETED
from fastdistill_kernels.hidden_mse.op import DISTANCES
from fastdistill_kernels.shared.kernel import rounded_to_tf32
from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import ATTENTION_SCORE_MSE, ATTENTION_SPECS, SOFT_CROSS_ENTROPY, SPECS

pytestmark = pytest.mark.skipif(not KERNELS_RUN, reason="no GPU here, and kernels are not interpreted")

RAGGED = Shape((1, 2, 5, 17, 33), heads=2, head_dim_s=26, head_dim_t=64, layers=2, classes=7)


@triton.jit
def rounding_kernel(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, rounded_to_tf32(tl.load(x + at)))


def test_numbers_that_are_none_stay_so_when_rounded() -> None:
    """A GPU's NaN has all bits set but the sign. The last 13 bits are for the tensor cores to cut off."""
    x = tensor([0x7FFFFFFF, 0x7FC00000, -1, 0x7F800000, -0x800000, 0, 0x3F800FFF, 0x3F801000], dtype=torch.int32)
    out = empty(8)
    rounding_kernel[(1,)](x.view(torch.float32), out, N=8)
    assert out[:3].isnan().all()
    cut = (out.view(torch.int32) & ~0x1FFF).view(torch.float32)
    assert cut[3:].tolist() == [math.inf, -math.inf, 0.0, 1.0, 1.0 + 2**-10]


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize(
    "shape",
    [RAGGED, Shape((0, 3, 0, 65)), Shape((64,) * 2), Shape(()), Shape((0, 0))],
    ids=["ragged", "gaps", "full", "nothing", "no token"],
)
def test_every_output_is_written_whole(spec: Spec, shape: Shape) -> None:
    inputs = spec.inputs(shape, device=DEVICE)
    expected = loss_and_gradients(spec.op, inputs, spec.differentiable)
    with poisoned():
        assert empty(3).isnan().all()
        actual = loss_and_gradients(spec.op, inputs, spec.differentiable)
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name
        assert value.isfinite().all(), name


@pytest.mark.parametrize("expected", [(2.0, 3.0), (1.0, 1.0)], ids=["expected", "again"])
@pytest.mark.parametrize("rows", [None, (5, 2, 0)], ids=["all", "some"])
@pytest.mark.parametrize("classes", [7, 5000])
def test_gradient_of_soft_labels_is_written_whole(
    classes: int, rows: tuple[int, ...] | None, expected: tuple[float, float]
) -> None:
    """Made with the loss or again: two temperatures, a factor, rows longer than a block, padding, strides."""
    z_s, z_t = randn(6, classes + 5)[:, :-1], randn(6, 2 * classes + 2)[:, ::2]
    z_s[0, classes - 1] = z_t[1, classes - 1] = 500.0  # no exponential may overflow, in whichever block the maximum is
    labels = randint(classes, (6,))
    labels[2] = -100
    options: dict[str, Any] = {"temperature": 2.0, "teacher_temperature": 3.0, "scale_by_temperature_squared": True}
    options |= {"labels": labels, "num_classes": classes, "rows": None if rows is None else tensor(rows)}
    for student, teacher in ((z_s, z_t), (z_t, z_s)):
        found = []
        for function, more, memory in (
            (soft_cross_entropy, {"expected_gradients": expected}, poisoned()),
            (SOFT_CROSS_ENTROPY.reference, {}, nullcontext()),
        ):
            leaf = student.detach().requires_grad_()
            with memory:
                soft, hard = function(leaf, teacher, **options, **more)
                (gradient,) = torch.autograd.grad(2.0 * soft + 3.0 * hard, leaf)
            found.append((soft, hard, gradient))
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("lengths", [(3,), (1, 1, 1)], ids=["rows", "sequences"])
def test_rows_beyond_32_bits(spec: Spec, lengths: tuple[int, ...]) -> None:
    """The third row lies 2^31 numbers behind the first, in 4 GiB of which a few pages are ever touched."""
    inputs = spec.inputs(Shape(lengths, heads=2, head_dim_s=4, head_dim_t=8), torch.float16, DEVICE)
    memory, taken = empty(2**31 + 4096, dtype=torch.float16), 0
    far = dict(inputs)
    for name, x in inputs.items():
        if isinstance(x, Tensor) and x.is_floating_point() and len(x) == 3:
            far[name] = memory.as_strided(x.shape, (2**30, *x.stride()[1:]), taken).copy_(x)
            taken += x[0].numel()
    gathered = [{}, {"rows": tensor([2, 0])}] if spec is SOFT_CROSS_ENTROPY and len(lengths) == 3 else [{}]
    for more in gathered:
        actual, expected = (loss_and_gradients(spec.op, x | more, spec.differentiable) for x in (far, inputs))
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def before_nan(x: Tensor) -> Tensor:
    """The same numbers with NaN behind them in memory."""
    return torch.cat([x, tensor([torch.nan])])[:-1]


def test_sums_over_more_rows_than_a_block() -> None:
    from fastdistill_kernels.soft_cross_entropy import kernel

    N, sums = 5000, before_nan(rand(10000)).view(2, 5000)
    labels = randint(2, (N,))
    inverse, soft, hard = zeros(3).unbind()
    flags = {"HAS_LABELS": True, "HAS_ROWS": False, "HAS_WEIGHTS": False, "BLOCK": 2048}
    kernel.weight_kernel[(1,)](labels, labels, labels, inverse, N, N, 1, **flags)
    kernel.finish_kernel[(1,)](sums, inverse, soft, hard, N, 4.0, BLOCK=2048)
    torch.testing.assert_close(inverse, 1 / (labels == 0).sum())
    torch.testing.assert_close(torch.stack([soft / 4, hard]), sums.sum(1) * inverse)


def test_gradient_of_states_ends_with_its_last_row() -> None:
    from fastdistill_kernels.hidden_mse import kernel

    d_p, weight, memory = randn(1, 3, 7), randn(7, 5), full((16,), torch.nan)
    tiles = {"M": 16, "N": 16, "K": 16, "L": 1, "SHARED": True, "HAS_WEIGHT": True, "PRECISION": "ieee"}
    kernel.states_gradient_kernel[(1,)](d_p, (weight,), tensor(2.0), memory, 3, 0.5, D_S=5, D_T=7, **tiles)
    torch.testing.assert_close(memory[:15], (d_p[0] @ weight).flatten())
    assert memory[15].isnan()


def test_sums_over_more_programs_and_sequences_than_a_block() -> None:
    from fastdistill_kernels.shared.kernel import finish

    partial, lengths = before_nan(rand(5000)), randint(9, (5000,))
    cu_seqlens = torch.cat([zeros(1), lengths.cumsum(0), tensor([-(10**6)])]).int()[:-1]
    loss, coefficient = zeros(2).unbind()
    tokens = int(cu_seqlens[-1])
    finish(partial, loss, coefficient, None, 3, cu_seqlens, tokens, max_seqlen=8)
    torch.testing.assert_close(coefficient, 1 / (3 * lengths.square().sum()))
    torch.testing.assert_close(loss, partial.sum() * coefficient)
    backwards = cu_seqlens.clone()
    backwards[4500] = cu_seqlens[4499] - 1
    for bounds, num_tokens, max_seqlen in (
        (cu_seqlens, tokens, 7),
        (cu_seqlens, tokens - 1, 8),
        (cu_seqlens + 1, tokens + 1, 8),
        (backwards, tokens, 80),
    ):
        finish(partial, loss, coefficient, 9, 3, bounds, num_tokens, max_seqlen)
        assert loss.isnan()
        assert coefficient.isnan()


@pytest.mark.parametrize("spec", ATTENTION_SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("normalize", ["tokens", "padded"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of what is made of memory that nobody has written
def test_a_sequence_longer_than_the_longest_makes_the_loss_nan(spec: Spec, normalize: str) -> None:
    """And some of each gradient. The host does not know the lengths, and would have to wait to refuse them."""
    inputs = spec.inputs(RAGGED, device=DEVICE) | {"max_seqlen": 32, "normalize": normalize}
    found = loss_and_gradients(spec.op, inputs, spec.differentiable)
    assert all(value.isnan().any() for value in found.values())


def test_heads_too_wide_for_gram_matrices_are_tiled() -> None:
    shape = Shape((600,), heads=1, head_dim_s=72, head_dim_t=192)
    inputs = ATTENTION_SCORE_MSE.inputs(shape, torch.bfloat16, DEVICE)
    torch.testing.assert_close(ATTENTION_SCORE_MSE.op(**inputs), TILED.op(**inputs))
    with pytest.raises(ValueError, match="head sizes 72 and 192: Gram matrices have room for 256 together"):
        GRAM.op(**inputs)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize(("stretch", "head_dim_t"), [(64, 32), (1024, 32), (1024, 64)])
def test_gram_agrees_with_the_definition(
    dtype: torch.dtype, stretch: int, head_dim_t: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the longest map has several stretches, and where each is one."""
    from fastdistill_kernels.attention_score_mse import kernel

    monkeypatch.setattr(kernel, "STRETCH", stretch)
    shape = Shape((3, 0, 64, 150), heads=2, head_dim_s=26, head_dim_t=head_dim_t, layers=2)
    inputs = GRAM.inputs(shape, dtype, DEVICE)
    assert_exact_within(GRAM_BOUND[dtype], GRAM, inputs)


def test_gram_keeps_its_digits_where_student_and_teacher_all_but_agree() -> None:
    """At a mean squared error of 1e-3 large numbers cancel; what is left is good to a few parts in a thousand."""
    q, k = randn(2, 128, 2, 32)
    noise = 0.02 * randn(q.shape)
    cu_seqlens = tensor([0, 128], dtype=torch.int32)
    inputs = {"q_s": q + noise, "k_s": k, "q_t": q, "k_t": k, "cu_seqlens": cu_seqlens, "max_seqlen": 128}
    assert GRAM.reference(**inputs) < 1e-3
    assert_exact_within(2e-3, GRAM, inputs)


def test_registration_of_the_other_ops() -> None:
    """Those of attention are checked in test_tiled.py."""
    ops = torch.ops.fastdistill
    weight, bias = randn(16, 8).requires_grad_(), randn(16).requires_grad_()
    for distance, dtype in product(DISTANCES, (torch.bfloat16, torch.float32)):  # of states; projected in bfloat16
        states = [randn(5, 8).to(dtype).requires_grad_() for _ in range(2)]
        targets = [randn(5, 16).to(dtype) for _ in range(2)]
        hidden = (states, targets, [weight], [bias], 80, distance, torch.bfloat16, True)
        torch.library.opcheck(ops.hidden_mse.default, hidden)
        _, d_p = ops.hidden_mse(*hidden)
        detached = [x.detach() for x in states], [weight.detach()]
        torch.library.opcheck(ops.hidden_mse_backward.default, (tensor(2.0), *detached, d_p, 80))
    z_s, z_t = randn(4, 7).bfloat16().requires_grad_(), randn(4, 7).bfloat16()
    optional = (tensor([1, -100, 3, 0]), tensor([0, 1, 3]), rand(4))
    for some in (optional, (None, None, None)):
        inputs = (*some, 7, -100, [2.0, 3.0, 6.0, 1.0, 0.5])
        torch.library.opcheck(ops.soft_cross_entropy.default, (z_s, z_t, *inputs, True, False))
        # the gradient that leaves here would be written to in the backward pass; the public function keeps it to itself
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(ops.soft_cross_entropy.default, (z_s, z_t, *inputs, True, True), test_utils=tests)
        logits = z_s.detach(), z_t
        _, _, gradient, *saved = ops.soft_cross_entropy(*logits, *inputs, True, True)
        incoming = (ones(()), None, *logits, *some, *saved, *inputs[3:])
        torch.library.opcheck(ops.soft_cross_entropy_backward.default, incoming)
        torch.library.opcheck(ops.soft_cross_entropy_correct.default, (gradient, *incoming))


@pytest.mark.skipif(not INTERPRETED, reason="kernels are not interpreted")
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("spec", [*SPECS, GRAM], ids=[*(spec.name for spec in SPECS), "gram"])
def test_launchers_wait_for_no_value(spec: Spec, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = spec.inputs(RAGGED, dtype, DEVICE)
    with launchers_that_may_not_wait(monkeypatch) as ran, without_kernels(monkeypatch) as launched:
        loss_and_gradients(spec.op, inputs, spec.differentiable)
    assert ran == ["forward", "backward"]
    assert len(launched) >= 3


def test_the_choice_of_an_algorithm_compiles_a_program_for_each() -> None:
    """Which bfloat16 operands have: maps that are short, long, and long among many short ones."""
    made: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        made.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(ATTENTION_SCORE_MSE.op, fullgraph=True, backend=backend, dynamic=True)
    for lengths in [(40, 2), (20, 30, 7), (90, 80), (100, 90, 70), (95, *[2] * 20), (90, *[2] * 20), (50, 3)]:
        shape = Shape(lengths, heads=1, head_dim_s=8, head_dim_t=16)
        inputs = ATTENTION_SCORE_MSE.inputs(shape, torch.bfloat16, DEVICE)
        torch.testing.assert_close(compiled(**inputs), ATTENTION_SCORE_MSE.op(**inputs))
    assert 2 <= len(made) <= 3
