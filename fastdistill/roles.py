"""The models of a recipe: loaded, and checked against one another and the stages, without the data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fastdistill.checks import AVERAGED, GENERAL, check_stage
from fastdistill.losses.objective import Objective
from fastdistill.metrics import metrics_of
from fastdistill.models.capture import Taps
from fastdistill.models.encoder import Encoder
from fastdistill.models.layermap import parse_layer_map
from fastdistill.models.pretrained import Tokenizer, check_same_tokens, load_tokenizer
from fastdistill.models.student import make_student
from fastdistill.recipe import HeadKind, Recipe, Stage


@dataclass(frozen=True, eq=False)
class Models:
    """The models of a recipe, which fit one another and all stages that will run.

    `base` is where the teacher without a head lies. It is `masked` and `finetuned` too where nothing asks for a head;
    `others` teach beside it, by path. The student is untrained.
    """

    stages: dict[str, Stage]
    tokenizer: Tokenizer
    base: str
    teacher: Encoder
    masked: Encoder
    finetuned: Encoder
    others: dict[str, Encoder]
    student: Encoder
    said: list[str]


def load_models(recipe: Recipe) -> Models:
    """Load the models of `recipe`, whose task is complete, and check all that can be checked without the data.

    Raises:
        ValueError: stages, losses, layer maps, lengths, vocabularies that do not fit; the message names the value and
            the remedy.
        OSError: a file or folder that is not there or cannot be read.
    """
    said: list[str] = []
    stages = _jobs(recipe)
    if not stages.keys() & recipe.stages.keys():
        raise ValueError("every stage is skipped: leave at least one in")
    for name, stage in stages.items():
        check_stage(name, stage, recipe)
    metrics_of(recipe.task)
    base = recipe.teacher.path or recipe.teacher.finetuned
    if not base:
        raise ValueError("no teacher is named: give --teacher.path, a Hugging Face folder or Hub id")
    teacher = Encoder.load(base)
    for name, stage in stages.items():
        if stage.losses.attention or stage.losses.relation:
            with named(name):
                teacher.check_taps(Taps(q=frozenset({1})))
    tokenizer = load_tokenizer(base)
    if max(tokenizer.get_vocab().values()) >= teacher.vocab_size:
        raise ValueError(
            f"the tokenizer of {base} has ids up to {max(tokenizer.get_vocab().values())}, its model embeds "
            f"{teacher.vocab_size}: they do not belong together"
        )
    student = make_student(teacher, recipe.student, recipe.seed)
    if base != recipe.teacher.path and recipe.student.path is None and recipe.student.init == "teacher":
        said.append(
            f"the student starts from the fine-tuned weights of {base}, and so would a control: they know the task; "
            "give --teacher.path too, the pretrained model, to start from that"
        )
    for path in (recipe.student.path, recipe.teacher.finetuned):
        if path not in (None, base):
            check_same_tokens(path, tokenizer)
    kind, finetuned, masked = recipe.task.kind or "classification", teacher, teacher
    if recipe.teacher.finetuned:
        finetuned = Encoder.load(recipe.teacher.finetuned, head="finetuned", kind=kind)
    on_masked = [stage for stage in stages.values() if stage.data == "masked"]
    try:
        masked = Encoder.load(base, head="finetuned", kind="masked") if on_masked else teacher
    except ValueError:
        if any(stage.losses.soft for stage in on_masked):
            raise
        said.append(f"the student's head for masked words starts at random, for {base} has none")
    if finetuned.vocab_size != teacher.vocab_size:
        raise ValueError(
            f"the fine-tuned teacher has a vocabulary of {finetuned.vocab_size}, the pretrained one of "
            f"{teacher.vocab_size}: both must read the same token ids"
        )
    others = {path: Encoder.load(path, head="finetuned", kind=kind) for path in recipe.teacher.others}
    averaged = {x for s in stages.values() if s.teacher == "finetuned" for x in AVERAGED if getattr(s.losses, x)}
    for path, other in others.items():
        _check_alike(path, other, finetuned, sorted(averaged - {"soft"}))
        check_same_tokens(path, tokenizer)
    longest = min(one.max_length for one in (teacher, finetuned, *others.values(), student))
    for what in {"general" if stage.data in GENERAL else "task" for stage in stages.values()}:
        if (length := getattr(recipe, what).max_length) > longest:
            raise ValueError(f"{what}.max_length is {length}, but teacher and student take {longest} tokens at most")
    said += _check_objectives(recipe, stages, student, {"pretrained": masked, "finetuned": finetuned})
    said += _of_control(stages)
    return Models(stages, tokenizer, base, teacher, masked, finetuned, others, student, said)


def max_length(recipe: Recipe, stage: Stage) -> int | None:
    """The most tokens that a sequence of the text of `stage` may have."""
    return (recipe.general if stage.data in GENERAL else recipe.task).max_length


@contextmanager
def named(stage: str) -> Iterator[None]:
    """Errors say which stage they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"stage {stage}: {error}") from None


