"""Heads over tokens of every family: padding-free equals padded transformers, a new head keeps the encoder, and the
classes of a head in another order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from encoders import make_batch, split, tiny_config, tiny_encoder

from fastdistill.batch import Batch
from fastdistill.models.capture import ATTENTION, Taps
from fastdistill.models.encoder import Encoder
from fastdistill.models.families import has_token_types
from fastdistill.models.heads import AUTO, head_logits, output_layer
from fastdistill.models.student import copy_head
from fastdistill.recipe import HeadKind

LOGITS = Taps(logits=True)
OVER_TOKENS: list[HeadKind] = ["tagging", "span", "masked"]


def headed(family: str, kind: HeadKind, attn_implementation: str = ATTENTION, **changes: object) -> torch.nn.Module:
    """The same weights for the same arguments."""
    torch.manual_seed(0)
    outputs = {"num_labels": 2} if kind == "span" else {}
    config = tiny_config(family, **outputs, **changes)
    model = AUTO[kind].from_config(config, attn_implementation=attn_implementation)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.1)
    return model.eval()


@torch.no_grad()
def plain_logits(family: str, kind: HeadKind, batch: Batch) -> torch.Tensor:
    """Of transformers' own model, sequence by sequence: ``(T, C)``."""
    model = headed(family, kind, "eager")
    types, found = split(batch, batch.token_type_ids), []
    for ids, own in zip(split(batch, batch.input_ids), types, strict=True):
        output = model(ids[None], **({"token_type_ids": own[None]} if has_token_types(model.base_model) else {}))
        found.append(torch.stack([output.start_logits, output.end_logits], -1) if kind == "span" else output.logits)
    return torch.cat([z[0] for z in found])


@pytest.mark.parametrize("kind", OVER_TOKENS)
def test_heads_over_tokens_equal_plain_transformers(any_family: str, kind: HeadKind, batch: Batch) -> None:
    encoder, expected = Encoder(headed(any_family, kind), kind), plain_logits(any_family, kind, batch)
    with torch.no_grad():
        torch.testing.assert_close(encoder(batch, LOGITS).logits, expected, atol=1e-4, rtol=1e-5)
        rows = torch.tensor([0, 3, 8, batch.num_tokens - 1])
        got = encoder(replace(batch, labelled=rows), LOGITS).logits
    torch.testing.assert_close(got, expected if kind == "span" else expected[rows], atol=1e-4, rtol=1e-5)


def test_the_vocabulary_is_computed_for_labelled_tokens_alone(family: str) -> None:
    encoder = Encoder(headed(family, "masked"), "masked")
    seen: list[int] = []
    encoder.model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    encoder(replace(make_batch([30, 9]), labelled=torch.tensor([1, 5, 33])), LOGITS)
    assert seen == [3]


@pytest.mark.parametrize("kind", OVER_TOKENS)
def test_a_new_head_keeps_the_encoder_and_saves_as_its_class(any_family: str, kind: HeadKind, tmp_path: Path) -> None:
    batch, bare = make_batch([9, 4]), tiny_encoder(any_family)
    outputs = {"masked": None, "span": 2, "tagging": 5}[kind]
    fresh = bare.with_fresh_head(kind, outputs).eval()
    got = fresh(batch, replace(LOGITS, hidden=frozenset({3})))
    assert got.logits.shape == (13, outputs or fresh.vocab_size)
    assert torch.equal(got.hidden[3], bare(batch, Taps(hidden=frozenset({3}))).hidden[3])
    fresh.model.save_pretrained(tmp_path)
    again = Encoder.load(tmp_path, head="finetuned", kind=kind)
    assert torch.equal(again(batch, LOGITS).logits, got.logits)
    plain = AUTO[kind].from_pretrained(tmp_path)
    assert type(plain).__name__ == type(fresh.model).__name__
    # what was trained for masked words is the start of a task
    assert Encoder.load(tmp_path).with_fresh_head("classification", 3).kind == "classification"


def test_problem_types_are_transformers_own() -> None:
    bare = tiny_encoder("bert")
    for kind, expected in (
        ("multilabel", "multi_label_classification"),
        ("regression", "regression"),
        ("tagging", None),
    ):
        assert bare.with_fresh_head(kind, 1).model.config.problem_type == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", OVER_TOKENS)
def test_a_head_that_the_folder_lacks_is_refused(family: str, kind: HeadKind, tmp_path: Path) -> None:
    tiny_encoder(family, num_labels=2).model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="has no head that predicts masked words" if kind == "masked" else "never fine"
    ):
        Encoder.load(tmp_path, head="finetuned", kind=kind)


