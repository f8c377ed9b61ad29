"""The teacher's assistant: a model between teacher and student, distilled first (Mirzadeh et al., arXiv 1902.03393)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fastdistill.models.encoder import Encoder
from fastdistill.models.layermap import parse_layer_map
from fastdistill.models.student import make_student
from fastdistill.recipe import Recipe, Student, Teacher

FOLDER = "assistant"  # in the output directory


def split(recipe: Recipe, shape: Student) -> tuple[Recipe, Recipe]:
    """The run that distils the assistant, and the one in which the assistant teaches the student.

    Raises:
        ValueError: no stage gives the assistant a head, or it would have to fill in masked words.
    """
    stages = {name: stage for name, stage in recipe.stages.items() if not stage.skip}
    if not any(stage.losses.soft or stage.losses.hard for stage in stages.values()):
        raise ValueError("an assistant teaches with a head, which no stage of this recipe gives it: leave it out")
    if any(stage.data == "augmented" for stage in stages.values()) and recipe.task.augment.model is None:
        raise ValueError(
            "an assistant has no head for masked words, by which text would be augmented: name --task.augment.model"
        )
    if any(stage.data == "masked" and stage.losses.soft for stage in stages.values()):
        raise ValueError("an assistant has no head for masked words, to teach them: leave it, or such stages, out")
    folder = Path(recipe.output_dir) / FOLDER
    before = replace(
        recipe, student=shape, assistant=None, output_dir=str(folder), control=replace(recipe.control, skip=True)
    )
    learnt = [name for name, stage in stages.items() if stage.teacher == "pretrained"]
    general = str(folder / "stages" / learnt[-1]) if learnt else None
    return before, replace(recipe, teacher=Teacher(path=general, finetuned=str(folder / "student")))


def check(before: Recipe, after: Recipe) -> None:
    """Refuse, before the assistant is trained, a student that it could not teach.

    Raises:
        ValueError: shapes or layer maps do not fit.
        OSError: the teacher cannot be read.
    """
    base = before.teacher.path or before.teacher.finetuned
    if base is None:
        return  # which the assistant's own run reports
    assistant = make_student(Encoder.load(base), before.student, before.seed)
    student = make_student(assistant, after.student, after.seed)
    for stage in after.stages.values():
        if stage.teacher != "none" and not stage.skip:
            parse_layer_map(stage.layer_map, student.num_hidden_layers, assistant.num_hidden_layers)
