"""The objective against formulas written out here, its errors, and the alive guard."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdistill.batch import Batch
from fastdistill.losses.attention import centered
from fastdistill.losses.objective import Objective, check_alive
from fastdistill.models.capture import Captured
from fastdistill.recipe import Losses
from fastdistill_kernels.soft_cross_entropy import chunked

LENGTHS = [1, 3, 3, 5]
LAYERS = ((1, 2), (2, 4))


@dataclass
class Shape:
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int


STUDENT, TEACHER = Shape(2, 8, 2), Shape(4, 12, 2)


def make_batch(labels: Tensor | None = None) -> Batch:
    T = sum(LENGTHS)
    return Batch(
        input_ids=torch.zeros(T, dtype=torch.long),
        position_ids=torch.cat([torch.arange(n) for n in LENGTHS]),
        token_type_ids=torch.zeros(T, dtype=torch.long),
        cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0).int(),
        max_seqlen=max(LENGTHS),
        labels=torch.tensor([0, 2, 1, 1]) if labels is None else labels,
    )


def make_captured(shape: Shape, seed: int, outputs: int = 3) -> Captured:
    generator = torch.Generator().manual_seed(seed)
    T, d = sum(LENGTHS), shape.hidden_size // shape.num_attention_heads

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).requires_grad_()

    layers = range(1, shape.num_hidden_layers + 1)
    q, k, v = ({n: draw(T, shape.num_attention_heads, d) for n in layers} for _ in range(3))
    hidden = {n: draw(T, shape.hidden_size) for n in (0, *layers)}
    return Captured(hidden=hidden, q=q, k=k, v=v, logits=draw(len(LENGTHS), outputs), scaling=1 / math.sqrt(d))


def evaluate(losses: Losses, **changes: Any) -> tuple[Tensor, dict[str, Tensor], Objective, Captured, Captured]:
    torch.manual_seed(0)
    objective = Objective(losses, LAYERS, STUDENT, TEACHER, **changes)
    student, teacher = make_captured(STUDENT, 1), make_captured(TEACHER, 2)
    loss, values = objective(student, teacher, make_batch())
    return loss, values, objective, student, teacher


def rows(packed: Tensor) -> list[Tensor]:
    return list(packed.split(LENGTHS))


def scores(captured: Captured, layer: int) -> list[Tensor]:
    """Scaled scores of every sequence, (H, n, n)."""
    return [
        torch.einsum("ihd,jhd->hij", q, k) * captured.scaling
        for q, k in zip(rows(captured.q[layer]), rows(captured.k[layer]), strict=True)
    ]


@pytest.mark.parametrize("kind", ["scores", "centered_scores", "probs"])
def test_attention_is_the_sum_over_layers_of_mean_squared_errors(kind: str) -> None:
    _, values, _, student, teacher = evaluate(Losses(attention=1.0, attention_kind=kind))  # type: ignore[arg-type]
    shown: dict[str, Callable[[Tensor], Tensor]] = {
        "scores": lambda a: a,
        "centered_scores": lambda a: a - a.mean(-1, keepdim=True),
        "probs": lambda a: a.softmax(-1),
    }
    expected = torch.zeros(())
    for m, n in LAYERS:
        maps = [[shown[kind](a) for a in scores(*side)] for side in ((student, m), (teacher, n))]
        errors = [((a - b) ** 2).flatten() for a, b in zip(*maps, strict=True)]
        expected = expected + torch.cat(errors).mean()
    torch.testing.assert_close(values["attention"], expected)
    q, k = student.q[2], student.k[2]
    found = torch.autograd.grad(values["attention"], [q, k], retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, [q, k]))


def test_centered_scores_ignore_what_softmax_does_not_see() -> None:
    objective = Objective(Losses(attention=1.0, attention_kind="centered_scores"), LAYERS, STUDENT, TEACHER)
    student, teacher = make_captured(STUDENT, 1), make_captured(TEACHER, 2)
    _, before = objective(student, teacher, make_batch())
    teacher.k[4] = teacher.k[4] + torch.randn(2, 6)  # adds q . offset to a whole row of scores
    _, after = objective(student, teacher, make_batch())
    torch.testing.assert_close(before, after)


def test_keys_in_half_precision_are_centered_by_means_in_float32() -> None:
    k, cu_seqlens = torch.randn(4000, 2, 3) + 5, torch.tensor([0, 1000, 4000], dtype=torch.int32)
    half = k.bfloat16()
    found = centered(half, cu_seqlens)
    assert found.dtype == torch.bfloat16
    expected = torch.cat([x - x.mean(0) for x in half.double().split([1000, 3000])])
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("projection", ["shared", "layer"])
def test_hidden_and_embedding_project_the_student(projection: str) -> None:
    losses = Losses(hidden=1.0, embedding=1.0, projection=projection)  # type: ignore[arg-type]
    _, values, objective, student, teacher = evaluate(losses)

    def error(m: int, n: int) -> Tensor:
        key = "shared" if projection == "shared" else f"layer_{m}"
        return F.mse_loss(objective.projections[key](student.hidden[m]), teacher.hidden[n])

    assert len(objective.projections) == (1 if projection == "shared" else 3)
    torch.testing.assert_close(values["hidden"], error(1, 2) + error(2, 4))
    torch.testing.assert_close(values["embedding"], error(0, 0))
    sums = values["hidden"] + values["embedding"], error(1, 2) + error(2, 4) + error(0, 0)
    torch.testing.assert_close(*(torch.autograd.grad(x, list(objective.parameters())) for x in sums))


def test_padded_means_divide_by_sequences_of_max_length() -> None:
    losses = Losses(attention=1.0, hidden=1.0, embedding=1.0, relation=1.0, relation_heads=2)
    _, tokens, *_ = evaluate(losses, max_length=7)
    _, padded, *_ = evaluate(replace(losses, normalize="padded"), max_length=7)
    ratios = dict.fromkeys(("hidden", "embedding", "relation"), sum(LENGTHS) / (len(LENGTHS) * 7))
    ratios["attention"] = sum(n * n for n in LENGTHS) / (len(LENGTHS) * 7**2)
    for name, ratio in ratios.items():
        torch.testing.assert_close(padded[name], tokens[name] * ratio)


@pytest.mark.parametrize(("pairs", "related"), [("qq,kk,vv", ["qq", "kk", "vv"]), (" qk , vv ", ["qk", "vv"])])
def test_relation_sums_kl_of_relations_of_the_last_pair(pairs: str, related: list[str]) -> None:
    _, values, objective, student, teacher = evaluate(Losses(relation=1.0, relation_heads=4, relation_pairs=pairs))

    def log_relations(captured: Captured, layer: int, pair: str) -> list[Tensor]:
        split = [
            [x.view(len(x), 4, -1).transpose(0, 1) for x in rows(getattr(captured, name)[layer].flatten(1))]
            for name in pair
        ]
        return [(a @ b.mT / math.sqrt(a.shape[-1])).log_softmax(-1) for a, b in zip(*split, strict=True)]

    expected = torch.zeros(())
    for pair in related:
        both = zip(log_relations(student, 2, pair), log_relations(teacher, 4, pair), strict=True)
        divergences = [(log_t.exp() * (log_t - log_s)).sum(-1).flatten() for log_s, log_t in both]
        expected = expected + torch.cat(divergences).mean()
    torch.testing.assert_close(values["relation"], expected)
    assert objective.teacher_taps.q == frozenset({4})


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
@pytest.mark.parametrize("distance", ["normalized", "squared"])
@pytest.mark.parametrize("projected", [False, True])
def test_patience_is_the_mean_distance_of_first_states(
    projected: bool, distance: Literal["normalized", "squared"], reduction: Literal["batchmean", "mean"]
) -> None:
    """The published program takes the mean of all elements, of states as they are or of their directions."""
    shape = Shape(4, 12 if projected else 8, 2)
    losses = Losses(patience=1.0, patience_distance=distance, patience_reduction=reduction)
    objective = Objective(losses, LAYERS, STUDENT, shape)
    assert list(objective.projections) == (["shared"] if projected else [])
    student, teacher = make_captured(STUDENT, 1), make_captured(shape, 2)
    _, values = objective(student, teacher, make_batch())
    project = objective.projections["shared"] if projected else nn.Identity()
    expected = []
    for m, n in LAYERS:
        a, b = (torch.stack([x[0] for x in rows(h)]) for h in (student.hidden[m], teacher.hidden[n]))
        a, b = (F.normalize(x, dim=1) if distance == "normalized" else x for x in (project(a), b))
        expected.append(F.mse_loss(a, b) if reduction == "mean" else ((a - b) ** 2).sum(1).mean())
    torch.testing.assert_close(values["patience"], torch.stack(expected).mean())
    assert objective.counts_sequences


@pytest.mark.parametrize("projected", [False, True])
def test_cosine_is_of_the_last_pair(projected: bool) -> None:
    shape = Shape(4, 12 if projected else 8, 2)
    objective = Objective(Losses(cosine=1.0, projection="layer"), LAYERS, STUDENT, shape)
    assert list(objective.projections) == (["layer_2"] if projected else [])
    student, teacher = make_captured(STUDENT, 1), make_captured(shape, 2)
    _, values = objective(student, teacher, make_batch())
    project = objective.projections["layer_2"] if projected else nn.Identity()
    expected = 1 - F.cosine_similarity(project(student.hidden[2]), teacher.hidden[4])
    torch.testing.assert_close(values["cosine"], expected.mean())
    assert objective.student_taps.hidden == frozenset({2})


def test_soft_and_hard_labels() -> None:
    _, values, _, student, teacher = evaluate(Losses(soft=1.0, hard=1.0, temperature=3.0))
    assert student.logits is not None
    assert teacher.logits is not None
    soft = 9 * F.cross_entropy(student.logits / 3, (teacher.logits / 3).softmax(-1))
    torch.testing.assert_close(values["soft"], soft)
    torch.testing.assert_close(values["hard"], F.cross_entropy(student.logits, torch.tensor([0, 2, 1, 1])))


def test_forms_of_soft_labels() -> None:
    how = Losses(soft=1.0, temperature=2.0, soft_form="kl", soft_reduction="mean", temperature_squared=False)
    _, values, _, student, teacher = evaluate(how)
    assert student.logits is not None
    assert teacher.logits is not None
    log_s, log_t = ((x / 2).log_softmax(-1) for x in (student.logits, teacher.logits))
    torch.testing.assert_close(values["soft"], (log_t.exp() * (log_t - log_s)).mean())


@pytest.mark.parametrize(
    "losses",
    [
        Losses(soft=0.25, hard=4.0),
        Losses(soft=0.3, soft_reduction="mean"),
        Losses(soft=0.6, hard=0.1, soft_reduction="mean"),
    ],
    ids=str,
)
def test_label_op_makes_the_gradient_that_arrives(losses: Losses, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: another one would cost a second pass over the logits."""
    walks, walk = [], chunked.SoftLabels._walk

    def watch(self: chunked.SoftLabels, *arguments: Any) -> Any:
        walks.append(self)
        return walk(self, *arguments)

    monkeypatch.setattr(chunked.SoftLabels, "_walk", watch)
    evaluate(losses)[0].backward()
    assert len(walks) == 1


