"""The objective of a stage: the weighted sum of its loss terms, and the projections that belong to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from fastdistill.batch import Batch
from fastdistill.losses.attention import Attention
from fastdistill.losses.hidden import Cosine, Hidden, Patience
from fastdistill.losses.labels import Labels
from fastdistill.losses.relation import Relation
from fastdistill.models.capture import Captured, Taps
from fastdistill.recipe import HeadKind, Losses

TERMS = ("attention", "hidden", "embedding", "relation", "patience", "cosine", "soft", "hard")


class ModelShape(Protocol):
    """What the objective must know of a model; `Encoder` has it."""

    num_hidden_layers: int
    num_attention_heads: int
    hidden_size: int


class Term(Protocol):
    student_taps: Taps
    teacher_taps: Taps

    def __call__(self, student: Captured, teacher: Captured, batch: Batch) -> dict[str, Tensor]: ...

    def entries(self, batch: Batch) -> Tensor | int:
        """What the term's mean over `batch` divides by, or a multiple of it that is the same for all batches."""


class Objective(nn.Module):
    """``L = sum_k weight_k term_k``; every term is reported by name, unweighted.

    The projections are parameters of the objective, trained with the student but no part of it. `max_length`, the most
    tokens that a sequence of the text may have, is what `losses.normalize: padded` divides by.

    Raises:
        ValueError: no term has a weight, a weight is negative or not finite, or the attention term meets models with
            different head counts (the relation term does not need equal ones).
    """

    def __init__(
        self,
        losses: Losses,
        layers: tuple[tuple[int, int], ...],
        student: ModelShape,
        teacher: ModelShape | None,
        *,
        kind: HeadKind = "classification",
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        assert max_length or losses.normalize == "tokens", "padded means are over sequences of max_length"
        self.pad_to = max_length if losses.normalize == "padded" else None
        self.weights = active_weights(losses)
        self.counts_sequences = bool(losses.soft or losses.hard or losses.patience) or losses.normalize == "padded"
        self.projections = nn.ModuleDict()
        self.terms: list[Term] = []
        taught = sorted(self.weights.keys() - {"hard"})
        if teacher is not None:
            self._add_latent(losses, layers, student, teacher)
        elif taught:
            raise ValueError(f"the losses {', '.join(taught)} need a teacher, and there is none")
        if losses.soft or losses.hard:
            self.terms.append(Labels(losses, kind=kind))
        self.student_taps, self.teacher_taps = Taps(), Taps()
        for term in self.terms:
            self.student_taps |= term.student_taps
            self.teacher_taps |= term.teacher_taps

    def _add_latent(
        self, losses: Losses, layers: tuple[tuple[int, int], ...], student: ModelShape, teacher: ModelShape
    ) -> None:
        if losses.attention:
            if student.num_attention_heads != teacher.num_attention_heads:
                raise ValueError(
                    f"the attention loss compares heads one to one, but the student has {student.num_attention_heads} "
                    f"and the teacher {teacher.num_attention_heads}: give the student as many, or set its weight to 0 "
                    "and that of the relation loss to 1, which takes any head counts"
                )
            self.terms.append(Attention(layers, kind=losses.attention_kind, pad_to=self.pad_to))
        if losses.relation:
            for who, width in (("student", student.hidden_size), ("teacher", teacher.hidden_size)):
                if width % losses.relation_heads:
                    both = math.gcd(student.hidden_size, teacher.hidden_size)
                    fit = max(n for n in range(1, min(losses.relation_heads, both) + 1) if not both % n)
                    raise ValueError(
                        f"relation_heads is {losses.relation_heads}, which does not divide the {who}'s width {width}: "
                        f"give a number that divides both widths, such as {fit}"
                    )
            self.terms.append(
                Relation(
                    layers[-1],
                    pairs=losses.relation_pairs,
                    heads=losses.relation_heads,
                    pad_to=self.pad_to,
                )
            )
        for name, weight, pairs in (("hidden", losses.hidden, layers), ("embedding", losses.embedding, ((0, 0),))):
            if weight:
                project = [self._projection(m, losses, student, teacher) for m, _ in pairs]
                self.terms.append(Hidden(name, pairs, project, pad_to=self.pad_to))
        equal = student.hidden_size == teacher.hidden_size
        if losses.patience:
            project = [] if equal else [self._projection(m, losses, student, teacher) for m, _ in layers]
            distance, reduction = losses.patience_distance, losses.patience_reduction
            self.terms.append(Patience(layers, project, distance=distance, reduction=reduction))
        if losses.cosine:
            project = [] if equal else [self._projection(layers[-1][0], losses, student, teacher)]
            self.terms.append(Cosine(layers[-1], project))

    def _projection(self, layer: int, losses: Losses, student: ModelShape, teacher: ModelShape) -> nn.Linear:
        key = "shared" if losses.projection == "shared" else f"layer_{layer}"
        if key not in self.projections:
            self.projections[key] = nn.Linear(student.hidden_size, teacher.hidden_size)
        projection = self.projections[key]
        assert isinstance(projection, nn.Linear)
        return projection

    def forward(
        self, student: Captured, teacher: Captured | None, batch: Batch, whole: Batch | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and every term unweighted, as scalars on the device.

        Of a piece of a batch, where `whole` is given, its share: those of all pieces add up to that of the whole.
        """
        values: dict[str, Tensor] = {}
        for term in self.terms:
            found = term(student, teacher, batch)  # type: ignore[arg-type]  # None meets label terms alone
            if whole is not None:
                share = term.entries(batch) / term.entries(whole)
                found = {name: share * value for name, value in found.items()}
            values |= found
        loss = torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
        return loss, values


def read_layers(losses: Losses, layers: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """The pairs of `layers` whose maps or states some term compares."""
    if losses.attention or losses.hidden or losses.patience:
        return layers
    return layers[-1:] if losses.relation or losses.cosine else ()


def active_weights(losses: Losses) -> dict[str, float]:
    """Names and weights of the terms that a stage computes."""
    named = {k: getattr(losses, k) for k in TERMS}
    for name, weight in named.items():
        if weight < 0 or not math.isfinite(weight):
            raise ValueError(f"the weight of the {name} loss is {weight}: it must be 0 or more")
    active = {name: weight for name, weight in named.items() if weight}
    if not active:
        raise ValueError("all loss weights are 0: give at least one term a weight, such as hidden: 1.0")
    return active


def check_alive(terms: Callable[[], dict[str, Tensor]], student: nn.Module) -> None:
    """Raise ValueError unless every term is finite and gives the student a finite, non-zero gradient.

    A term can be dead without an error: an empty tuple zipped away, a detached tensor, a label nobody predicts. It
    would be reported as a falling or constant number and teach nothing. A term that is exactly 0, as of a student
    copied from its teacher, is judged on a slightly moved student, which is then moved back.

    Args:
        terms: computes the terms of one batch from the student as it is.
        student: whose gradients count; those of projections do not.
    """
    parameters = list(student.parameters())
    values = terms()
    _check_gradients({name: value for name, value in values.items() if value != 0}, parameters)
    zero = [name for name, value in values.items() if value == 0]
    if zero:
        kept = [p.detach().clone() for p in parameters]
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in parameters:
                p.add_(1e-2 * torch.randn(p.shape, generator=noise).to(p))
        try:
            moved = terms()
            _check_gradients({name: moved[name] for name in zero}, parameters)
        finally:
            with torch.no_grad():
                for p, before in zip(parameters, kept, strict=True):
                    p.copy_(before)


def _check_gradients(values: dict[str, Tensor], parameters: list[nn.Parameter]) -> None:
    for name, value in values.items():
        if not torch.isfinite(value):
            raise ValueError(f"the {name} loss is {value.item()} on the first batch: check its inputs and precision")
        if not value.requires_grad:
            raise ValueError(f"the {name} loss does not depend on the student: it would teach nothing")
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        norm = torch.stack([g.float().norm() for g in gradients if g is not None] or [torch.zeros(())]).norm()
        if not torch.isfinite(norm) or norm == 0:
            raise ValueError(
                f"the {name} loss is {value.item():.4g} on the first batch, but its gradient for the student has norm "
                f"{norm.item()}: the term is dead; check the models and data, or set its weight to 0"
            )
