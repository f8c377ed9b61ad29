"""The stages are the paper's: one of {teacher, data, objective} changes at each step."""

import dataclasses

from fastdistill import CONTROL, ERNIE_TINY, FINETUNE
from fastdistill.losses.objective import active_weights

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