def test_regression_labels_are_squared_errors() -> None:
    objective = Objective(Losses(soft=1.0, hard=1.0), LAYERS, STUDENT, TEACHER, kind="regression")
    student, teacher = make_captured(STUDENT, 1, outputs=1), make_captured(TEACHER, 2, outputs=1)
    gold = torch.tensor([0.5, 1.0, 4.0, 2.5])
    _, values = objective(student, teacher, make_batch(gold))
    assert student.logits is not None
    assert teacher.logits is not None
    torch.testing.assert_close(values["soft"], ((student.logits - teacher.logits) ** 2).mean())
    torch.testing.assert_close(values["hard"], ((student.logits[:, 0] - gold) ** 2).mean())


def test_loss_is_the_weighted_sum_and_terms_are_reported_unweighted() -> None:
    weights = {"attention": 0.5, "hidden": 2.0, "embedding": 3.0, "soft": 0.25, "hard": 4.0}
    loss, values, *_ = evaluate(Losses(**weights))  # type: ignore[arg-type]
    assert values.keys() == weights.keys()
    torch.testing.assert_close(loss, torch.stack([weights[k] * values[k] for k in values]).sum())


def test_taps_are_what_the_terms_need_and_nothing_else() -> None:
    *_, objective, _, _ = evaluate(Losses(attention=1.0, embedding=1.0))
    assert (objective.student_taps.q, objective.student_taps.v) == (frozenset({1, 2}), frozenset())
    assert (objective.teacher_taps.q, objective.teacher_taps.hidden) == (frozenset({2, 4}), frozenset({0}))
    assert not objective.teacher_taps.logits


