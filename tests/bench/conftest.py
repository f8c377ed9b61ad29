"""The data of the benchmarks in miniature, and a finished one of quality."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bench import workload
from tests.tiny import make_teacher, make_texts, make_tokenizer
from tests.tiny_quality import start


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: teacher, general text, and two tasks with validation splits of their own."""
    folder = tmp_path_factory.mktemp("data")
    make_teacher(folder / "teacher")
    (folder / "general.txt").write_text("".join(text + "\n" for text, _ in make_texts(120, 1)))
    for task, value in (("reviews", str), ("stars", {"positive": "3.5", "negative": "1.25"}.get)):
        (folder / "tasks" / task).mkdir(parents=True)
        for split, rows, seed in (("train", 80, 2), ("validation", 40, 3)):
            lines = [f"{text},{value(label)}\n" for text, label in make_texts(rows, seed)]
            (folder / "tasks" / task / f"{split}.csv").write_text("text,label\n" + "".join(lines))
    return folder


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished benchmark; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("done")
    start(folder, data)
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A data folder of the whole steps: 40 sentences of a few words as both texts, and the tokenizer."""
    make_tokenizer().save_pretrained(tmp_path / workload.TOKENIZER)
    for name, (place, column) in workload.TEXTS.items():
        path = tmp_path / place / "train-0.parquet" if name == "sst2" else tmp_path / place
        path.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.table({column: [text for text, _ in make_texts(40, 0)]}), path)
    return tmp_path
