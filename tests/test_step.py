"""A step's parts: precision, decay groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdistill import step
from fastdistill.recipe import Losses, Optim, Stage
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


def embeddings(sparse: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 4, padding_idx=0), nn.Linear(4, 3))
    model[0].sparse = sparse
    return model


class Summed(nn.Module):
    """An objective and a student in one: the student's outputs, squared."""

    student_taps = teacher_taps = None

    def forward(self, output: torch.Tensor, *_: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return output.square().sum(), {}


def test_sparse_gradients_of_embeddings_move_the_weights_as_dense_ones_do() -> None:
    """Over several steps, each of two batches, with words that come twice, once or never; moments and decay too."""
    runtime = Runtime(torch.device("cpu"), torch.float32, 1, 1)
    optim = Optim(learning_rate=0.1, max_grad_norm=0.5)
    stage = Stage(losses=Losses(hard=1.0), optim=optim, gradient_accumulation_steps=2)
    sparse = embeddings(True)
    ours = step.Step(sparse, None, Summed(), stage, runtime)  # type: ignore[arg-type]
    dense = embeddings(False)
    optimizer = make_optimizer(optim, dense)
    for number in range(4):
        batches = [torch.randint(12 * number, 12 * number + 9, (20,)) for _ in range(2)]
        for ids in batches:
            (sparse(ids).square().sum() / 2).backward()
            (dense(ids).square().sum() / 2).backward()
        assert sparse[0].weight.grad.is_sparse
        expected = nn.utils.clip_grad_norm_(dense.parameters(), 0.5)
        assert ours.update(0.1) == pytest.approx(expected.item(), rel=1e-6)
        optimizer.step()
        optimizer.zero_grad()
        for mine, theirs in zip(sparse.parameters(), dense.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)
        assert not any(table.any() for table in ours.tables.values())
    assert sparse[0].weight.grad is None


def test_embeddings_are_made_sparse_on_cpus() -> None:
    model = embeddings(False)
    stage = Stage(losses=Losses(hard=1.0))
    step.Step(model, None, Summed(), stage, Runtime(torch.device("cpu"), torch.float32, 1, 1))  # type: ignore[arg-type]
    assert model[0].sparse