def test_unequal_heads_are_refused_and_relations_offered() -> None:
    with pytest.raises(ValueError, match=r"student has 4 and the teacher 2.*relation"):
        Objective(Losses(attention=1.0), LAYERS, Shape(2, 8, 4), TEACHER)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (Losses(), "all loss weights are 0"),
        (Losses(hidden=-1.0), "weight of the hidden loss is -1.0"),
        (Losses(soft=math.nan), "weight of the soft loss is nan"),
        (Losses(relation=1.0, relation_heads=5), "relation_heads is 5.*student's width 8: .* such as 4"),
        (Losses(relation=1.0, relation_heads=4, relation_pairs="qq,kx"), "relation_pairs is 'qq,kx'"),
    ],
)
def test_bad_losses_are_refused(losses: Losses, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(losses, LAYERS, STUDENT, TEACHER)


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


def test_alive_guard_names_the_dead_term() -> None:
    student, projection = Student(), nn.Parameter(torch.ones(()))
    w = student.weight
    check_alive(lambda: {"hidden": (w**2).sum()}, student)
    dead: list[tuple[Callable[[], Tensor], str]] = [
        (lambda: (w**2).sum().detach(), "does not depend on the student"),
        (lambda: torch.zeros(()), "does not depend on the student"),
        (lambda: (w * 0).sum(), "gradient for the student has norm 0.0"),
        (lambda: (w * 0).sum() + 1, "gradient for the student has norm 0.0"),
        (lambda: w.sum() / 0, "soft loss is inf"),
        (lambda: w.sum() * math.nan, "soft loss is nan"),
        (lambda: (w - 1).abs().sqrt().sum() + 1, "norm nan"),
        (lambda: projection * 2, "norm 0.0"),  # moves the projections, not the student
    ]
    for term, message in dead:
        with pytest.raises(ValueError, match=message):
            check_alive(lambda term=term: {"hidden": (w**2).sum(), "soft": term()}, student)  # type: ignore[misc]


def test_alive_guard_lets_a_student_pass_that_equals_its_teacher_and_leaves_it_so() -> None:
    student = Student()
    check_alive(lambda: {"embedding": ((student.weight - 1) ** 2).sum()}, student)
    assert torch.equal(student.weight, torch.ones(3))


def test_latent_losses_without_a_teacher_are_refused() -> None:
    with pytest.raises(ValueError, match="losses hidden, soft need a teacher"):
        Objective(Losses(hidden=1.0, soft=1.0, hard=1.0), LAYERS, STUDENT, None)
