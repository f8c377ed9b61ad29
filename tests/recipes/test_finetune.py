"""Fine-tuning on gold labels: the encoder itself, whose outcome may teach, or a smaller student of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastdistill import Recipe, Student, run
from recipes.finetune import RECIPE
from tests.tiny import shorten, tiny_recipe


def finetune(world: Path, out: Path) -> Recipe:
    tiny = tiny_recipe(world, out)
    stages = {"gold": shorten(RECIPE.stages["gold"], 80)}
    return replace(tiny, student=RECIPE.student, finetune=RECIPE.finetune, control=RECIPE.control, stages=stages)


def test_the_outcome_is_a_teacher(world: Path, tmp_path: Path) -> None:
    recipe = finetune(world, tmp_path / "big")
    report = run(recipe)
    assert report["student"]["parameters"] > report["teacher"]["parameters"], "it has a head, and all else of its own"
    assert [(s["name"], s["teacher"], list(s["losses"])) for s in report["stages"]] == [("gold", "none", ["hard"])]
    assert report["student"]["score"] > 0.8
    assert "control" not in report
    teacher = replace(recipe.teacher, finetuned=str(tmp_path / "big" / "student"))
    small = run(replace(recipe, teacher=teacher, student=Student(hidden_size=12), output_dir=str(tmp_path / "small")))
    assert small["teacher"]["score"] == pytest.approx(report["student"]["score"])
    assert small["student"]["parameters"] < report["student"]["parameters"] / 2
