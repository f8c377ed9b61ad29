"""All that a run reads: models, text and labels, loaded and checked before anything is trained or written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastdistill.checks import GENERAL
from fastdistill.data.augment import Augmented, load_augmented
from fastdistill.data.classes import Classes
from fastdistill.data.columns import complete
from fastdistill.data.corpus import load_corpus
from fastdistill.data.masking import Masking
from fastdistill.data.packing import Loader, Sequences
from fastdistill.data.rows import Rows
from fastdistill.data.tasks import TaskData, load_task, said_of_memory, tokenise, words_in_common
from fastdistill.metrics import metrics_of
from fastdistill.models.encoder import Encoder
from fastdistill.models.pretrained import Tokenizer
from fastdistill.models.reduction import teacher_basis
from fastdistill.recipe import HeadKind, Kind, Recipe, Stage, Task
from fastdistill.roles import load_models, named
from fastdistill.step import Runtime


@dataclass
class Inputs:
    """Tokenizer, data, the untrained student of a recipe with its projections, and a digest of its teachers.

    The recipe's task is complete here, and `said` tells what was found out about it. `augmented` is the task's text
    with its copies, where a stage trains on it, and `copied_from` says how it was made. `masked_head` is where a
    student's head for masked words starts from, where the teacher has one and a stage asks for it.
    """

    recipe: Recipe
    tokenizer: Tokenizer
    task: TaskData | None
    corpus: Sequences | None
    student: Encoder
    projections: dict[str, Tensor]
    teachers: bytes
    said: list[str]
    augmented: Sequences | None = None
    copied_from: str = ""
    masked_head: str | None = None

    @property
    def kind(self) -> Kind:
        """Of the task's labels."""
        assert self.recipe.task.kind is not None, "load_inputs completes the task"
        return self.recipe.task.kind

    def head(self, stage: Stage) -> HeadKind:
        """The head that the label losses of `stage` are about."""
        return "masked" if stage.data == "masked" else self.kind

    @property
    def num_labels(self) -> int:
        """Outputs of the task's head: the classes, start and end of a span, or 1 for regression."""
        assert self.task is not None
        return len(self.task.label_names) if self.task.label_names else 2 if self.kind == "span" else 1

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
            augmented = () if self.augmented is None else (self.augmented,)
            for split in (self.task.train, self.task.validation, self.task.test, *augmented):
                for values in (split.offsets, split.input_ids, split.labels, split.token_labels):
                    if values is not None:
                        digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def data_counts(self) -> dict[str, dict[str, int | str]]:
        """What was read, truncated and skipped of each part of the data, and where it came from."""
        parts: dict[str, dict[str, int | str]] = {}
        if self.corpus is not None:
            parts["general"] = {**self.corpus.counts, "origin": str(self.recipe.general.path)}
        if self.task is not None:
            for name in ("train", "validation", "test"):
                parts[name] = {**getattr(self.task, name).counts, "origin": self.task.origins[name]}
            for name, split in self.task.more.items():
                parts[f"test, {name}"] = {**split.counts, "origin": name}
        if self.augmented is not None:
            parts["augmented"] = {**self.augmented.counts, "origin": self.copied_from}
        return parts

    def data(self, stage: Stage) -> Sequences:
        """The training text of `stage`."""
        task = self.task.train if self.task else None
        data = {"task": task, "augmented": self.augmented}.get(stage.data, self.corpus)
        assert data is not None, "load_inputs checks that a stage's data is there"
        return data

    def loader(self, stage: Stage, seed: int) -> Loader:
        """Batches of the training text of `stage`, in an order that `seed` decides."""
        masking = Masking.of(self.tokenizer) if stage.data == "masked" else None
        return Loader(self.data(stage), stage.tokens_per_batch, seed, masking)

    def load_teachers(self, stage: Stage, finetuned: Path) -> list[Encoder]:
        """The teachers of `stage`, with heads where the losses ask for them; `finetuned` is what the run fine-tuned."""
        teacher = self.recipe.teacher
        if stage.teacher == "none":
            return []
        if stage.teacher == "pretrained":
            assert teacher.path is not None, "check_stage asks for it"
            if stage.losses.soft:
                return [Encoder.load(teacher.path, head="finetuned", kind=self.head(stage))]
            return [Encoder.load(teacher.path)]
        paths = (teacher.finetuned or finetuned, *teacher.others)
        if not stage.losses.soft:
            return [Encoder.load(path) for path in paths]
        first, *others = map(self.load_headed, paths)
        for other in others:
            other.order_labels(first.label_names, self.num_labels)
        return [first, *others]

    def load_headed(self, path: str | Path) -> Encoder:
        """A model fine-tuned on the task, its classes in the task's order.

        Raises:
            ValueError: it has other classes.
        """
        encoder = Encoder.load(path, head="finetuned", kind=self.kind)
        if self.task is not None:
            encoder.order_labels(self.task.label_names, self.num_labels)
        return encoder


