"""TinyBERT's paper mode, switch by switch, and the table that tells of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastdistill import Losses, Recipe, Task, main, run
from recipes.tinybert import PAPER, RECIPE, gold_for_regression
from tests.tiny import shorten, tiny_recipe

PAGE = Path(__file__).parents[2] / "docs" / "tinybert.md"


def test_every_switch_of_the_paper_mode() -> None:
    assert PAPER.task.augment.paper_pairs
    assert not RECIPE.task.augment.paper_pairs
    assert (PAPER.student, RECIPE.student.init) == (replace(RECIPE.student, init="random"), "teacher")
    for name, stage in PAPER.stages.items():
        mended = RECIPE.stages[name]
        assert (stage.losses.normalize, mended.losses.normalize) == ("padded", "tokens")
        assert stage.losses.projection == "shared"
        assert (stage.losses.soft_reduction, mended.losses.soft_reduction) == ("mean", "batchmean")
        assert (stage.losses.temperature_squared, mended.losses.temperature_squared) == (False, True)
        assert (stage.teacher_dropout, mended.teacher_dropout) == (True, False)
        weights = ("attention", "hidden", "embedding", "soft", "hard")
        assert [getattr(stage.losses, w) for w in weights] == [getattr(mended.losses, w) for w in weights]
        assert replace(stage, losses=mended.losses, teacher_dropout=False) == mended
    assert [RECIPE.stages[name].losses.projection for name in ("gd", "intermediate")] == ["layer", "layer"]


@pytest.mark.parametrize("data", ["general", "task"])
def test_padded_means_are_over_the_length_of_the_text_of_the_stage(data: str, world: Path, tmp_path: Path) -> None:
    """Where no text is longer than 16 tokens, batches of at most 16 and at most 32 are the same."""
    recipe = tiny_recipe(world, tmp_path)
    stage = replace(shorten(PAPER.stages["gd"], 1), data=data)
    recipe = replace(recipe, stages={"gd": stage}, control=replace(recipe.control, skip=True), logging_steps=1)
    found = {}
    for length in (16, 32):
        part = replace(getattr(recipe, data), max_length=length)
        report = run(replace(recipe, **{data: part}, output_dir=str(tmp_path / str(length))))
        found[length] = {term: values[0] for term, values in report["stages"][0]["losses"].items()}
    for term, power in {"attention": 4, "hidden": 2, "embedding": 2}.items():
        assert found[16][term] == pytest.approx(power * found[32][term], rel=1e-5), term


def test_published_program_learns_numbers_from_gold_labels_alone() -> None:
    stsb, rte = Task(name="stsb"), Task(name="rte")
    paper = {"paper_mode": True}
    for recipe, task, given, weights in (
        (PAPER, stsb, paper, (0, 1)),
        (PAPER, rte, paper, (1, 0)),
        (RECIPE, stsb, {}, (1, 0)),
        (PAPER, stsb, paper | {"prediction.losses.temperature": 2.0}, (0, 1)),
        (PAPER, stsb, paper | {"prediction.losses.soft": 1.0, "prediction.losses.hard": 0.0}, (1, 0)),
    ):
        losses = gold_for_regression(replace(recipe, task=task), given).stages["prediction"].losses
        assert (losses.soft, losses.hard) == weights


def test_what_the_command_line_gives_wins_over_the_paper_mode(world: Path, tmp_path: Path) -> None:
    found: list[Losses] = []

    def prepare(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
        found.append(gold_for_regression(recipe, given).stages["prediction"].losses)
        raise FileNotFoundError("enough")

    config = tmp_path / "c.yaml"
    config.write_text("paper_mode: true\ntask: {name: stsb}\nprediction: {losses: {soft: 1.0}}\n")
    for argv in (["--paper_mode", "--task.name=stsb"], [f"--config={config}", "--prediction.losses.hard=0"]):
        with pytest.raises(SystemExit):
            main(RECIPE, "", argv=argv, prepare=prepare, modes={"paper_mode": PAPER})
    assert [(losses.soft, losses.hard) for losses in found] == [(0, 1), (1, 0)]


def test_page_names_options_that_there_are() -> None:
    text = PAGE.read_text()
    for name in re.findall(r"`(?:losses|task\.augment)\.(\w+)", text):
        assert hasattr(RECIPE.stages["gd"].losses, name) or hasattr(RECIPE.task.augment, name), name
    switches = ("student.init", "normalize", "projection", "soft_reduction", "temperature_squared", "paper_pairs")
    for name in (*switches, "teacher_dropout"):
        assert name in text
