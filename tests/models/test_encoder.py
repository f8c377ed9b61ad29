"""Every family: padding-free equals padded, capture equals the model's own maps, and what cannot work is refused."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from encoders import CAPTURED, UNCAPTURED, make_batch, split, tiny_encoder, tiny_model
from transformers import PreTrainedModel

from fastdistill.batch import Batch
from fastdistill.models.capture import Taps
from fastdistill.models.encoder import Encoder
from fastdistill.models.families import has_token_types
from tests.peak import PeakBytes

LAYERS = frozenset({1, 2, 3})
EVERYTHING = Taps(hidden=frozenset({0, 1, 2, 3}), logits=True)


def padded_inputs(model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
    """What a tokenizer would give plain transformers for the same sequences."""

    def pad(packed: torch.Tensor, value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(split(batch, packed), batch_first=True, padding_value=value)

    inputs = {
        "input_ids": pad(batch.input_ids, model.config.pad_token_id),
        "attention_mask": pad(torch.ones_like(batch.input_ids), 0),
    }
    if has_token_types(model.base_model):
        inputs["token_type_ids"] = pad(batch.token_type_ids, 0)
    return inputs


def assert_equals_plain(encoder: Encoder, plain: PreTrainedModel, batch: Batch) -> None:
    inputs = padded_inputs(plain, batch)
    with torch.no_grad():
        expected = plain(**inputs, output_hidden_states=True)
        got = encoder(batch, EVERYTHING)
    real = inputs["attention_mask"].bool()
    assert got.hidden.keys() == EVERYTHING.hidden
    for layer, hidden in got.hidden.items():
        torch.testing.assert_close(hidden, expected.hidden_states[layer][real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_padding_free_equals_padded_transformers(any_family: str, batch: Batch) -> None:
    encoder = tiny_encoder(any_family, head=True)
    assert encoder.packs == (any_family in CAPTURED)
    assert_equals_plain(encoder, tiny_model(any_family, head=True, attn_implementation="eager"), batch)


def test_a_family_with_an_unknown_head_still_computes_logits(batch: Batch) -> None:
    encoder = tiny_encoder("data2vec-text", head=True)
    assert not encoder.packs
    assert tiny_encoder("data2vec-text").packs
    assert_equals_plain(encoder, tiny_model("data2vec-text", head=True, attn_implementation="eager"), batch)


def test_modernbert_mean_pooling(batch: Batch) -> None:
    plain = tiny_model("modernbert", head=True, attn_implementation="eager", classifier_pooling="mean")
    assert_equals_plain(tiny_encoder("modernbert", head=True, classifier_pooling="mean"), plain, batch)


def test_electra_without_factorised_embeddings(batch: Batch) -> None:
    plain = tiny_model("electra", head=True, attn_implementation="eager", embedding_size=48)
    assert_equals_plain(tiny_encoder("electra", head=True, embedding_size=48), plain, batch)


def test_sliding_window_bites() -> None:
    """The ModernBERT comparisons above would pass for a wrong window if theirs reached across every sequence."""
    batch = make_batch([31, 31])
    near, far = (tiny_encoder("modernbert", local_attention=n) for n in (8, 128))
    assert not torch.allclose(near(batch, EVERYTHING_BUT_LOGITS).hidden[2], far(batch, EVERYTHING_BUT_LOGITS).hidden[2])


EVERYTHING_BUT_LOGITS = dataclasses.replace(EVERYTHING, logits=False)


@torch.no_grad()
def test_captured_q_and_k_give_the_models_own_attention(family: str, batch: Batch) -> None:
    plain = tiny_model(family, head=False, attn_implementation="eager")
    got = tiny_encoder(family)(batch, Taps(q=LAYERS, k=LAYERS))
    types = split(batch, batch.token_type_ids)
    for b, ids in enumerate(split(batch, batch.input_ids)):
        inputs = {"token_type_ids": types[b][None]} if has_token_types(plain) else {}
        attentions = plain(ids[None], **inputs, output_attentions=True).attentions
        for layer in LAYERS:
            q, k = (split(batch, x[layer])[b].transpose(0, 1) for x in (got.q, got.k))
            scores = got.scaling * q @ k.transpose(1, 2)
            if family == "modernbert" and plain.config.layer_types[layer - 1] == "sliding_attention":
                places = torch.arange(len(ids))
                scores = scores.masked_fill((places[:, None] - places).abs() > plain.config.sliding_window, -math.inf)
            torch.testing.assert_close(scores.softmax(-1), attentions[layer - 1][0], atol=1e-5, rtol=1e-5)


def test_taps_keep_what_they_name_and_nothing_else(family: str) -> None:
    batch = make_batch([4, 9])
    got = tiny_encoder(family)(batch, Taps(hidden=frozenset({3}), q=frozenset({2}), v=frozenset({1, 3})))
    assert (got.hidden.keys(), got.q.keys(), got.k.keys(), got.v.keys()) == ({3}, {2}, set(), {1, 3})
    assert got.hidden[3].shape == (13, 48)
    assert got.q[2].shape == got.v[1].shape == (13, 4, 12)
    assert got.logits is None
    assert got.scaling == pytest.approx(12**-0.5)


def test_gradients_reach_every_used_parameter(family: str) -> None:
    encoder = tiny_encoder(family, head=True).train()
    got = encoder(make_batch([9, 4]), Taps(q=LAYERS, k=LAYERS, v=LAYERS, logits=True))
    assert got.logits is not None
    # scores and [CLS] depend on all that the model computes
    sum(x.square().sum() for x in (got.logits, *got.q.values(), *got.k.values(), *got.v.values())).backward()
    silent = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_a_sequence_does_not_feel_its_neighbours(family: str) -> None:
    batch = make_batch([9, 4])
    encoder = tiny_encoder(family)
    weights = encoder.model.get_input_embeddings().weight
    encoder(batch, EVERYTHING_BUT_LOGITS).hidden[3][9:].sum().backward()
    only_first = sorted(set(batch.input_ids[:9].tolist()) - set(batch.input_ids[9:].tolist()))
    assert weights.grad is not None
    assert weights.grad[only_first].abs().max() == 0


DROPOUTS = ("hidden_dropout_prob", "dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout_prob")


def test_attention_dropout_in_training_only(family: str) -> None:
    batch, last = make_batch([30, 31]), Taps(hidden=frozenset({3}))
    others = dict.fromkeys(DROPOUTS, 0.0)
    name = "attention_dropout" if family in ("distilbert", "modernbert") else "attention_probs_dropout_prob"
    encoder = tiny_encoder(family, **others, **{name: 0.5})
    if family == "modernbert":  # it also drops attention's output at the same rate; only the maps are meant here
        for layer in encoder.model.layers:
            layer.attn.out_drop = torch.nn.Identity()
    still = encoder(batch, last).hidden[3]
    assert torch.equal(still, encoder(batch, last).hidden[3])
    encoder.train()
    assert not torch.allclose(still, encoder(batch, last).hidden[3], atol=1e-3)


class MixTokens(torch.nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + hidden.mean(1, keepdim=True)


class NoAttention(torch.nn.Module):
    def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return hidden


def test_capturability_is_probed_not_assumed() -> None:
    mixing = tiny_model("bert", head=False)
    mixing.embeddings.dropout = MixTokens()
    assert not Encoder(mixing).packs
    elsewhere = tiny_model("bert", head=False)
    elsewhere.encoder.layer[1] = NoAttention()
    assert not Encoder(elsewhere).packs


@pytest.mark.parametrize("family", UNCAPTURED)
def test_uncapturable_attention_is_refused(family: str) -> None:
    encoder = tiny_encoder(family)
    for taps in (Taps(q=frozenset({1})), Taps(k=frozenset({1})), Taps(v=frozenset({1}))):
        with pytest.raises(ValueError, match=rf"attention of {family} cannot.*hidden, embedding, soft and hard still"):
            encoder(make_batch([4]), taps)


@pytest.mark.parametrize(
    ("taps", "lengths", "message"),
    [
        (Taps(hidden=frozenset({4})), [4], "layer 4 is asked for: this roberta has 3"),
        (Taps(q=frozenset({5})), [4], "layer 5 is asked for"),
        (Taps(logits=True), [4], "without a head"),
        (Taps(), [4, 63], "a sequence of 63 tokens: this roberta takes 62 at most"),
    ],
)
def test_impossible_requests(taps: Taps, lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_encoder("roberta")(make_batch(lengths), taps)


def test_longest_sequence_of_every_family(any_family: str) -> None:
    encoder = tiny_encoder(any_family)
    assert encoder.max_length == (62 if any_family in ("roberta", "xlm-roberta", "camembert", "mpnet") else 64)
    encoder(make_batch([encoder.max_length]), Taps())


def test_a_new_head_keeps_the_encoder(any_family: str) -> None:
    batch = make_batch([9, 4])
    bare = tiny_encoder(any_family)
    bare.model.config.problem_type = "regression"  # an earlier task
    headed = bare.with_fresh_head("classification", 5, {i: f"class {i}" for i in range(5)})
    headed.eval()
    got = headed(batch, EVERYTHING)
    assert got.logits is not None
    assert got.logits.shape == (2, 5)
    assert torch.equal(got.hidden[3], bare(batch, EVERYTHING_BUT_LOGITS).hidden[3])
    assert headed.model.config.id2label[4] == "class 4"
    assert headed.model.config.problem_type is None
    with pytest.raises(ValueError, match="names 2 classes, num_labels is 3"):
        bare.with_fresh_head("classification", 3, {0: "a", 1: "b"})


def test_what_goes_into_layers_that_are_computed_again_is_kept() -> None:
    batch = make_batch([30] * 20)
    peaks, counted = [], []
    for depth in (12, 24):
        encoder = tiny_encoder("bert", num_hidden_layers=depth).train()
        assert encoder.checkpoint_layers()
        with PeakBytes() as peak:
            encoder(batch, Taps(hidden=frozenset({depth})))
        peaks.append(peak.most)
        counted.append(encoder.bytes_between_layers * batch.num_tokens)
    assert peaks[1] - peaks[0] == pytest.approx(counted[1] - counted[0], rel=0.02)