def load_inputs(recipe: Recipe, say: Callable[[str], None] = print) -> Inputs:
    """Load what `recipe` names; `say` takes what is worth knowing while text is augmented, which may take long.

    Raises:
        ValueError: what `load_models` refuses, and rows, labels, classes or batches that do not fit.
        OSError: a file or folder that is not there or cannot be read.
    """
    completed, found = complete(recipe.task)
    recipe = replace(recipe, task=completed, stages={name: _on_gold(s, completed) for name, s in recipe.stages.items()})
    models = load_models(recipe)
    said = [*([found] if found else []), *models.said]
    tokenizer, student, finetuned, others = models.tokenizer, models.student, models.finetuned, models.others
    task = load_task(recipe.task, tokenizer, recipe.seed) if recipe.task.path is not None else None
    if task is not None:
        said, kind = said + task.said, recipe.task.kind
        if task.label_names:
            f1 = (
                f", f1 is that of {task.label_names[1]}"
                if len(task.label_names) == 2 and kind == "classification"
                else ""
            )
            said.append(f"task: {Classes(task.label_names)}{f1}")
        recipe = replace(recipe, task=replace(recipe.task, label_names=task.label_names))
        if "entity_f1" not in metrics_of(recipe.task) and kind == "tagging":  # tags are known only now
            said.append("task: no entities are scored, for tags are not O, B-..., I-..., E-... and S-...")
    general = any(stage.data in GENERAL for stage in models.stages.values())
    corpus = load_corpus(recipe.general, tokenizer, Path(recipe.cache_dir).expanduser()) if general else None
    projections = _first_projections(recipe, student, models.teacher)
    digest = _digest(*dict.fromkeys((models.teacher, models.masked, finetuned, *others.values())))
    inputs = Inputs(recipe, tokenizer, task, corpus, student, projections, digest, said)
    inputs.masked_head = models.base if models.masked.kind == "masked" else None
    if task is None:
        _check_budgets(models.stages, inputs)
        return inputs
    headed = {recipe.teacher.finetuned: finetuned} if recipe.teacher.finetuned else {}
    for path, encoder in (headed | others).items():
        if told := encoder.order_labels(task.label_names, inputs.num_labels):
            said.append(f"teacher: {path} {told}")
    for other in others.values():
        other.order_labels(finetuned.label_names if recipe.teacher.finetuned else None, inputs.num_labels)
    augmented = {name: stage for name, stage in models.stages.items() if stage.data == "augmented"}
    inputs.augmented = task.train if augmented else None  # its rows are among those that are made of them
    _check_budgets(models.stages, inputs)
    if augmented and task.copied:
        inputs.said.append("task: rows of train are copies of others already, so that no more are made")
        inputs.copied_from = f"{task.origins['train']}, as it is"
    elif augmented:
        copies = augment(recipe, task, say)
        train = task.rows["train"]
        assert isinstance(train.labels, np.ndarray), "check_augment refuses labels of single words"
        rows = Rows(copies.texts, copies.pairs, train.labels[copies.source_ids], copies.origin)
        in_train, in_all = words_in_common(train, task.rows), words_in_common(rows, task.rows)
        more = {name: count - in_train[name] for name, count in in_all.items()}
        inputs.said += said_of_memory(more, task.rows, "among the copies")
        read = tokenise(tokenizer, rows, recipe.task, task.label_names)
        inputs.augmented = replace(read, counts={**copies.counts, **read.counts})
        inputs.copied_from = copies.origin
        _check_budgets(augmented, inputs)
    return inputs


def _on_gold(stage: Stage, task: Task) -> Stage:
    """`stage` with the weight of soft given to hard, where `losses.regression_targets` says so."""
    losses = stage.losses
    if task.kind != "regression" or losses.regression_targets == "teacher" or stage.data in GENERAL:
        return stage
    return replace(stage, losses=replace(losses, soft=0.0, hard=losses.soft + losses.hard))


def augment(recipe: Recipe, task: TaskData, say: Callable[[str], None]) -> Augmented:
    """The task's rows of train and their copies, from the cache or made now; see `load_augmented`."""
    runtime = Runtime.of(recipe)
    return load_augmented(
        recipe.task, task.rows["train"], task.label_names, recipe.teacher.path, recipe.cache_dir, recipe.seed,
        device=runtime.device, dtype=runtime.teacher_dtype or runtime.dtype, say=say,
    )  # fmt: skip


def _check_budgets(stages: dict[str, Stage], inputs: Inputs) -> None:
    """Every sequence of a stage's text must fit into its batches."""
    for name, stage in stages.items():
        with named(name):
            inputs.loader(stage, seed=0).plan(epoch=0)


def _digest(*encoders: Encoder) -> bytes:
    """Changes when a weight does."""
    digest = hashlib.sha256()
    for encoder in encoders:
        for weight in encoder.state_dict().values():
            digest.update(weight.contiguous().numpy())
    return digest.digest()


def _first_projections(recipe: Recipe, student: Encoder, teacher: Encoder) -> dict[str, Tensor]:
    """Projections with which the student starts.

    One made of the teacher's weights: back from the basis it was reduced to. One of its own: those of the stage that
    left its folder, if one did.
    """
    if recipe.student.path is not None:
        left = Path(recipe.student.path).expanduser() / "objective.safetensors"
        return load_file(left) if left.exists() else {}
    if recipe.student.init == "random":
        return {}
    basis = teacher_basis(teacher, student.hidden_size).contiguous()
    names = ["shared", *(f"layer_{layer}" for layer in range(student.num_hidden_layers + 1))]
    weights = {f"projections.{name}.weight": basis.clone() for name in names}
    return weights | {f"projections.{name}.bias": torch.zeros(teacher.hidden_size) for name in names}
