"""All that a run reads, loaded and checked before anything is trained or written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fastdistill.data.corpus import load_corpus
from fastdistill.data.packing import Loader, Sequences
from fastdistill.data.tasks import TaskData, load_task
from fastdistill.evaluate import metric_of
from fastdistill.losses.objective import Objective, active_weights
from fastdistill.models.encoder import Encoder
from fastdistill.models.layermap import parse_layer_map
from fastdistill.models.pretrained import Tokenizer, load_tokenizer
from fastdistill.models.reduction import teacher_basis
from fastdistill.models.student import make_student
from fastdistill.recipe import Recipe, Stage


@dataclass
class Inputs:
    """Tokenizer, data, and the untrained student of a recipe with its projections."""

    recipe: Recipe
    tokenizer: Tokenizer
    task: TaskData | None
    corpus: Sequences | None
    student: Encoder
    projections: dict[str, Tensor]

    @property
    def num_labels(self) -> int:
        """Outputs of a classification head: the classes, or 1 for regression."""
        assert self.task is not None
        return len(self.task.label_names) if self.task.label_names else 1

    @property
    def id2label(self) -> dict[int, str] | None:
        """Class names by index, for the model's configuration."""
        assert self.task is not None
        return dict(enumerate(self.task.label_names)) if self.task.label_names else None

    def data_counts(self) -> dict[str, dict[str, int | str]]:
        """What was read, truncated and skipped of each part of the data, and where it came from."""
        parts: dict[str, dict[str, int | str]] = {}
        if self.corpus is not None:
            parts["general"] = {**self.corpus.counts, "origin": str(self.recipe.general.path)}
        if self.task is not None:
            for name in ("train", "validation", "test"):
                parts[name] = {**getattr(self.task, name).counts, "origin": self.task.origins[name]}
        return parts

    def data(self, stage: Stage) -> Sequences:
        """The training text of `stage`."""
        data = self.corpus if stage.data == "general" else self.task.train if self.task else None
        assert data is not None, "load_inputs checks that a stage's data is there"
        return data

    def teacher_path(self, stage: Stage, finetuned: Path) -> tuple[str | Path | None, Literal["none", "finetuned"]]:
        """Where the teacher of `stage` lies, and which head to load with it."""
        if stage.teacher == "none":
            return None, "none"
        if stage.teacher == "pretrained":
            return self.recipe.teacher.path, "none"
        return self.recipe.teacher.finetuned or finetuned, "finetuned" if stage.losses.soft else "none"


