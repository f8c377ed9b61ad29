from __future__ import annotations

import pytest
import torch
from torch import nn

from fastdistill.models.dropout import Dropout, draw_faster, drawn, kept


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9999999])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (100, 1001)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_is_kept_grows(p: float, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, dtype=dtype)
    keep, scale = drawn(x, p)
    output = kept(x, keep, scale)
    assert output.shape == keep.shape == x.shape
    assert output.dtype == dtype
    assert scale == pytest.approx(1 / (1 - p), rel=1e-4) or p > 0.99
    torch.testing.assert_close(output.double(), torch.where(keep, x.double() * scale, 0), rtol=2**-8, atol=0)


@pytest.mark.parametrize("p", [0.1, 0.35])
def test_draws_are_independent(p: float) -> None:
    """Their share, and the share of neighbours that agree, within five standard deviations."""
    torch.manual_seed(0)
    n = 1_000_001
    keep, _ = drawn(torch.ones(n), p)
    assert abs(keep.float().mean() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5
    agree = p**2 + (1 - p) ** 2
    for apart in (1, 2, 3, 4, 64):
        share = (keep[apart:] == keep[:-apart]).float().mean()
        assert abs(share - agree) < 5 * (agree * (1 - agree) / n) ** 0.5, apart


def test_a_seed_repeats_them() -> None:
    module, x = Dropout(0.3), torch.ones(50)
    torch.manual_seed(3)
    first, second = module(x), module(x)
    torch.manual_seed(3)
    assert torch.equal(module(x), first)
    assert not torch.equal(first, second)
    assert torch.equal(module.eval()(x), x)


def test_gradient() -> None:
    x = torch.randn(40, requires_grad=True)
    output = Dropout(0.5)(x)
    (gradient,) = torch.autograd.grad(output.sum(), x)
    torch.testing.assert_close(gradient, torch.where(output == 0, 0.0, 2.0))


def test_a_model_keeps_its_mode_and_names() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 3))).eval()
    names = list(model.state_dict())
    draw_faster(model)
    (module,) = (m for m in model.modules() if isinstance(m, nn.Dropout))
    assert type(module) is Dropout
    assert (module.p, module.training) == (0.2, False)
    assert list(model.state_dict()) == names
