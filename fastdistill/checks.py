"""What can be said of a recipe before anything is read: its values, its choices, and what its stages need."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastdistill import ranks
from fastdistill.losses.objective import active_weights
from fastdistill.recipe import Augment, Recipe, Stage, Task
from fastdistill_kernels.checks import TEMPERATURES

GENERAL = ("general", "masked")  # data that is general text
AVERAGED = ("soft", "hidden", "embedding", "patience", "cosine")  # losses on what several teachers have a mean of
AUGMENTED = ("classification", "regression", "multilabel")  # kinds whose labels stay right when words are replaced
HEAVIEST = 1e6  # weight of a teacher
RESERVED = {"init", "finetune", "control", *(f.name for f in dataclasses.fields(Recipe))}


def plain(value: Any) -> Any:
    """A recipe, or a part of one, with its paths as text."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return value


def check_values(recipe: Recipe) -> None:
    """Refuse values that no run could use, whatever it reads.

    Raises:
        ValueError: a choice that there is not, an empty text, a number out of bounds, a stage's name.
    """
    for name in recipe.stages:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in RESERVED:
            raise ValueError(
                f"a stage cannot be called {name!r}: use lower-case letters, digits and _, and none of "
                f"{', '.join(sorted(RESERVED))}"
            )
    _check_choices("", recipe)
    for name, seed in (("seed", recipe.seed), ("task.split_seed", recipe.task.split_seed)):
        if seed is not None and not 0 <= seed < 2**32:
            raise ValueError(f"{name} is {seed}: it must be from 0 to {2**32 - 1}")
    if recipe.verify_cache < 0:
        raise ValueError(f"verify_cache is {recipe.verify_cache}: it must be 0 or more")
    if recipe.verify_cache and not recipe.teacher_cache:
        raise ValueError(
            f"verify_cache is {recipe.verify_cache}, but there is no cache: set teacher_cache, or leave it out"
        )
    others, weights = recipe.teacher.others, recipe.teacher.weights
    if weights is not None and (len(weights) != 1 + len(others) or not all(0 < w <= HEAVIEST for w in weights)):
        raise ValueError(
            f"teacher.weights is {list(weights)}: give {1 + len(others)} numbers above 0, and {HEAVIEST:g} at most, "
            "one for each teacher"
        )
    stages = [stage for stage in recipe.stages.values() if not stage.skip]
    asked = [
        stage for stage in stages if stage.teacher == "finetuned" and any(getattr(stage.losses, x) for x in AVERAGED)
    ]
    if (others or weights) and not asked:
        raise ValueError(
            f"teacher.{'others' if others else 'weights'} is given, but no stage has teacher: finetuned and a loss on "
            "logits or hidden states, of which several teachers have a mean: give a stage both, or leave the option out"
        )
    augment = [f.name for f in dataclasses.fields(Augment) if f.name != "paper_pairs"]
    given = [name for name in augment if getattr(recipe.task.augment, name) != getattr(Augment(), name)]
    if given and recipe.stages and not any(stage.data == "augmented" for stage in stages):
        raise ValueError(
            f"task.augment.{given[0]} is given, but no stage has data: augmented: give a stage that data, or leave the "
            "option out"
        )
    for option in ("logging_steps", "save_steps"):
        if getattr(recipe, option) < 1:
            raise ValueError(f"{option} is {getattr(recipe, option)}: it must be 1 or more")


def _check_choices(prefix: str, part: Any) -> None:
    """What jsonargparse checks on the command line, for recipes made in Python."""
    for name, kind in get_type_hints(type(part)).items():
        value, title = getattr(part, name), f"{prefix}{name}"
        allowed = [x for k in (kind, *get_args(kind)) if get_origin(k) is Literal for x in get_args(k)]
        if isinstance(value, dict):
            for stage, inner in value.items():
                _check_choices(f"{stage}.", inner)
        elif dataclasses.is_dataclass(value):
            _check_choices(f"{title}.", value)
        elif value is None and type(None) in get_args(kind):
            continue
        elif isinstance(value, tuple) and "" in value:
            raise ValueError(f"{title} is {list(value)}, of which one is empty: leave that out")
        elif value is None or value == "":
            raise ValueError(f"{title} is {'None' if value is None else 'empty'}: give a value, or leave it out")
        elif allowed and value not in allowed:
            near = difflib.get_close_matches(str(value), allowed, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{title} is {value!r}: choose one of {', '.join(allowed)}{hint}")


def _check_numbers(name: str, stage: Stage) -> None:
    """Numbers that no training could use."""
    coldest, hottest = TEMPERATURES
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
        (
            "losses.temperature",
            losses.temperature,
            coldest <= losses.temperature <= hottest,
            f"from {coldest:g} to {hottest:g}",
        ),
        ("losses.relation_heads", losses.relation_heads, losses.relation_heads >= 1, "1 or more"),
    ):
        if not good:
            raise ValueError(f"{name}.{option} is {value}: it must be {bound}")
    if accumulate % (size := ranks.world_size()):
        raise ValueError(
            f"{name}.gradient_accumulation_steps is {accumulate}, which {size} processes cannot share: make it a "
            f"multiple of {size}, and tokens_per_batch smaller by as much"
        )
    if stage.epochs is not None and stage.steps is not None:
        raise ValueError(f"{name} has both epochs ({stage.epochs}) and steps ({stage.steps}): give one")


