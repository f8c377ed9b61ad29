"""All that a run reads, loaded and checked before anything is trained or written."""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
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
    """Tokenizer, data, the untrained student of a recipe with its projections, and a digest of its teachers."""

    recipe: Recipe
    tokenizer: Tokenizer
    task: TaskData | None
    corpus: Sequences | None
    student: Encoder
    projections: dict[str, Tensor]
    teachers: bytes

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

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the tokens, labels, splits or teachers of the run do; of a corpus its ends and lengths."""
        digest = hashlib.sha256(self.teachers)
        if self.corpus is not None:
            for part in (self.corpus.offsets, self.corpus.input_ids[:100_000], self.corpus.input_ids[-100_000:]):
                digest.update(np.ascontiguousarray(part).tobytes())
        if self.task is not None:
            for split in (self.task.train, self.task.validation, self.task.test):
                assert split.labels is not None
                for part in (split.offsets, split.input_ids, split.labels):
                    digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

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
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == "init":
            raise ValueError(f"a stage cannot be called {name!r}: use lower-case letters, digits and _, and not init")
        _check_stage(name, stage, recipe)
    if recipe.seed < 0:
        raise ValueError(f"seed is {recipe.seed}: it must be 0 or more")
    for option in ("logging_steps", "save_steps"):
        if getattr(recipe, option) < 1:
            raise ValueError(f"{option} is {getattr(recipe, option)}: it must be 1 or more")
    metric_of(recipe.task)
    base = recipe.teacher.path or recipe.teacher.finetuned
    if not base:
        raise ValueError("no teacher is named: give --teacher.path, a Hugging Face folder or Hub id")
    needs_task = recipe.task.path is not None
    teacher = Encoder.load(base)
    tokenizer = load_tokenizer(base)
    if max(tokenizer.get_vocab().values()) >= teacher.vocab_size:
        raise ValueError(
            f"the tokenizer of {base} has ids up to {max(tokenizer.get_vocab().values())}, its model embeds "
            f"{teacher.vocab_size}: they do not belong together"
        )
    student = make_student(teacher, recipe.student, recipe.seed)
    for path in (recipe.student.path, recipe.teacher.finetuned):
        if path not in (None, base):
            _check_vocabulary(path, tokenizer)
    longest = min(teacher.max_length, student.max_length)
    for what in {"general" if stage.data == "general" else "task" for stage in stages.values()}:
        if (length := getattr(recipe, what).max_length) > longest:
            raise ValueError(f"{what}.max_length is {length}, but teacher and student take {longest} tokens at most")
    finetuned = Encoder.load(recipe.teacher.finetuned, head="finetuned") if recipe.teacher.finetuned else teacher
    if finetuned.vocab_size != teacher.vocab_size:
        raise ValueError(
            f"the fine-tuned teacher has a vocabulary of {finetuned.vocab_size}, the pretrained one of "
            f"{teacher.vocab_size}: both must read the same token ids"
        )
    _check_objectives(recipe, stages, student, {"pretrained": teacher, "finetuned": finetuned})
    task = load_task(recipe.task, tokenizer, recipe.seed) if needs_task else None
    general = any(stage.data == "general" for stage in stages.values())
    corpus = load_corpus(recipe.general, tokenizer, Path(recipe.cache_dir).expanduser()) if general else None
    projections = _first_projections(recipe, student, teacher)
    inputs = Inputs(
        recipe, tokenizer, task, corpus, student, projections, _digest(*dict.fromkeys((teacher, finetuned)))
    )
    for name, stage in stages.items():
        try:
            Loader(inputs.data(stage), stage.tokens_per_batch, seed=0).plan(epoch=0)
        except ValueError as error:
            raise ValueError(f"stage {name}: {error}") from None
    if task is not None and recipe.teacher.finetuned is not None:
        _check_labels(recipe.teacher.finetuned, finetuned, inputs)
    return inputs


def _digest(*encoders: Encoder) -> bytes:
    """Changes when a weight does."""
    digest = hashlib.sha256()
    for encoder in encoders:
        for weight in encoder.state_dict().values():
            digest.update(weight.contiguous().numpy())
    return digest.digest()


def _jobs(recipe: Recipe) -> dict[str, Stage]:
    """Every stage that will run, by name; the fine-tuning and the control among them."""
    jobs = dict(recipe.stages)
    if recipe.task.path is not None:
        jobs |= {"control": recipe.control}
        if recipe.teacher.finetuned is None:
            jobs = {"finetune": recipe.finetune, **jobs}
    return {name: stage for name, stage in jobs.items() if not stage.skip}


def _check_values(name: str, stage: Stage) -> None:
    """Numbers that no training could use."""
    optim, losses, accumulate = stage.optim, stage.losses, stage.gradient_accumulation_steps
    for option, value, good, bound in (
        ("epochs", stage.epochs, stage.epochs is None or 0 < stage.epochs <= 10_000, "above 0, and 10,000 at most"),
        ("steps", stage.steps, stage.steps is None or stage.steps > 0, "above 0"),
        ("tokens_per_batch", stage.tokens_per_batch, stage.tokens_per_batch >= 1, "1 or more"),
        ("gradient_accumulation_steps", accumulate, accumulate >= 1, "1 or more"),
        ("optim.learning_rate", optim.learning_rate, 0 < optim.learning_rate < math.inf, "above 0"),
        ("optim.warmup_ratio", optim.warmup_ratio, 0 <= optim.warmup_ratio <= 1, "from 0 to 1"),
        ("optim.weight_decay", optim.weight_decay, 0 <= optim.weight_decay < math.inf, "0 or more"),
        ("optim.max_grad_norm", optim.max_grad_norm, optim.max_grad_norm >= 0, "0 (no clipping) or more"),
        ("losses.temperature", losses.temperature, 0 < losses.temperature < math.inf, "above 0"),
        ("losses.relation_heads", losses.relation_heads, losses.relation_heads >= 1, "1 or more"),
    ):
        if not good:
            raise ValueError(f"{name}.{option} is {value}: it must be {bound}")
    if stage.epochs is not None and stage.steps is not None:
        raise ValueError(f"{name} has both epochs ({stage.epochs}) and steps ({stage.steps}): give one")


def _check_stage(name: str, stage: Stage, recipe: Recipe) -> None:
    """What a stage asks for must be in the recipe."""
    _check_values(name, stage)
    try:
        active = active_weights(stage.losses)
    except ValueError as error:
        raise ValueError(f"stage {name}: {error}") from None
    if name in ("finetune", "control") and (stage.teacher, stage.data, set(active)) != ("none", "task", {"hard"}):
        raise ValueError(f"{name} trains on gold labels alone: leave its teacher, data and losses as they are")
    if stage.keep == "best" and not active.keys() & {"soft", "hard"}:
        raise ValueError(f"{name}.keep is best, but a student without a head has no validation score: set it to last")
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


def _check_objectives(recipe: Recipe, stages: dict[str, Stage], student: Encoder, teachers: dict[str, Encoder]) -> None:
    """Layer maps, heads and taps of every stage that has a teacher."""
    for name, stage in stages.items():
        if stage.teacher == "none":
            continue
        teacher = teachers[stage.teacher]
        try:
            layers = parse_layer_map(stage.layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
            objective = Objective(stage.losses, layers, student, teacher, regression=recipe.task.kind == "regression")
            with torch.random.fork_rng():
                headed = student.with_fresh_head(2) if objective.student_taps.logits else student
            headed.check_taps(objective.student_taps)
            teacher.check_taps(objective.teacher_taps)
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
            f"{path} and the teacher have tokenizers with different vocabularies: both must read the same token ids"
        )


def _check_labels(path: str, encoder: Encoder, inputs: Inputs) -> None:
    """A fine-tuned teacher must have the task's classes, and name them as the data does or not at all."""
    teacher = encoder.model.config.id2label
    assert teacher is not None, "transformers names every class"
    if len(teacher) != inputs.num_labels:
        raise ValueError(f"{path} was fine-tuned on {len(teacher)} labels, the task has {inputs.num_labels}")
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