def test_gradients_reach_the_embeddings_through_both_ends() -> None:
    """A head for masked words shares the embeddings' weights."""
    encoder = Encoder(headed("bert", "masked"), "masked")
    words = encoder.model.get_input_embeddings().weight
    assert encoder.model.get_output_embeddings().weight is words
    batch = replace(make_batch([9]), labelled=torch.tensor([4]))
    encoder(batch, LOGITS).logits[0, 7].backward()
    assert words.grad[7].abs().sum() > 0
    assert words.grad[batch.input_ids[0]].abs().sum() > 0


def test_a_head_is_copied_where_it_fits_and_the_embeddings_stay() -> None:
    teacher = Encoder(headed("bert", "masked"), "masked")
    student = tiny_encoder("bert", num_hidden_layers=2).with_fresh_head("masked")
    words = student.model.get_input_embeddings().weight
    torch.nn.init.normal_(words)
    before = words.detach().clone()
    copy_head(teacher, student)
    assert torch.equal(words, before)
    own, theirs = (encoder.model.cls.predictions for encoder in (student, teacher))
    assert torch.equal(own.transform.dense.weight, theirs.transform.dense.weight)
    assert torch.equal(own.bias, theirs.bias)
    narrow = tiny_encoder("bert", hidden_size=24).with_fresh_head("masked")
    copy_head(teacher, narrow)
    assert torch.equal(narrow.model.cls.predictions.bias, theirs.bias)


NAMES = {0: "Neutral", 1: "contradiction", 2: "entailment"}


@pytest.mark.parametrize("kind", ["classification", "tagging"])
def test_classes_are_put_into_another_order(any_family: str, kind: HeadKind, batch: Batch) -> None:
    encoder = tiny_encoder(any_family).with_fresh_head(kind, 3, NAMES).eval()
    before = encoder(batch, LOGITS).logits
    told = encoder.order_labels(["entailment", "neutral", "contradiction"], 3)
    assert told == "has its classes in another order: they are put into the task's, entailment, neutral, contradiction"
    assert torch.equal(encoder(batch, LOGITS).logits, before[:, [2, 0, 1]])
    assert encoder.model.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert encoder.model.config.label2id["neutral"] == 1
    assert encoder.order_labels(["entailment", "neutral", "contradiction"], 3) is None


def test_classes_without_names_stay_and_others_are_refused() -> None:
    bare = tiny_encoder("bert")
    generic = bare.with_fresh_head("classification", 2)
    granted = "they are taken to be in the task's order, "
    assert generic.order_labels(["no", "yes"], 2) == f"does not name its classes: {granted}no, yes"
    assert generic.order_labels(["0", "1"], 2) is None
    named = bare.with_fresh_head("classification", 2, {0: "no", 1: "yes"})
    assert named.order_labels(["0", "1"], 2) == f"calls its classes no, yes: {granted}0, 1"
    assert named.order_labels(None, 2) is None
    with pytest.raises(
        ValueError, match=r"classes \['no', 'yes'\], the task \['no', 'maybe'\].*write those of the task into id2label"
    ):
        named.order_labels(["no", "maybe"], 2)
    with pytest.raises(ValueError, match="fine-tuned on 2 labels, the task has 3: take a model of this task, or"):
        named.order_labels(["a", "b", "c"], 3)


def test_classes_with_numbers_for_names_are_put_into_another_order() -> None:
    named = tiny_encoder("bert").with_fresh_head("classification", 2, {0: "1", 1: "0"})
    weight = output_layer(named.model, 2).weight.detach().clone()
    assert "another order" in str(named.order_labels(["0", "1"], 2))
    assert torch.equal(output_layer(named.model, 2).weight, weight[[1, 0]])


def test_head_logits_runs_dropout_in_training_only(family: str) -> None:
    model = headed(family, "tagging", **({"classifier_dropout": 0.5} if family != "distilbert" else {"dropout": 0.5}))
    if family == "albert":
        model.dropout.p = 0.5
    hidden = torch.randn(20, 48)
    once, again = (head_logits("tagging", model, hidden, None, None) for _ in range(2))  # type: ignore[arg-type]
    assert torch.equal(once, again)
    model.train()
    once, again = (head_logits("tagging", model, hidden, None, None) for _ in range(2))  # type: ignore[arg-type]
    assert not torch.equal(once, again)