def check_augment(task: Task) -> None:
    """Refuse tasks whose text cannot be augmented, and numbers that no augmentation could use."""
    augment = task.augment
    if task.kind not in AUGMENTED:
        raise ValueError(
            f"task.kind is {task.kind}, whose labels belong to single words: they would be wrong where augmentation "
            "replaces words; set data to task"
        )
    for option, good, bound in (
        ("copies", augment.copies is None or augment.copies >= 1, "1 or more"),
        ("probability", 0 < augment.probability <= 1, "above 0, and 1 at most"),
        ("candidates", augment.candidates >= 1, "1 or more"),
        ("max_length", augment.max_length >= 1, "1 or more"),
        (
            "tokens_per_batch",
            augment.tokens_per_batch >= augment.max_length,
            f"max_length ({augment.max_length}) or more",
        ),
    ):
        if not good:
            raise ValueError(f"task.augment.{option} is {getattr(augment, option)}: it must be {bound}")


def check_stage(name: str, stage: Stage, recipe: Recipe) -> None:
    """What a stage asks for must be in the recipe."""
    _check_numbers(name, stage)
    if stage.data == "augmented":
        check_augment(recipe.task)
    try:
        active = active_weights(stage.losses)
    except ValueError as error:
        raise ValueError(f"stage {name}: {error}") from None
    if name in ("finetune", "control") and (stage.teacher, stage.data, set(active)) != ("none", "task", {"hard"}):
        raise ValueError(f"{name} trains on gold labels alone: leave its teacher, data and losses as they are")
    for option in ("steps", "epochs"):
        if name == "control" and (given := getattr(stage, option)) is not None:
            raise ValueError(
                f"control.{option} is {given}, but the control takes as many steps as the stages on task data took: "
                "leave it out"
            )
    if active.keys() & {"soft", "hard"} and stage.data == "general" and recipe.task.path is None:
        raise ValueError(
            f"stage {name} has losses on labels, which no task names: give --task.path, or set {name}.losses.soft and "
            "hard to 0"
        )
    if stage.keep == "best" and not active.keys() & {"soft", "hard"}:
        raise ValueError(f"{name}.keep is best, but a student without a head has no validation score: set it to last")
    if stage.data in GENERAL and recipe.general.path is None:
        raise ValueError(
            f"stage {name} reads general text and none is named: give --general.path, or --{name}.skip true"
        )
    if stage.data in ("task", "augmented") and recipe.task.path is None:
        raise ValueError(f"stage {name} reads task data and none is named: give --task.path, or --{name}.skip true")
    if stage.data == "general" and "hard" in active:
        raise ValueError(
            f"stage {name} has the hard loss on general text, which has no labels: set {name}.losses.hard to 0"
        )
    if stage.data == "masked" and not active.keys() & {"soft", "hard"}:
        raise ValueError(
            f"stage {name} reads masked text and predicts nothing of it: give {name}.losses.hard or soft a weight, or "
            f"set {name}.data to general"
        )
    if stage.data == "masked" and stage.keep == "best":
        raise ValueError(f"{name}.keep is best, but masked text has no validation score: set it to last")
    taught = sorted(active.keys() - {"hard"})
    if stage.teacher == "none" and taught:
        raise ValueError(f"stage {name} has the losses {', '.join(taught)} but teacher: none: set {name}.teacher")
    if stage.teacher == "pretrained" and not recipe.teacher.path:
        raise ValueError(f"stage {name} learns from the pretrained teacher: give --teacher.path, or --{name}.skip true")
    if stage.data == "masked" and stage.teacher == "finetuned" and "soft" in active:
        raise ValueError(
            f"stage {name} has the soft loss on masked text, and a fine-tuned teacher predicts no masked words: set "
            f"{name}.teacher to pretrained"
        )
    if stage.teacher == "pretrained" and stage.data != "masked" and "soft" in active:
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
