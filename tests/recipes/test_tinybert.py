"""TinyBERT's paper mode, switch by switch, and the table that tells of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from fastdistill import Task
from recipes.tinybert import PAPER, RECIPE, gold_for_regression

PAGE = Path(__file__).parents[2] / "docs" / "tinybert.md"


def test_every_switch_of_the_paper_mode() -> None:
    assert PAPER.task.augment.paper_pairs
    assert not RECIPE.task.augment.paper_pairs
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


def test_published_program_learns_numbers_from_gold_labels_alone() -> None:
    stsb, rte = Task(name="stsb"), Task(name="rte")
    for recipe, task, weights in ((PAPER, stsb, (0, 1)), (PAPER, rte, (1, 0)), (RECIPE, stsb, (1, 0))):
        losses = gold_for_regression(replace(recipe, task=task)).stages["prediction"].losses
        assert (losses.soft, losses.hard) == weights


def test_page_names_options_that_there_are() -> None:
    text = PAGE.read_text()
    for name in re.findall(r"`(?:losses|task\.augment)\.(\w+)", text):
        assert hasattr(RECIPE.stages["gd"].losses, name) or hasattr(RECIPE.task.augment, name), name
    for name in ("normalize", "projection", "soft_reduction", "temperature_squared", "paper_pairs", "teacher_dropout"):
        assert f"{name}" in text
