"""The ways to attend over packed sequences agree with plain attention, sequence by sequence."""

from __future__ import annotations

import pytest
import torch
from encoders import LENGTHS
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastdistill.models import attention
from fastdistill.models.attention import Bounds, attend_padded, attend_runs, padded_mask

H, D_HEAD, SCALING = 3, 10, 0.2


def inputs(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor, Bounds]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, sum(lengths), H, D_HEAD, generator=generator).requires_grad_().unbind()
    return q, k, v, Bounds(torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths))


def alone(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], window: int | None) -> Tensor:
    outputs = []
    for Q, K, V in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        scores = SCALING * torch.einsum("ihd,jhd->hij", Q, K)
        places = torch.arange(len(Q))
        if window is not None:
            scores = scores.masked_fill((places[:, None] - places).abs() >= window, -torch.inf)
        outputs.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), V))
    return torch.cat(outputs)


@pytest.mark.parametrize("attend", [attend_runs, attend_padded])
@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("lengths", [*LENGTHS.values(), [1], [7, 0, 7]], ids=str)
def test_values_and_gradients(attend: type, window: int | None, lengths: list[int]) -> None:
    q, k, v, bounds = inputs(lengths)
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    expected, got = alone(q, k, v, lengths, window), attend(q, k, v, bounds, SCALING, 0.0, window)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    theirs, ours = (torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (expected, got))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_fused_attention_is_given_heads_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels want head sizes in multiples of 8; for others PyTorch writes the maps out."""
    seen = []

    def recorded(*operands: Tensor, **options: object) -> Tensor:
        seen.extend(x.shape[-1] for x in operands)
        return scaled_dot_product_attention(*operands, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", recorded)
    q, k, v, bounds = inputs([7, 3])
    assert attend_padded(q, k, v, bounds, SCALING, 0.0, None).shape == v.shape
    assert seen == [16] * 3


@pytest.mark.parametrize("longest", [0, 512], ids=["fused", "explicit"])
@pytest.mark.parametrize("window", [None, 3])
def test_training_in_bf16(longest: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernel, in fp32, rounds only what goes in and out; written-out maps are rounded too."""
    monkeypatch.setattr(attention, "EXPLICIT", longest)
    lengths = [7, 7, 3]
    q, k, v, bounds = inputs(lengths)
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    rounded = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    with torch.autocast("cpu", torch.bfloat16):
        got = attend_runs(*rounded, bounds, SCALING, 0.0, window)
        ours = torch.autograd.grad((got * weight).sum(), rounded)
    assert {x.dtype for x in (got, *ours)} == {torch.bfloat16}
    exact = [x.detach().float().requires_grad_() for x in rounded]
    expected = alone(*exact, lengths, window)
    theirs = torch.autograd.grad((expected * weight).sum(), exact)
    for mine, other in zip((got, *ours), (expected, *theirs), strict=True):
        if longest:
            assert (mine - other).norm() < 0.01 * other.norm()
        else:
            torch.testing.assert_close(mine, other.bfloat16(), atol=1e-5, rtol=2**-8)  # one rounding


@torch.no_grad()
def test_a_teacher_in_bf16_loses_no_digits_to_large_scores() -> None:
    """No more than rounding what goes in, the probabilities and what comes out costs."""
    lengths = [60, 60, 31]
    q, k, v, bounds = inputs(lengths)
    q, k, v = (10 * q).bfloat16(), (10 * k).bfloat16(), v.bfloat16()
    expected = alone(q.double(), k.double(), v.double(), lengths, None)
    got = attend_runs(q, k, v, bounds, SCALING, 0.0, None)
    assert got.dtype == torch.bfloat16
    assert (got - expected).norm() < 0.004 * expected.norm()


def test_maps_written_out_drop_out() -> None:
    q, k, v, bounds = inputs([40])
    ones = torch.ones_like(v).bfloat16().requires_grad_()
    torch.manual_seed(0)
    sums = attend_runs(q.bfloat16(), k.bfloat16(), ones, bounds, SCALING, 0.5, None).float()
    assert sums.std() > 0.05  # of what is left of each row of probabilities, twice as heavy
    assert 0.9 < sums.mean() < 1.1
    rows = attend_runs(q.bfloat16(), k.bfloat16(), ones, bounds, SCALING, 0.0, None).float()
    assert (rows - 1).abs().max() < 0.02


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("lengths", [[1, 5, 6, 6, 9], [9, 2, 0, 40], [30]], ids=str)
def test_idle_places_change_nothing(lengths: list[int], window: int | None) -> None:
    """In float32, in which the written-out maps round nothing."""
    q, k, v, bounds = inputs(lengths)
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    got = attention.Explicit.apply(q, k, v, bounds, SCALING, 0.0, window)
    expected = alone(q, k, v, lengths, window)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    theirs, ours = (torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (expected, got))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_second_derivative_is_refused() -> None:
    q, k, v, bounds = inputs([4])
    q.requires_grad_()
    (gradient,) = torch.autograd.grad(
        attention.Explicit.apply(q, k, v, bounds, SCALING, 0.0, None).square().sum(), q, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_what_was_dropped_has_no_gradient() -> None:
    """Gradients of the maps that were drawn, against differences of the same draw."""
    q, k, v, bounds = inputs([3, 5])
    leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]

    def attend_again(*operands: Tensor) -> Tensor:
        torch.manual_seed(0)
        output: Tensor = attention.Explicit.apply(*operands, bounds, SCALING, 0.4, None)
        return output

    assert not torch.equal(attend_again(*leaves), attention.Explicit.apply(*leaves, bounds, SCALING, 0.0, None))
    torch.autograd.gradcheck(attend_again, leaves)


def test_packed_and_padded_indices_are_inverse() -> None:
    lengths = [3, 1, 0, 4]
    bounds = inputs(lengths)[3]
    index, real = bounds.padded_index
    assert real.sum(1).tolist() == lengths
    assert index.flatten()[bounds.packed_index(8)].tolist() == list(range(8))


@pytest.mark.parametrize("window", [None, 2])
def test_no_padded_query_is_left_without_keys(window: int | None) -> None:
    assert padded_mask(inputs([9, 1, 4])[3], window).any(-1).all()
