"""The loader benchmark runs on a small text and counts what it should."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bench import loader, workload
from tests.tiny import make_texts, make_tokenizer


def test_figures_of_a_small_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tokenizer().save_pretrained(tmp_path / workload.TOKENIZER)
    texts = [text for text, _ in make_texts(50, 0)]
    path = tmp_path / workload.TEXTS["wiki"][0]
    path.parent.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    out = tmp_path / "loader.json"
    loader.main([f"--data={tmp_path}", "--length=12", "--tokens_per_batch=64", "--seconds=0", f"--out={out}"])
    found = json.loads(out.read_text())["results"]
    tokens = sum(len(text.split()) + 2 for text in texts)
    assert (found["sequences"], found["tokens"]) == (50, tokens)
    assert 0 <= found["wasted"] < 0.2
    assert min(found["tokenised_tokens_per_s"], found["loaded_tokens_per_s"]) > 0
    assert f"{tokens} tokens in 50 sequences" in capsys.readouterr().out


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no data at .*: pass --data FOLDER"):
        loader.main([f"--data={tmp_path / 'none'}"])
