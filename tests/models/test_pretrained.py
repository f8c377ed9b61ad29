"""Folders: what is saved is plain Hugging Face, what is loaded is complete."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoders import make_batch, tiny_encoder, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from fastdistill.models.capture import Taps
from fastdistill.models.encoder import Encoder
from fastdistill.models.pretrained import load_plain, load_tokenizer
from tests.tiny import make_teacher


def test_saved_folder_is_plain_hugging_face(any_family: str, tmp_path: Path) -> None:
    tiny_encoder(any_family, head=True).model.save_pretrained(tmp_path)
    assert "fastdistill" not in (tmp_path / "config.json").read_text()
    for auto in (AutoModel, AutoModelForSequenceClassification):
        plain, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert plain.config._attn_implementation in ("sdpa", "eager")
        assert [name for name in info["missing_keys"] if "pooler" not in name] == []


def test_what_was_saved_is_loaded(any_family: str, tmp_path: Path) -> None:
    batch, taps = make_batch([9, 4]), Taps(hidden=frozenset({3}), logits=True)
    encoder = tiny_encoder(any_family, head=True)
    encoder.model.save_pretrained(tmp_path)
    loaded = Encoder.load(tmp_path, head="finetuned", num_labels=3)
    assert not loaded.training
    assert torch.equal(loaded(batch, taps).logits, encoder(batch, taps).logits)
    bare = Encoder.load(tmp_path)
    assert bare.kind is None
    assert torch.equal(bare(batch, Taps(hidden=frozenset({3}))).hidden[3], encoder(batch, taps).hidden[3])


def test_half_precision_checkpoints_load_in_float32(tmp_path: Path) -> None:
    tiny_model("bert", head=True).half().save_pretrained(tmp_path)
    for encoder in (Encoder.load(tmp_path), Encoder.load(tmp_path, head="finetuned")):
        assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_a_head_that_was_never_finetuned_is_refused(any_family: str, tmp_path: Path) -> None:
    tiny_model(any_family, head=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}: the classification head was never fine-tuned.*Fine-tune it"):
        Encoder.load(tmp_path, head="finetuned")
    fresh = Encoder.load(tmp_path, head="fresh", num_labels=4)
    assert fresh(make_batch([9, 4]), Taps(logits=True)).logits.shape == (2, 4)


def test_a_fresh_head_replaces_an_old_one(tmp_path: Path) -> None:
    old = tiny_model("bert", head=True)
    old.save_pretrained(tmp_path)
    new = Encoder.load(tmp_path, head="fresh", num_labels=3).model
    assert torch.equal(new.bert.pooler.dense.weight, old.bert.pooler.dense.weight)
    assert not torch.equal(new.classifier.weight, old.classifier.weight)


def test_labels_of_another_task_are_refused(tmp_path: Path) -> None:
    tiny_model("bert", head=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="fine-tuned on 3 labels, the task has 2"):
        Encoder.load(tmp_path, head="finetuned", num_labels=2)
    with pytest.raises(ValueError, match="needs num_labels"):
        Encoder.load(tmp_path, head="fresh")


def test_a_checkpoint_that_lacks_encoder_weights_is_refused(tmp_path: Path) -> None:
    tiny_model("bert", head=False).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "pooler" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    Encoder.load(tmp_path)  # pretraining may leave out the pooler
    kept.pop("encoder.layer.1.output.dense.weight")
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of a bert encoder: \['encoder.layer.1.output.dense.weight'"):
        Encoder.load(tmp_path)


def test_folders_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_teacher(tmp_path / "teacher", head=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_tokenizer("~/teacher")) > 5
    assert load_plain("~/teacher", "classification").config.hidden_size == 24
    assert Encoder.load("~/teacher").hidden_size == 24


def test_a_pooler_that_the_checkpoint_lacks_is_the_same_every_time(tmp_path: Path) -> None:
    tiny_encoder("bert").with_fresh_head("masked").model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, other = (Encoder.load(tmp_path).model.pooler.dense.weight for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
