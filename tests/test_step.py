"""A step's parts: precision, decay groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdistill import step
from fastdistill.recipe import Optim
from fastdistill.step import Runtime, make_optimizer
from tests.tiny import tiny_recipe


def test_weight_decay_spares_biases_and_norms() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    decayed, spared = make_optimizer(Optim(weight_decay=0.3), model).param_groups
    assert {tuple(p.shape) for p in decayed["params"]} == {(5, 4), (4, 4)}
    assert [p.ndim for p in spared["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)


def test_runtime_follows_the_recipe(world: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world, tmp_path)
    assert Runtime.of(replace(recipe, device="cpu", precision="bf16")).dtype == torch.bfloat16
    assert Runtime.of(replace(recipe, device="cpu", precision="fp32")).dtype == torch.float32


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_precision_is_that_of_the_hardware(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(step, "_cpu_has_bf16", lambda: has)
    assert Runtime.of(replace(tiny_recipe(world, tmp_path), device="cpu", precision="auto")).dtype == dtype


def test_autocast_multiplies_in_bf16_and_keeps_the_weights() -> None:
    layer = nn.Linear(4, 4)
    with Runtime(torch.device("cpu"), torch.bfloat16, 1, 1).autocast():
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    with Runtime(torch.device("cpu"), torch.float32, 1, 1).autocast():
        assert layer(torch.ones(1, 4)).dtype == torch.float32
    assert layer.weight.dtype == torch.float32
