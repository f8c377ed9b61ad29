"""The models of a recipe, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastdistill.data.columns import complete
from fastdistill.recipe import Corpus, Losses, Stage
from fastdistill.roles import _check_objectives, _of_control, load_models
from tests.models.encoders import tiny_encoder
from tests.tiny import tiny_recipe


@pytest.mark.parametrize(
    ("losses", "layer_map", "max_length", "expected"),
    [
        (Losses(attention=1.0), "1:1,2:2", 16, "gd: a layer of the teacher sees 4 tokens to each side"),
        (
            Losses(relation=1.0, relation_pairs="qk,vv", relation_heads=2),
            "1:1,2:2",
            16,
            "lower max_length from 16 to 5",
        ),
        (Losses(relation=1.0, relation_heads=2), "1:1,2:2", 16, None),
        (Losses(attention=1.0), "1:1,2:2", 5, None),
        (Losses(attention=1.0), "1:1,2:3", 16, None),
        (Losses(hidden=1.0), "1:1,2:2", 16, None),
    ],
)
def test_maps_beyond_what_a_layer_sees_are_said(
    losses: Losses, layer_map: str, max_length: int, expected: str | None, world: Path, tmp_path: Path
) -> None:
    teacher = tiny_encoder("modernbert", head=False)
    assert [teacher.reach(layer) for layer in (1, 2, 3)] == [None, 4, None]
    recipe = replace(tiny_recipe(world, tmp_path), general=Corpus(path="x", max_length=max_length))
    stage = Stage(teacher="pretrained", data="general", losses=losses, layer_map=layer_map)
    said = _check_objectives(recipe, {"gd": stage}, teacher, {"pretrained": teacher})
    assert len(said) == (expected is not None)
    assert expected is None or expected in said[0]


def test_a_student_that_starts_from_a_fine_tuned_teacher_is_said(world: Path, done: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world, tmp_path)
    recipe = replace(recipe, stages={"tsd": recipe.stages["tsd"]}, task=complete(recipe.task)[0])
    alone, both = (
        replace(recipe.teacher, path=path, finetuned=str(done / "teacher")) for path in (None, recipe.teacher.path)
    )
    told = f"the student starts from the fine-tuned weights of {done / 'teacher'}"
    assert sum(line.startswith(told) for line in load_models(replace(recipe, teacher=alone)).said) == 1
    random = replace(recipe, teacher=alone, student=replace(recipe.student, init="random"))
    for other in (replace(recipe, teacher=both), random):
        assert not any("starts from the fine-tuned" in line for line in load_models(other).said)


def test_batches_of_the_control_that_are_not_those_of_the_stages_on_the_task_are_said(
    world: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(world, tmp_path)
    stages = recipe.stages | {"control": recipe.control}
    assert _of_control(stages) == []
    stages["gd"] = replace(stages["gd"], tokens_per_batch=7)  # not on the task
    assert _of_control(stages) == []
    stages["tsd"] = replace(stages["tsd"], tokens_per_batch=7)
    own = recipe.control.tokens_per_batch
    assert _of_control(stages) == [
        f"control: tokens_per_batch is {own}, that of the stages on task data 7 or {own}: as many steps are not as "
        "much text"
    ]
    stages["tad"] = replace(stages["tad"], tokens_per_batch=7)
    assert _of_control(stages) == [
        f"control: tokens_per_batch is {own}, that of the stages on task data 7: as many steps are not as much text; "
        "for the same set --control.tokens_per_batch 7"
    ]
    del stages["control"]
    assert _of_control(stages) == []
