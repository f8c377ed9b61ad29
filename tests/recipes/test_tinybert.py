"""TinyBERT's paper mode, switch by switch, and the table that tells of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fastdistill import run
from fastdistill.cli import parse
from fastdistill.inputs import load_inputs
from recipes.tinybert import PAPER, RECIPE
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


@pytest.mark.parametrize(
    ("argv", "stsb", "rte"),
    [
        ([], (1, 0), (1, 0)),
        (["--paper_mode"], (0, 1), (1, 0)),
        (["--paper_mode", "--prediction.losses.temperature=2"], (0, 1), (1, 0)),
        (["--paper_mode", "--prediction.losses.soft=0.5", "--prediction.losses.hard=0.25"], (0, 0.75), (0.5, 0.25)),
        (["--paper_mode", "--prediction.losses.regression_targets=teacher"], (1, 0), (1, 0)),
        (["--prediction.losses.regression_targets=gold"], (0, 1), (1, 0)),
    ],
)
def test_published_program_learns_numbers_from_gold_labels_alone(
    argv: list[str], stsb: tuple[float, float], rte: tuple[float, float], world: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    modes = {"paper_mode": PAPER}
    asked, _ = parse(RECIPE, argv, "recipes.x", "", modes)
    with pytest.raises(SystemExit):
        parse(RECIPE, [*argv, "--print_config"], "recipes.x", "", modes)
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    printed, _ = parse(RECIPE, ["--config", str(tmp_path / "run.yaml")], "recipes.x", "", modes)
    small, scored = tiny_recipe(world, tmp_path / "out"), tmp_path / "scored.csv"
    texts = [line.rpartition(",")[0] for line in (world / "task.csv").read_text().splitlines()[1:]]
    scored.write_text("\n".join(["text,label", *(f"{text},{n / 7}" for n, text in enumerate(texts))]))
    for recipe in (asked, printed):
        for path, weights in ((str(scored), stsb), (small.task.path, rte)):
            stages = {"prediction": replace(recipe.stages["prediction"], data="task")}
            completed = load_inputs(replace(small, task=replace(small.task, path=path), stages=stages)).recipe
            losses = completed.stages["prediction"].losses
            assert (losses.soft, losses.hard) == weights


def test_page_names_options_that_there_are() -> None:
    text = PAGE.read_text()
    for name in re.findall(r"`(?:losses|task\.augment)\.(\w+)", text):
        assert hasattr(RECIPE.stages["gd"].losses, name) or hasattr(RECIPE.task.augment, name), name
    switches = ("student.init", "normalize", "projection", "soft_reduction", "temperature_squared", "paper_pairs")
    for name in (*switches, "teacher_dropout"):
        assert name in text