def load_inputs(recipe: Recipe) -> Inputs:
    """Load what `recipe` names.

    Raises:
        ValueError: stages, losses, layer maps, lengths, labels, vocabularies that do not fit; the message names the
            value and the remedy.
        OSError: a file or folder that is not there or cannot be read.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "several processes were started (WORLD_SIZE > 1), but a run uses one: start it without torchrun"
        )
    stages = _jobs(recipe)
    if not stages.keys() & recipe.stages.keys():
        raise ValueError("every stage is skipped: leave at least one in")
    for name, stage in stages.items():
        _check_stage(name, stage, recipe)
    metric_of(recipe.task)
    base = recipe.teacher.path or recipe.teacher.finetuned
    if not base:
        raise ValueError("no teacher is named: give --teacher.path, a Hugging Face folder or Hub id")
    needs_task = recipe.task.path is not None
    finetuned = recipe.teacher.finetuned
    teacher = Encoder.load(base)
    tokenizer = load_tokenizer(base)
    for what, length in (("general", recipe.general.max_length), ("task", recipe.task.max_length)):
        if length > teacher.max_length:
            raise ValueError(
                f"{what}.max_length is {length}, but the teacher {base} takes {teacher.max_length} tokens at most"
            )
    student = make_student(teacher, recipe.student, recipe.seed)
    if recipe.student.path is not None:
        _check_vocabulary(recipe.student.path, tokenizer)
    _check_objectives(recipe, stages, student, teacher)
    task = load_task(recipe.task, tokenizer, recipe.seed) if needs_task else None
    general = any(stage.data == "general" for stage in stages.values())
    corpus = load_corpus(recipe.general, tokenizer, Path(recipe.cache_dir).expanduser()) if general else None
    inputs = Inputs(recipe, tokenizer, task, corpus, student, _first_projections(recipe, student, teacher))
    for name, stage in stages.items():
        try:
            Loader(inputs.data(stage), stage.tokens_per_batch, seed=0).plan(epoch=0)
        except ValueError as error:
            raise ValueError(f"stage {name}: {error}") from None
    if task is not None and finetuned is not None:
        _check_labels(finetuned, inputs)
    return inputs


def _jobs(recipe: Recipe) -> dict[str, Stage]:
    """Every stage that will run, by name; the fine-tuning and the control among them."""
    jobs = dict(recipe.stages)
    if recipe.task.path is not None:
        jobs |= {"control": recipe.control}
        if recipe.teacher.finetuned is None:
            jobs = {"finetune": recipe.finetune, **jobs}
    return {name: stage for name, stage in jobs.items() if not stage.skip}


def _check_stage(name: str, stage: Stage, recipe: Recipe) -> None:
    """What a stage asks for must be in the recipe."""
    active = active_weights(stage.losses)
    for option in ("epochs", "steps"):
        value = getattr(stage, option)
        if value is not None and value <= 0:
            raise ValueError(
                f"{name}.{option} is {value}: it must be above 0 (leave a stage out with --{name}.skip true)"
            )
    if stage.epochs is not None and stage.steps is not None:
        raise ValueError(f"{name} has both epochs ({stage.epochs}) and steps ({stage.steps}): give one")
    for option in ("tokens_per_batch", "gradient_accumulation_steps"):
        if getattr(stage, option) < 1:
            raise ValueError(f"{name}.{option} is {getattr(stage, option)}: it must be 1 or more")
    if stage.data == "general" and recipe.general.path is None:
        raise ValueError(
            f"stage {name} reads general text and none is named: give --general.path, or --{name}.skip true"
        )
    if stage.data == "task" and recipe.task.path is None:
        raise ValueError(f"stage {name} reads task data and none is named: give --task.path, or --{name}.skip true")
    if stage.data == "general" and "hard" in active:
        raise ValueError(
            f"stage {name} has the hard loss on general text, which has no labels: set {name}.losses.hard to 0"
        )
    taught = sorted(active.keys() - {"hard"})
    if stage.teacher == "none" and taught:
        raise ValueError(f"stage {name} has the losses {', '.join(taught)} but teacher: none: set {name}.teacher")
    if stage.teacher == "pretrained" and not recipe.teacher.path:
        raise ValueError(f"stage {name} learns from the pretrained teacher: give --teacher.path, or --{name}.skip true")
    if stage.teacher == "pretrained" and "soft" in active:
        raise ValueError(
            f"stage {name} has the soft loss and teacher: pretrained, whose head was never fine-tuned: "
            f"set {name}.teacher to finetuned"
        )
    if (
        stage.teacher == "finetuned"
        and recipe.teacher.finetuned is None
        and (recipe.finetune.skip or recipe.task.path is None)
    ):
        raise ValueError(
            f"stage {name} learns from the fine-tuned teacher, but its head was never fine-tuned: give "
            "--teacher.finetuned, or let the finetune stage run on --task.path"
        )


def _check_objectives(recipe: Recipe, stages: dict[str, Stage], student: Encoder, teacher: Encoder) -> None:
    for name, stage in stages.items():
        if stage.teacher != "none":
            try:
                layers = parse_layer_map(stage.layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
                objective = Objective(
                    stage.losses, layers, student, teacher, regression=recipe.task.kind == "regression"
                )
                for encoder, taps in ((student, objective.student_taps), (teacher, objective.teacher_taps)):
                    encoder.check_taps(taps)
            except ValueError as error:
                raise ValueError(f"stage {name}: {error}") from None


def _first_projections(recipe: Recipe, student: Encoder, teacher: Encoder) -> dict[str, Tensor]:
    """Projections with which a student made of the teacher's weights starts: back from the basis it was reduced to."""
    if recipe.student.path is not None or recipe.student.init == "random":
        return {}
    basis = teacher_basis(teacher, student.hidden_size).contiguous()
    names = ["shared", *(f"layer_{layer}" for layer in range(student.num_hidden_layers + 1))]
    weights = {f"projections.{name}.weight": basis.clone() for name in names}
    return weights | {f"projections.{name}.bias": torch.zeros(teacher.hidden_size) for name in names}


def _check_vocabulary(path: str, tokenizer: Tokenizer) -> None:
    """A student of its own must read the same token ids as the teacher."""
    other = load_tokenizer(path)
    if other.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"the student {path} and the teacher have tokenizers with different vocabularies: "
            "both must read the same token ids"
        )


def _check_labels(path: str, inputs: Inputs) -> None:
    """A fine-tuned teacher must have the task's classes, and name them as the data does or not at all."""
    teacher = Encoder.load(path, head="finetuned", num_labels=inputs.num_labels).model.config.id2label
    assert teacher is not None, "transformers names every class"
    own = inputs.id2label
    generic = {i: f"LABEL_{i}" for i in range(inputs.num_labels)}
    if (
        own is not None
        and teacher not in (own, generic)
        and own != generic
        and not all(n.isdigit() for n in own.values())
    ):
        raise ValueError(
            f"the teacher {path} has the classes {list(teacher.values())}, the task {list(own.values())}: "
            "give --task.label_names in the teacher's order"
        )
