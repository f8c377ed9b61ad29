"""The student that a command line asks of a recipe: the recipe's own options give way to what they exclude."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastdistill import Recipe, Student
from fastdistill.cli import overridden, parse
from recipes.tinybert import PAPER

ROOT = Path(__file__).parents[2]
FILES = [path for path in sorted((ROOT / "recipes").glob("*.py")) if "main(RECIPE," in path.read_text()]
RECIPES: dict[str, Recipe] = {path.stem: importlib.import_module(f"recipes.{path.stem}").RECIPE for path in FILES}
SHAPE = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")


def student(recipe: Recipe, *argv: str) -> Student:
    return parse(recipe, list(argv), "recipes.x", "", {"paper_mode": PAPER})[0].student


def test_every_recipe_is_here() -> None:
    assert len(RECIPES) == 9


@pytest.mark.parametrize("name", RECIPES)
def test_preset_is_the_whole_shape(name: str) -> None:
    own = RECIPES[name].student
    no_shape: dict[str, Any] = dict.fromkeys(SHAPE)
    expected = replace(own, preset="tinybert6", **no_shape)
    assert student(RECIPES[name], "--student.preset", "tinybert6") == expected
    deeper = student(RECIPES[name], "--student.preset", "tinybert4", "--student.num_hidden_layers", "6")
    assert deeper == replace(expected, preset="tinybert4", num_hidden_layers=6)
    assert student(RECIPES[name], "--student.num_hidden_layers", "5") == replace(own, num_hidden_layers=5)
    grid = '{"seed,student.preset": [[1, "tinybert6"]]}'
    swept = parse(RECIPES[name], ["--sweep", grid, "--student.num_hidden_layers", "3"], "recipes.x", "")[0]
    combined = overridden(swept, {"student": {"preset": "tinybert6"}}).student
    assert combined == replace(expected, num_hidden_layers=3), "what is given beside a sweep stays"


def test_only_what_is_given_excludes() -> None:
    own = Student(preset="tinybert6", num_hidden_layers=3)
    assert student(replace(RECIPES["kd"], student=own), "--seed", "1") == own


@pytest.mark.parametrize("name", RECIPES)
def test_path_is_the_whole_student(name: str, tmp_path: Path) -> None:
    assert student(RECIPES[name], "--student.path", "x") == Student(path="x")
    swept = parse(RECIPES[name], ["--sweep", '{"student.path": ["x"]}'], "recipes.x", "")[0]
    assert overridden(swept, {"student": {"path": "x"}}).student == Student(path="x")
    (tmp_path / "run.yaml").write_text("student:\n  path: x\n  hidden_size: 24\n")
    both = student(RECIPES[name], "--config", str(tmp_path / "run.yaml"))
    assert both == Student(path="x", hidden_size=24)  # given beside it, and refused with it


def test_path_is_the_whole_student_in_the_paper_mode() -> None:
    assert student(RECIPES["tinybert"], "--paper_mode", "--student.path", "x") == Student(path="x")


@pytest.mark.parametrize("argv", [["--student.path", "x"], ["--student.preset", "tinybert6"], ["--paper_mode"]])
def test_printed_configuration_is_what_is_asked_for(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, modes = ("tinybert", {"paper_mode": PAPER}) if argv == ["--paper_mode"] else ("kd", {})
    with pytest.raises(SystemExit):
        parse(RECIPES[name], [*argv, "--print_config"], "recipes.x", "", modes)
    printed = capsys.readouterr().out
    assert "max_grad_norm" in printed  # options that nobody gave too
    (tmp_path / "run.yaml").write_text(printed)
    again, asked = (
        parse(RECIPES[name], words, "recipes.x", "", modes)[0]
        for words in (["--config", str(tmp_path / "run.yaml")], argv)
    )
    assert again == asked