def _jobs(recipe: Recipe) -> dict[str, Stage]:
    """Every stage that will run, by name; the fine-tuning and the control among them."""
    jobs = dict(recipe.stages)
    if recipe.task.path is not None:
        jobs |= {"control": recipe.control}
        if recipe.teacher.finetuned is None:
            jobs = {"finetune": recipe.finetune, **jobs}
    return {name: stage for name, stage in jobs.items() if not stage.skip}


def _check_objectives(
    recipe: Recipe, stages: dict[str, Stage], student: Encoder, teachers: dict[str, Encoder]
) -> list[str]:
    """Layer maps, heads and taps of every stage that has a teacher; returns what is to be said of them."""
    said = []
    for name, stage in stages.items():
        if stage.teacher == "none":
            continue
        teacher = teachers[stage.teacher]
        with named(name):
            layers = parse_layer_map(stage.layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
            kind: HeadKind = "masked" if stage.data == "masked" else recipe.task.kind or "classification"
            length = max_length(recipe, stage)
            objective = Objective(stage.losses, layers, student, teacher, kind=kind, max_length=length)
            with torch.random.fork_rng():
                headed = student.with_fresh_head(kind, 2) if objective.student_taps.logits else student
            headed.check_taps(objective.student_taps)
            teacher.check_taps(objective.teacher_taps)
        losses = stage.losses
        maps = layers if losses.attention else layers[-1:] if losses.relation and "qk" in losses.relation_pairs else ()
        reach = min((x for _, layer in maps if (x := teacher.reach(layer)) is not None), default=length)
        if length is not None and reach is not None and reach < length - 1:
            said.append(
                f"{name}: a layer of the teacher sees {reach} tokens to each side, but attention maps are compared "
                f"over all pairs of tokens: map layers that see all, or lower max_length from {length} to {reach + 1}"
            )
    return said


def _of_control(stages: dict[str, Stage]) -> list[str]:
    """What is to be said where the control, which takes the steps of the stages on task data, has other batches."""
    if "control" not in stages:
        return []
    said = []
    on_task = [s for n, s in stages.items() if n not in ("finetune", "control") and s.data in ("task", "augmented")]
    for option in ("tokens_per_batch", "gradient_accumulation_steps"):
        own, others = getattr(stages["control"], option), {getattr(stage, option) for stage in on_task}
        if others - {own}:
            remedy = f"; for the same set --control.{option} {min(others)}" if len(others) == 1 else ""
            said.append(
                f"control: {option} is {own}, that of the stages on task data {' or '.join(map(str, sorted(others)))}: "
                f"as many steps are not as much text{remedy}"
            )
    return said


def _check_alike(path: str, other: Encoder, first: Encoder, averaged: list[str]) -> None:
    """All teachers read the same tokens; those whose states are `averaged`, for these losses, have the same shape."""
    for name in ("vocab_size", *(("num_hidden_layers", "hidden_size") if averaged else ())):
        if getattr(other, name) != getattr(first, name):
            also = f", or set the weights of {', '.join(averaged)} to 0" if name != "vocab_size" else ""
            raise ValueError(
                f"the teachers must have one {name}, but {path} has {getattr(other, name)}, the first "
                f"{getattr(first, name)}: leave it out{also}"
            )
