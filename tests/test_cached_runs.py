"""Whole runs whose teacher answers from files."""

from __future__ import annotations

import gc
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdistill import run, runner, teacher_cache
from fastdistill.models.encoder import Encoder
from fastdistill.recipe import Recipe
from tests.tiny import only, tiny_recipe


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "TOKENS_PER_SHARD", 100)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student" / "model.safetensors")


def several_epochs(world: Path, tmp_path: Path) -> Recipe:
    """The miniature job, two stages of which see their text more than twice."""
    recipe = only(tiny_recipe(world, tmp_path / "live"), "tad", "tsd")
    stages = {name: replace(stage, steps=20) for name, stage in recipe.stages.items()}
    return replace(recipe, stages=stages, cache_dir=str(tmp_path / "cache"))


def test_a_run_with_the_cache_learns_what_a_run_without_it_learns(world: Path, tmp_path: Path) -> None:
    recipe = several_epochs(world, tmp_path)
    run(recipe)
    run(replace(recipe, teacher_cache=True, output_dir=str(tmp_path / "a"), verify_cache=3))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert made
    run(replace(recipe, teacher_cache=True, output_dir=str(tmp_path / "b")))
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    first, second, live = (weights(tmp_path / name) for name in ("a", "b", "live"))
    for name in live:
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], live[name], rtol=0.05, atol=0.02)


def test_there_is_nothing_to_verify_without_a_cache(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="verify_cache is 3, but there is no cache"):
        run(replace(several_epochs(world, tmp_path), verify_cache=3))


@pytest.mark.parametrize("room", [0, 30], ids=["at once", "half way"])
def test_a_full_disk_costs_the_cache_and_not_the_run(
    room: int, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what was written before is given back."""
    calls = itertools.count()

    def full(*values: Any, **named: Any) -> None:
        if next(calls) >= room:
            raise OSError(28, "No space left on device")
        save_file(*values, **named)

    monkeypatch.setattr(teacher_cache, "save_file", full)
    run(replace(several_epochs(world, tmp_path), teacher_cache=True))
    assert "No space left on device" in capsys.readouterr().out
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert weights(tmp_path / "live")


def test_a_teacher_that_has_said_all_takes_no_memory(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    train = runner.train

    def watched(*given: Any, **named: Any) -> Any:
        gc.collect()
        alive.append(sum(type(x) is Encoder and x is not given[2] for x in gc.get_objects()))
        return train(*given, **named)

    monkeypatch.setattr(runner, "train", watched)
    recipe = several_epochs(world, tmp_path)
    for cache in (False, True):
        run(replace(recipe, teacher_cache=cache, output_dir=str(tmp_path / str(cache))))
    without, kept = alive[: len(alive) // 2], alive[len(alive) // 2 :]
    assert max(a - b for a, b in zip(without, kept, strict=True)) == 1


def test_a_text_seen_once_is_not_cached(world: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world, tmp_path / "out")
    stages = {name: replace(stage, steps=1) for name, stage in recipe.stages.items()}
    run(replace(recipe, stages=stages, teacher_cache=True, cache_dir=str(tmp_path / "cache")))
    assert not (tmp_path / "cache" / "teacher").exists()
