"""What the whole steps of `bench.step` work on: shapes of models, real text, and the same sequences for every loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import load_dataset
from transformers import AutoTokenizer, BertConfig

from fastdistill.data.packing import Sequences

SHAPES = {
    "bert-base": (12, 768, 3072),
    "tinybert4": (4, 312, 1200),
    "tinybert6": (6, 768, 3072),
}
"""Layers, hidden size, intermediate size; all have 12 heads."""
TEXTS = {
    "sst2": ("tasks/glue/sst2", "sentence"),
    "wiki": ("corpora/wikipedia-enwik8.parquet", "text"),
}
"""Path below the data folder and column."""
TOKENIZER = "teachers/e5-small-en"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Workload:
    """One distillation job, every step of which takes `batch_size` sequences.

    Args:
        teacher, student: names of `SHAPES`.
        text: name of `TEXTS`.
        length: most tokens of a sequence, and what padded loops pad to.
        blocks: join the text and cut it into sequences of exactly `length`, instead of one per sentence or paragraph.
        soft: models with a head of two classes, and soft labels beside the latent losses.
        data: folder of the text and the tokenizer.
    """

    teacher: str = "bert-base"
    student: str = "tinybert4"
    text: str = "sst2"
    length: int = 64
    blocks: bool = False
    batch_size: int = 32
    soft: bool = False
    data: Path = DATA

    def check(self) -> None:
        """Raise ValueError where a name or the data is not known."""
        for name, value, known in (
            ("teacher", self.teacher, SHAPES),
            ("student", self.student, SHAPES),
            ("text", self.text, TEXTS),
        ):
            if value not in known:
                raise ValueError(f"--{name} {value}: choose one of {', '.join(known)}")
        for name, least in (("length", 3), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: must be {least} or more")
        for place, there in ((TEXTS[self.text][0], bool(self.files())), (TOKENIZER, self.tokenizer.is_dir())):
            if not there:
                raise ValueError(f"there is no data at {self.data / place}: pass a --data FOLDER that holds {place}")

    def files(self) -> list[Path]:
        """The text."""
        path = self.data / TEXTS[self.text][0]
        return [path] if path.is_file() else sorted(path.glob("*train*.parquet"))

    @property
    def tokenizer(self) -> Path:
        """Its folder."""
        return self.data / TOKENIZER

    def config(self, name: str) -> BertConfig:
        """The shape `name` without dropout, so that all loops learn the same."""
        layers, hidden, intermediate = SHAPES[name]
        return BertConfig(
            num_hidden_layers=layers,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_attention_heads=12,
            vocab_size=30522,
            max_position_embeddings=max(512, self.length),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )

    @property
    def layer_map(self) -> tuple[tuple[int, int], ...]:
        """Student layer, teacher layer, evenly."""
        small, large = SHAPES[self.student][0], SHAPES[self.teacher][0]
        return tuple((m, m * large // small) for m in range(1, small + 1))

    def sequences(self, count: int, most: int = 0) -> Sequences:
        """The first `count` sequences of the text; or, where it has them, the first `most`."""
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        place, column = TEXTS[self.text]
        pieces: list[list[int]] = []
        rest: list[int] = []
        body = self.length - 2
        rows = load_dataset("parquet", data_files=[str(file) for file in self.files()], split="train", streaming=True)
        for batch in rows.select_columns([column]).iter(1000):
            for ids in tokenizer(batch[column], add_special_tokens=False)["input_ids"]:
                if self.blocks:
                    rest += ids
                    while len(rest) >= body:
                        pieces.append([cls, *rest[:body], sep])
                        rest = rest[body:]
                elif ids:
                    pieces.append([cls, *ids[:body], sep])
            if len(pieces) >= max(count, most):
                break
        if len(pieces) < count:
            raise ValueError(f"{self.data / place} holds {len(pieces)} sequences, {count} are needed: fewer --steps")
        pieces = pieces[: max(count, most)]
        return Sequences(np.concatenate(pieces), np.cumsum([0, *map(len, pieces)]))
