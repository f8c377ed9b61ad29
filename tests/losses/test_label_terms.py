"""The label terms of every kind against formulas written out here, whole and in pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastdistill.batch import Batch
from fastdistill.losses.labels import Labels
from fastdistill.models.capture import Captured
from fastdistill.recipe import HeadKind, Losses

LENGTHS = [2, 3, 5, 5, 9]
T, B, C, TAU = sum(LENGTHS), len(LENGTHS), 4, 3.0
LABELLED = torch.tensor([1, 3, 4, 11, 12, 20])
KINDS: list[HeadKind] = ["classification", "regression", "multilabel", "tagging", "masked", "span"]


def draw(*size: int, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def make_batch(kind: HeadKind) -> Batch:
    generator = torch.Generator().manual_seed(5)
    batch = Batch(
        input_ids=torch.zeros(T, dtype=torch.long),
        position_ids=torch.cat([torch.arange(n) for n in LENGTHS]),
        token_type_ids=torch.zeros(T, dtype=torch.long),
        cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0).int(),
        max_seqlen=max(LENGTHS),
    )
    labels = {
        "classification": torch.randint(0, C, (B,), generator=generator),
        "regression": draw(B, seed=7),
        "multilabel": (draw(B, C, seed=7) > 0).float(),
        "span": torch.tensor([[0, 1], [2, 2], [0, 0], [1, 4], [3, 8]]),
    }
    if kind in labels:
        return replace(batch, labels=labels[kind])
    return replace(batch, labelled=LABELLED, token_labels=torch.randint(0, C, (len(LABELLED),), generator=generator))


def logits(kind: HeadKind, seed: int) -> Tensor:
    shape = {"regression": (B, 1), "tagging": (len(LABELLED), C), "masked": (len(LABELLED), C), "span": (T, 2)}
    return draw(*shape.get(kind, (B, C)), seed=seed)


def values(kind: HeadKind, batch: Batch | None = None, **options: Any) -> tuple[dict[str, Tensor], Tensor]:
    z_s = logits(kind, 1).requires_grad_()
    term = Labels(Losses(**({"soft": 1.0, "hard": 1.0} | options), temperature=TAU), kind=kind)
    return term(Captured(logits=z_s), Captured(logits=logits(kind, 2)), batch or make_batch(kind)), z_s


def by_span(what: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """The mean over sequences and over start and end of `what` of z_s, z_t and the label."""
    sequences = zip(*(logits("span", seed).split(LENGTHS) for seed in (1, 2)), make_batch("span").labels, strict=True)  # type: ignore[arg-type]
    return torch.stack([what(s[:, e], t[:, e], y[e]) for s, t, y in sequences for e in (0, 1)]).mean()


def soft_ce(z_s: Tensor, z_t: Tensor) -> Tensor:
    return TAU**2 * F.cross_entropy(z_s / TAU, (z_t / TAU).softmax(-1))


def expected(kind: HeadKind) -> dict[str, Tensor]:
    z_s, z_t, batch = logits(kind, 1), logits(kind, 2), make_batch(kind)
    if kind == "regression":
        return {"soft": ((z_s - z_t) ** 2).mean(), "hard": ((z_s[:, 0] - batch.labels) ** 2).mean()}  # type: ignore[operator]
    if kind == "span":
        return {"soft": by_span(lambda s, t, y: soft_ce(s, t)), "hard": by_span(lambda s, t, y: F.cross_entropy(s, y))}
    if kind == "multilabel":

        def bce(z: Tensor, p: Tensor) -> Tensor:
            return -(p * z.sigmoid().log() + (1 - p) * (1 - z.sigmoid()).log()).mean()

        assert batch.labels is not None
        return {"soft": TAU**2 * bce(z_s / TAU, (z_t / TAU).sigmoid()), "hard": bce(z_s, batch.labels)}
    gold = batch.labels if kind == "classification" else batch.token_labels
    assert gold is not None
    return {"soft": soft_ce(z_s, z_t), "hard": F.cross_entropy(z_s, gold)}


@pytest.mark.parametrize("kind", KINDS)
def test_soft_and_hard_labels(kind: HeadKind) -> None:
    found, z_s = values(kind)
    assert found.keys() == {"soft", "hard"}
    for name, value in expected(kind).items():
        torch.testing.assert_close(found[name], value, msg=name)
        (gradient,) = torch.autograd.grad(found[name], z_s, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.norm() > 0
    for alone in ("soft", "hard"):
        one, _ = values(kind, **{other: 0.0 for other in ("soft", "hard") if other != alone})
        assert one.keys() == {alone}
        torch.testing.assert_close(one[alone], found[alone])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "regression"])
def test_kl_is_cross_entropy_without_the_teachers_entropy(kind: HeadKind) -> None:
    (ce, z_s), (kl, z) = values(kind, hard=0.0), values(kind, hard=0.0, soft_form="kl")
    gradients = [torch.autograd.grad(x["soft"], y)[0] for x, y in ((ce, z_s), (kl, z))]
    torch.testing.assert_close(*gradients)
    term = Labels(Losses(soft=1.0, temperature=TAU), kind=kind)
    entropy = term(Captured(logits=logits(kind, 2)), Captured(logits=logits(kind, 2)), make_batch(kind))["soft"]
    torch.testing.assert_close(kl["soft"], ce["soft"] - entropy)
    assert kl["soft"] > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_add_up_to_the_whole(kind: HeadKind) -> None:
    whole, term = make_batch(kind), Labels(Losses(soft=1.0, hard=1.0, temperature=TAU), kind=kind)
    z_s, z_t = logits(kind, 1), logits(kind, 2)
    totals, done = {"soft": torch.zeros(()), "hard": torch.zeros(())}, 0
    pieces = whole.split(9)
    assert len(pieces) == 4
    for piece in pieces:
        rows = piece.num_tokens if kind == "span" else piece.num_sequences
        if piece.labelled is not None:
            rows = len(piece.labelled)
        z = [Captured(logits=logits[done : done + rows]) for logits in (z_s, z_t)]
        done += rows
        for name, value in term(z[0], z[1], piece).items():
            totals[name] += term.entries(piece) / term.entries(whole) * value
    assert done == len(z_s)
    for name, value in expected(kind).items():
        torch.testing.assert_close(totals[name], value, msg=name)


@pytest.mark.parametrize("kind", ["tagging", "masked"])
@pytest.mark.parametrize("soft", [0.0, 1.0])
def test_a_piece_without_labelled_tokens_has_losses_of_zero(kind: HeadKind, soft: float) -> None:
    none = torch.zeros(0, dtype=torch.long)
    batch = replace(make_batch(kind), labelled=none, token_labels=none)
    z = torch.zeros(0, C, requires_grad=True)
    found = Labels(Losses(soft=soft, hard=1.0), kind=kind)(Captured(logits=z), Captured(logits=z), batch)
    assert all(value == 0 for value in found.values())
    sum(found.values()).backward()  # type: ignore[union-attr]


def test_soft_labels_of_text_without_tags_are_of_all_tokens() -> None:
    batch = replace(make_batch("tagging"), labelled=None, token_labels=None)
    z_s, z_t = draw(T, C, seed=1), draw(T, C, seed=2)
    term = Labels(Losses(soft=1.0, temperature=TAU), kind="tagging")
    torch.testing.assert_close(term(Captured(logits=z_s), Captured(logits=z_t), batch)["soft"], soft_ce(z_s, z_t))
    assert term.entries(batch) == T


def test_labels_in_a_batch_move_with_their_tokens() -> None:
    whole = make_batch("tagging")
    for piece, start in zip(whole.split(9), (0, 5, 10, 15), strict=True):
        assert piece.labelled is not None
        inside = [int(row) for row in LABELLED if start <= row < start + piece.num_tokens]
        assert (piece.labelled + start).tolist() == inside
    assert whole.filled_up(8, 9).labelled is None
