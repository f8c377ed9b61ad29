"""Files and folders that something is wrong with."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, MPNetConfig, MPNetModel

from tests.tiny import make_teacher, make_tokenizer


def configured(folder: Path, **changes: object) -> Path:
    teacher = make_teacher(folder / "configured")
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | changes))
    return teacher


def listed_labels(folder: Path) -> Path:
    path = folder / "bad.jsonl"
    path.write_text("".join(json.dumps({"text": "a film", "label": [n % 2, 1]}) + "\n" for n in range(20)))
    return path


def tags(folder: Path, good: bool = False) -> Path:
    path = folder / "bad.jsonl"
    rows = [
        {"tokens": ["a", "film"], "tags": ["DT", "NN"]},
        {"tokens": ["a", "film"], "tags": ["DT", "NN"] if good else ["NN"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 60))
    return path


def answers(folder: Path) -> Path:
    path = folder / "bad.jsonl"
    row = {"question": "it", "context": "a good film", "answers": {"text": ["good"], "answer_start": [2]}}
    path.write_text((json.dumps(row) + "\n") * 60)
    return path


def uncapturable(folder: Path) -> Path:
    config = MPNetConfig(
        vocab_size=27, hidden_size=24, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64,
    )  # fmt: skip
    MPNetModel(config).save_pretrained(folder / "mpnet")
    make_tokenizer().save_pretrained(folder / "mpnet")
    return folder / "mpnet"


def classifier(folder: Path, *names: str, **changes: object) -> Path:
    config = AutoConfig.from_pretrained(make_teacher(folder / "base"), id2label=dict(enumerate(names)), **changes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "finetuned")
    make_tokenizer().save_pretrained(folder / "finetuned")
    return folder / "finetuned"


def without_tokenizer(folder: Path) -> Path:
    teacher = make_teacher(folder / "bare")
    for path in teacher.glob("tokenizer*"):
        path.unlink()
    return teacher


def spoilt(folder: Path) -> Path:
    path = make_teacher(folder / "spoilt") / "model.safetensors"
    weights = load_file(path)
    weights["embeddings.LayerNorm.weight"][3] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    return path.parent


def torn(folder: Path) -> Path:
    path = make_teacher(folder / "torn") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return path.parent


def cased(folder: Path) -> Path:
    """A teacher whose tokenizer has the words of all others, and does not lower their letters."""
    make_teacher(folder / "cased", head=True)
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.save_pretrained(folder / "cased")
    return folder / "cased"


def other_vocabulary(folder: Path, size: int, head: bool = False) -> Path:
    words = [f"word{i}" for i in range(size - 5)]
    make_teacher(folder / "other", head=head, vocab_size=size)
    make_tokenizer(words).save_pretrained(folder / "other")
    return folder / "other"
