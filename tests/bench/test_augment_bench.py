"""The benchmark of augmentation: every loop finds the same words, and the table says what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import torch

from bench import augment, table, workload
from tests.tiny import make_texts, make_tokenizer


def world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text, a tokenizer and a small shape."""
    monkeypatch.setitem(augment.SHAPES, "bert-base", (2, 24, 48))
    make_tokenizer().save_pretrained(folder / workload.TOKENIZER)
    place = folder / workload.TEXTS["sst2"][0]
    place.mkdir(parents=True)
    texts = [text for text, _ in make_texts(4, 0)] * 8
    pyarrow.parquet.write_table(pyarrow.table({"sentence": texts}), place / "train.parquet")


def test_every_loop_asks_about_the_same_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world(tmp_path, monkeypatch)
    out = tmp_path / "augment.json"
    augment.main([f"--data={tmp_path}", "--texts=32", "--rounds=1", "--device=cpu", f"--out={out}"])
    results = {result["loop"]: result for result in json.loads(out.read_text())["results"]}
    loops = ["published, fp32", "padded, fp32", "packed, fp32", "alone, fp32"]
    assert list(results) == [*loops, "published, bf16", "packed, bf16", "alone, bf16"]
    asked = {name: result["words"] for name, result in results.items()}
    assert asked["packed, fp32"] == 8 * asked["published, fp32"] > 0
    assert {asked[name] for name in asked if name.startswith(("packed", "alone"))} == {asked["packed, fp32"]}
    assert asked["published, fp32"] == asked["padded, fp32"] == asked["published, bf16"]
    assert all(result["words_per_s"] > 0 for result in results.values())
    assert "1.0x" in capsys.readouterr().out


def test_the_best_of_the_rounds_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world(tmp_path, monkeypatch)
    clock = iter([0.0, 2.0, 10.0, 11.0, 20.0, 24.0])  # begin and end of three rounds
    monkeypatch.setattr(augment, "loops", lambda *_: {"packed, fp32": len})
    monkeypatch.setattr(augment, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    work = workload.Workload(text="sst2", data=tmp_path)
    assert augment.measure(work, "bert-base", 8, 3, torch.device("cpu")) == [
        {"loop": "packed, fp32", "words": 8, "words_per_s": 8.0}
    ]


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no data at .*: pass a --data FOLDER"):
        augment.main([f"--data={tmp_path / 'none'}"])


def test_rows_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ROOT", tmp_path)
    assert table.augment() == "Not measured yet."
    results = [
        {"loop": "published, fp32", "words": 10, "words_per_s": 20.0},
        {"loop": "packed, bf16", "words": 80, "words_per_s": 1500.0},
    ]
    folder = tmp_path / "bench" / "results" / "machine"
    folder.mkdir(parents=True)
    facts = {"device": "CPU", "threads": 1, "torch": torch.__version__}
    work = {"model": "bert-base", "text": "sst2", "texts": 8, "candidates": 15}
    (folder / "augment.json").write_text(json.dumps({"machine": facts, "workload": work, "results": results}))
    assert table.augment().splitlines()[-2:] == [
        "| one forward pass for each word | fp32 | 20 | 1.0x |",
        "| fastdistill: all words of many sentences, packed | bf16 | 1,500 | 75.0x |",
    ]
