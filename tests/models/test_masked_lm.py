"""Masked language models: packed logits of single tokens are those of transformers, of one text at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoders import CAPTURED, UNCAPTURED, VOCAB, make_batch, split, tiny_config
from transformers import AutoModel, AutoModelForMaskedLM

from fastdistill.models.masked_lm import MaskedLM
from tests.tiny import make_masked_lm, make_teacher, make_tokenizer

CPU = torch.device("cpu")


def save(family: str, folder: Path, *, head: bool = True) -> Path:
    torch.manual_seed(0)
    model = (AutoModelForMaskedLM if head else AutoModel).from_config(tiny_config(family))
    model.save_pretrained(folder)
    make_tokenizer([f"w{n}" for n in range(VOCAB - 5)]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", [*CAPTURED, *UNCAPTURED])
def test_logits_are_those_of_one_text_at_a_time(family: str, tmp_path: Path) -> None:
    folder = save(family, tmp_path)
    model = MaskedLM(folder, CPU, torch.float32)
    batch = make_batch([2, 5, 5, 9])
    tokens = torch.tensor([0, 3, 11, 12, 20])
    plain = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    inputs = [split(batch, x) for x in (batch.input_ids, batch.token_type_ids)]
    expected = []
    with torch.no_grad():
        for ids, types in zip(*inputs, strict=True):
            typed = {"token_type_ids": types[None]} if model.live.encoder.has_token_types else {}
            expected.append(plain(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], **typed).logits[0])
    assert torch.allclose(model.logits(batch, tokens), torch.cat(expected)[tokens], atol=1e-4)


def test_a_checkpoint_without_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no head that predicts masked words \(it lacks \['cls"):
        MaskedLM(make_teacher(tmp_path), CPU, torch.float32)


def test_a_tokenizer_without_mask_is_refused(tmp_path: Path) -> None:
    folder = make_masked_lm(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="has no mask token"):
        MaskedLM(folder, CPU, torch.float32)


def test_the_fingerprint_is_of_the_head_too(tmp_path: Path) -> None:
    model = MaskedLM(make_masked_lm(tmp_path), CPU, torch.float32)
    before = model.fingerprint()
    with torch.no_grad():
        model.live.encoder.model.get_submodule("cls").predictions.transform.dense.weight[0, 0] += 1
    assert model.fingerprint() != before
