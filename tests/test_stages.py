"""The stages are the paper's: one of {teacher, data, objective} changes at each step. And how long one is."""

import dataclasses
from pathlib import Path

from fastdistill import CONTROL, ERNIE_TINY, FINETUNE, Stage, run
from fastdistill.losses.objective import active_weights
from tests.tiny import only, tiny_recipe

LATENT = {"attention", "hidden", "embedding"}


def test_ernie_tiny_is_the_table_of_the_paper() -> None:
    table = {name: (s.teacher, s.data, set(active_weights(s.losses))) for name, s in ERNIE_TINY.items()}
    assert list(table) == ["gd", "ged", "tad", "tsd"]
    assert table == {
        "gd": ("pretrained", "general", LATENT),
        "ged": ("finetuned", "general", LATENT),
        "tad": ("finetuned", "task", LATENT),
        "tsd": ("finetuned", "task", LATENT | {"soft", "hard"}),
    }


def test_teacher_and_control_learn_from_gold_labels_alone() -> None:
    for stage in (FINETUNE, CONTROL):
        assert (stage.teacher, stage.data, set(active_weights(stage.losses))) == ("none", "task", {"hard"})
        assert stage.keep == "best"


def test_stages_are_values() -> None:
    for stage in ERNIE_TINY.values():
        assert dataclasses.replace(stage) == stage
        assert hash(stage) == hash(dataclasses.replace(stage))


def test_an_epoch_ends_with_the_batches_that_fill_no_whole_step(world: Path, tmp_path: Path) -> None:
    recipe = only(tiny_recipe(world, tmp_path / "one"), "gd")
    gd = dataclasses.replace(recipe.stages["gd"], steps=None, epochs=1.0)

    def steps(stage: Stage, out: str) -> int:
        report = run(dataclasses.replace(recipe, stages={"gd": stage}, output_dir=str(tmp_path / out)))
        return int(report["stages"][0]["steps"])

    batches = steps(gd, "one")
    assert batches > 2
    assert steps(dataclasses.replace(gd, gradient_accumulation_steps=batches - 1), "two") == 2
