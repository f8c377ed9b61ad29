"""The loader benchmark runs on a small text and counts what it should."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bench import loader, workload
from tests.tiny import make_texts


def test_figures_of_a_small_text(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = texts / "loader.json"
    loader.main([f"--data={texts}", "--length=12", "--tokens_per_batch=64", "--seconds=0", f"--out={out}"])
    found = json.loads(out.read_text())["results"]
    tokens = sum(len(text.split()) + 2 for text, _ in make_texts(40, 0))
    assert (found["sequences"], found["tokens"]) == (40, tokens)
    assert 0 <= found["wasted"] < 0.2
    assert min(found["tokenised_tokens_per_s"], found["loaded_tokens_per_s"]) > 0
    assert f"{tokens} tokens in 40 sequences" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data=/nowhere", f"error: there is no data at /nowhere/{workload.TEXTS['wiki'][0]}: pass a --data FOLDER"),
        ("--length=2", "error: --length 2: must be 3 or more"),
        ("--tokens_per_batch=10", "error: --tokens_per_batch 10: must be --length 128 or more"),
    ],
)
def test_errors_name_the_value(option: str, message: str, texts: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        loader.main([f"--data={texts}", option])


def test_text_that_is_all_blank_is_named(texts: Path) -> None:
    blank = pyarrow.table({"text": ["", " "]})
    pyarrow.parquet.write_table(blank, texts / workload.TEXTS["wiki"][0])
    with pytest.raises(SystemExit, match="error: .* has no text: all 2 documents are blank"):
        loader.main([f"--data={texts}"])
