"""The teacher's assistant: a model between teacher and student, distilled first (Mirzadeh et al., arXiv 1902.03393)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastdistill import ranks
from fastdistill.inputs import load_inputs
from fastdistill.models.encoder import Encoder
from fastdistill.recipe import Recipe, Student, Teacher
from fastdistill.workspace import Workspace, changed_values, check_read, check_workspace

FOLDER = "assistant"  # in the output directory


def distil(
    recipe: Recipe, run: Callable[..., Any], *, resume: bool, overwrite: bool, from_stage: str | None
) -> tuple[Recipe, list[str]]:
    """Have `run` distil the assistant, where it is not there yet; all of `recipe` is checked first.

    Returns:
        The run in which it teaches the student, and what is to be said of it.

    Raises:
        ValueError, OSError: what `run` refuses in either run; an assistant made with other values.
    """
    assert recipe.assistant is not None
    before, after = split(recipe, recipe.assistant)
    flags: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "from_stage": from_stage}
    ranks.agree(lambda: check_workspace(after, **flags, reads=recipe))
    flags = {"resume": resume or from_stage is not None, "overwrite": overwrite}
    used = (Workspace.of(before).root / "report.json", Workspace.of(after).recipe)  # by a run that has begun
    said = _said_of_start(recipe)
    if not overwrite and ranks.agree(lambda: all(path.exists() for path in used)):
        said += ranks.agree(lambda: _said_of_stages(before))
        ranks.first(lambda: check_read(Workspace.of(before), load_inputs(before).fingerprint))
    else:
        ranks.agree(lambda: check_workspace(before, **flags, from_stage=None, reads=recipe))
        ranks.first(lambda: check(before, after))
        run(before, **flags)
    return after, said


def _said_of_start(recipe: Recipe) -> list[str]:
    if recipe.teacher.path is not None or recipe.student.path is not None or recipe.student.init != "teacher":
        return []
    return [
        f"the student starts from the assistant's first weights, which come from those of {recipe.teacher.finetuned} "
        "and know the task; give --teacher.path too, the pretrained model, to start from that"
    ]


def _said_of_stages(before: Recipe) -> list[str]:
    """That stages of the student, which may still change, no longer are those that the assistant was distilled by.

    Raises:
        ValueError: something else has changed.
    """
    space = Workspace.of(before)
    changed = [name for name in changed_values(space, before) if not name.startswith("control.")]
    if other := [name for name in changed if name.partition(".")[0] not in before.stages]:
        raise ValueError(
            f"{space.root} was made with other values of {', '.join(other)}: use the same, or start again with "
            "--overwrite"
        )
    return (
        [f"the assistant was distilled with other values of {', '.join(changed)}, and is as it was"] if changed else []
    )


def split(recipe: Recipe, shape: Student) -> tuple[Recipe, Recipe]:
    """The run that distils the assistant, and the one in which the assistant teaches the student.

    Raises:
        ValueError: no stage gives the assistant a head, it would have to teach masked words, or it has no weights
            for the student to start from.
    """
    stages = {name: stage for name, stage in recipe.stages.items() if not stage.skip}
    if not any((stage.losses.soft or stage.losses.hard) and stage.data != "masked" for stage in stages.values()):
        raise ValueError("an assistant teaches with a head, which no stage of this recipe gives it: leave it out")
    if any(stage.data == "masked" and stage.losses.soft for stage in stages.values()):
        raise ValueError("an assistant has no head for masked words, to teach them: leave it, or such stages, out")
    if any(stage.data == "augmented" for stage in stages.values()) and recipe.task.augment.model is None:
        augment = replace(recipe.task.augment, model=_words_of(recipe))
        recipe = replace(recipe, task=replace(recipe.task, augment=augment))
    folder = Path(recipe.output_dir) / FOLDER
    before = replace(
        recipe, student=shape, assistant=None, output_dir=str(folder), control=replace(recipe.control, skip=True)
    )
    learnt = [name for name, stage in stages.items() if stage.teacher == "pretrained"]
    if not learnt and shape.init == "random" and recipe.student.init == "teacher" and recipe.student.path is None:
        raise ValueError(
            "assistant.init is random and no stage has teacher: pretrained, so that the student would start from "
            "random weights: leave assistant.init out, or set student.init random too"
        )
    general = folder / "stages" / (learnt[-1] if learnt else "init")  # what it was before it knew the task
    return before, replace(recipe, teacher=Teacher(path=str(general), finetuned=str(folder / "student")))


def _words_of(recipe: Recipe) -> str | None:
    """The teacher, where it predicts masked words: both runs augment by it, for no assistant does."""
    if recipe.teacher.path is None:
        return None
    try:
        Encoder.load(recipe.teacher.path, head="finetuned", kind="masked")
    except ValueError:  # a run says why, if that is all there is to augment by
        return None
    return recipe.teacher.path


def check(before: Recipe, after: Recipe) -> None:
    """Refuse, before the assistant is trained, a student that it could not teach.

    The student's run loads its inputs, with an untrained assistant in the place of the trained one.

    Raises:
        ValueError, OSError: what `load_inputs` refuses in either run.
    """
    try:
        inputs = load_inputs(before)
    except ValueError as error:
        raise ValueError(f"in the run that distils the assistant: {error}") from None
    assert inputs.task is not None, "a stage that gives the assistant a head reads the task"
    assistant = inputs.student.with_fresh_head(inputs.kind, inputs.num_labels, inputs.id2label)
    with TemporaryDirectory() as folder:
        assistant.model.save_pretrained(folder)
        inputs.tokenizer.save_pretrained(folder)
        teacher = Teacher(path=folder, finetuned=folder)
        try:
            load_inputs(replace(after, teacher=teacher))
        except ValueError as error:
            told = str(error).replace(folder, str(after.teacher.finetuned))
            raise ValueError(f"with the assistant for a teacher: {told}") from None
