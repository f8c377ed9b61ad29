"""Augmentation of a task: what is written, kept, gone on with and refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdistill.data import augment as augment_module
from fastdistill.data import candidates as candidates_module
from fastdistill.data.augment import Augmented, load_augmented
from fastdistill.data.tasks import Rows
from fastdistill.recipe import Augment, Task
from tests.killed_augment import ROWS_PER_SHARD
from tests.tiny import WORDS, make_masked_lm, make_teacher, make_texts, make_vectors

ROOT = Path(__file__).parents[2]
NAMES = ("negative", "positive")
ROWS = make_texts(10, seed=3)
TEXTS = [text for text, _ in ROWS]
OTHERS = [text for text, _ in make_texts(10, seed=4)]
LABELS = np.array([NAMES.index(label) for _, label in ROWS])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_masked_lm(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_vectors(tmp_path_factory.mktemp("vectors") / "glove.txt", WORDS))


def make(
    teacher: str | None,
    vectors: str | None,
    cache: str | Path,
    rows: Rows | None = None,
    seed: int = 0,
    said: list[str] | None = None,
    names: tuple[str, ...] = NAMES,
    **options: object,
) -> Augmented:
    rows = Rows(TEXTS, None, LABELS, "train") if rows is None else rows
    settings = Augment(vectors=vectors, **({"copies": 4, "candidates": 3} | options))  # type: ignore[arg-type]
    task = Task(
        path="x", text="text", pair=None if rows.pairs is None else "other", label="label", kind="classification",
        max_length=128, augment=settings,
    )  # fmt: skip
    classes = rows.labels.dtype == np.int64 or rows.labels.ndim > 1
    return load_augmented(
        task, rows, names if classes else None, teacher, cache, seed, device=torch.device("cpu"), dtype=torch.float32,
        say=[].append if said is None else said.append,
    )  # fmt: skip


def by_row(made: Augmented) -> list[list[tuple[str, ...]]]:
    """The texts of every row, its original first."""
    texts = list(zip(made.texts, *([] if made.pairs is None else [made.pairs]), strict=True))
    return [[texts[n] for n in np.flatnonzero(made.source_ids == row)] for row in range(made.source_ids.max() + 1)]


def test_every_row_is_there_with_its_copies_and_none_twice(model: str, vectors: str, tmp_path: Path) -> None:
    made = make(model, vectors, tmp_path)
    rows = by_row(made)
    assert [copies[0] for copies in rows] == [(text,) for text in TEXTS]
    assert all(len(copies) == len(set(copies)) <= 5 for copies in rows)
    assert made.counts["rows"] == 10
    assert made.counts["copies"] == sum(len(copies) - 1 for copies in rows) > 20
    assert made.counts["copies"] + made.counts["dropped"] == 40
    assert made.counts["dropped"] > 0


def test_what_changed_is_counted(model: str, vectors: str, tmp_path: Path) -> None:
    made = make(model, vectors, tmp_path)
    changed = Counter[bool]()
    for original, *copies in by_row(made):
        for copy in copies:
            changed.update(a != b for a, b in zip(original[0].split(), copy[0].split(), strict=True))
    assert changed[True] == made.counts["replaced by the model"] > 0
    assert made.counts["replaced by vectors"] == 0
    stop = sum(word in "the a was is it very not too one".split() for word in " ".join(made.texts).split())
    assert 0 < made.counts["kept"] < changed[False] <= made.counts["kept"] + stop


def test_the_folder_is_a_data_set_with_the_columns_of_the_task(model: str, vectors: str, tmp_path: Path) -> None:
    made = make(model, vectors, tmp_path / "cache", Rows(TEXTS, OTHERS, LABELS, "train"))
    assert made.folder.parent == tmp_path / "cache" / "augmented"
    read = datasets.load_dataset("parquet", data_dir=str(made.folder), cache_dir=str(tmp_path / "hub"), split="train")
    assert read.column_names == ["text", "other", "label", "source_id"]
    assert read.features["label"].names == list(NAMES)
    assert (list(read["text"]), list(read["other"])) == (made.texts, made.pairs)
    assert list(read["source_id"]) == made.source_ids.tolist() == sorted(made.source_ids)
    assert list(read["label"]) == LABELS[made.source_ids].tolist()
    report = json.loads((made.folder / "report.json").read_text())
    assert report["counts"] == made.counts
    assert report["settings"]["copies"] == 4
    (shown,) = report["examples"][0].items()
    assert shown == (f"{TEXTS[0]} | {OTHERS[0]}", [" | ".join(copy) for copy in by_row(made)[0][1:3]])


def test_numbers_for_labels(vectors: str, tmp_path: Path) -> None:
    labels = np.linspace(0, 5, 10, dtype=np.float32)
    made = make(None, vectors, tmp_path / "cache", Rows(TEXTS, None, labels, "train"))
    read = datasets.load_dataset("parquet", data_dir=str(made.folder), cache_dir=str(tmp_path / "hub"), split="train")
    assert np.array(read["label"], np.float32).tolist() == labels[made.source_ids].tolist()


def test_lists_of_classes_keep_their_names(vectors: str, tmp_path: Path) -> None:
    labels = np.eye(10, 3, dtype=np.float32) + np.eye(10, 3, 1, dtype=np.float32)  # rows 3 to 9 have no class
    rows = Rows(TEXTS, None, labels, "train")
    made = make(None, vectors, tmp_path / "cache", rows, names=("a", "b", "c"))
    read = datasets.load_dataset("parquet", data_dir=str(made.folder), cache_dir=str(tmp_path / "hub"), split="train")
    assert read.features["label"].feature.names == ["a", "b", "c"]
    assert list(read["label"]) == [np.flatnonzero(labels[row]).tolist() for row in made.source_ids]


@pytest.mark.parametrize("interrupted", [False, True])
def test_no_copy_says_what_another_row_says(interrupted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three words in all, copies of texts of two words meet."""
    texts = ["good film", "bad film", "good film"]
    glove = make_vectors(tmp_path / "few.txt", ["good", "bad", "film"])
    rows = Rows(texts, None, np.array([1, 0, 0]), "train")
    if interrupted:
        monkeypatch.setattr(augment_module, "ROWS_PER_SHARD", 1)
        first_shard = augment_module._Job._shard

        def stopped(job: Any, rows: range, *others: Any) -> Any:
            if rows.start:
                raise KeyboardInterrupt
            return first_shard(job, rows, *others)

        monkeypatch.setattr(augment_module._Job, "_shard", stopped)
        with pytest.raises(KeyboardInterrupt):
            make(None, str(glove), tmp_path, rows, copies=20, candidates=1)
        monkeypatch.setattr(augment_module._Job, "_shard", first_shard)
    made = make(None, str(glove), tmp_path, rows, copies=20, candidates=1)
    first = np.unique(made.source_ids, return_index=True)[1]
    assert [made.texts[n] for n in first] == texts, "rows stay, even twice"
    copies = [text for n, text in enumerate(made.texts) if n not in first]
    assert copies
    assert len(set(copies)) == len(copies)
    assert not set(copies) & set(texts)
    assert made.counts["copies"] + made.counts["dropped"] == 60


def test_copies_of_pairs(model: str, vectors: str, tmp_path: Path) -> None:
    rows = Rows(TEXTS, OTHERS, LABELS, "train")
    side_by_side = by_row(make(model, vectors, tmp_path, rows))
    assert any(a != copies[0][0] and b != copies[0][1] for copies in side_by_side for a, b in copies[1:])
    for copies in by_row(make(model, vectors, tmp_path, rows, paper_pairs=True)):
        (a, b), *others = copies
        last = ([a] + [first for first, second in others if second == b])[-1]
        assert all(second == b or first == last for first, second in others)


def test_copies_of_a_row_are_the_same_whatever_stands_beside_it(
    model: str, vectors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(model, vectors, tmp_path / "whole")
    monkeypatch.setattr(augment_module, "ROWS_PER_SHARD", 3)
    cut = make(model, vectors, tmp_path / "cut", tokens_per_batch=64)
    few = make(model, vectors, tmp_path / "few", Rows(TEXTS[:4], None, LABELS[:4], "train"))
    assert by_row(cut) == by_row(whole)
    assert by_row(few) == by_row(whole)[:4]
    assert cut.counts == whole.counts
    assert cut.folder.name == whole.folder.name != few.folder.name
    assert by_row(make(model, vectors, tmp_path / "other", seed=1)) != by_row(whole)


@pytest.mark.parametrize(("name", "copies"), [("cola", 30), ("mnli", 10), ("sst2", 20), (None, 20), ("another", 20)])
def test_copies_by_default_are_those_published(name: str | None, copies: int, vectors: str, tmp_path: Path) -> None:
    task = Task(
        path="x", name=name, text="text", label="label", kind="classification", max_length=128,
        augment=Augment(vectors=vectors),
    )  # fmt: skip
    said: list[str] = []
    made = load_augmented(
        task, Rows(TEXTS[:2], None, LABELS[:2], "train"), NAMES, None, tmp_path, 0, device=torch.device("cpu"),
        dtype=torch.float32, say=said.append,
    )  # fmt: skip
    assert f"2 rows x {copies} copies" in said[0]
    assert made.counts["copies"] + made.counts["dropped"] == 2 * copies


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of texts of every call that seeks candidates."""
    calls: list[int] = []
    original = candidates_module.Candidates.__call__

    def counted(self: candidates_module.Candidates, texts: list[str]) -> object:
        calls.append(len(texts))
        return original(self, texts)

    monkeypatch.setattr(candidates_module.Candidates, "__call__", counted)
    return calls


def test_a_second_call_reads_what_was_made(model: str, vectors: str, tmp_path: Path, asked: list[int]) -> None:
    made, again = (make(model, vectors, tmp_path) for _ in range(2))
    assert asked == [10]
    assert (by_row(made), made.counts, made.origin) == (by_row(again), again.counts, again.origin)
    make(model, vectors, tmp_path, probability=0.5)
    make(model, None, tmp_path)
    make(None, vectors, tmp_path)
    turned = Rows(TEXTS, None, 1 - LABELS, "train")
    make(model, vectors, tmp_path, turned)
    assert len(asked) == 5, "what decides the copies decides the folder"


def test_what_is_torn_is_made_again(
    model: str, vectors: str, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment_module, "ROWS_PER_SHARD", 5)
    made = make(model, vectors, tmp_path)
    _, shard = sorted(made.folder.glob("*.parquet"))
    content = shard.read_bytes()
    for damage in (content[:-100], None):
        shard.write_bytes(damage) if damage else shard.unlink()
        assert by_row(make(model, vectors, tmp_path)) == by_row(made)
    (made.folder / "report.json").write_text("{")
    assert by_row(make(model, vectors, tmp_path)) == by_row(made)
    assert len(asked) == 8


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_a_killed_job_is_gone_on_with(
    count: int, model: str, vectors: str, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shard is written as two files: its rows, and that it is there."""
    monkeypatch.setattr(augment_module, "ROWS_PER_SHARD", ROWS_PER_SHARD)
    command = [sys.executable, "-m", "tests.killed_augment", model, vectors, str(tmp_path / "killed"), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    whole = make(model, vectors, tmp_path / "whole")
    assert len(asked) == 3
    asked.clear()
    resumed = make(model, vectors, tmp_path / "killed")
    assert len(asked) == 3 - (count - 1) // 2, "what was written is made again"
    assert content(resumed.folder) == content(whole.folder)
    assert resumed.counts == whole.counts


def test_a_teacher_without_head_leaves_it_to_the_vectors(vectors: str, tmp_path: Path) -> None:
    said: list[str] = []
    teacher = str(make_teacher(tmp_path / "teacher"))
    made = make(teacher, vectors, tmp_path, said=said)
    assert made.origin == f"{vectors} alone, for {teacher} has no head that predicts masked words"
    assert made.origin in said[0]
    assert made.counts["replaced by the model"] == 0 < made.counts["replaced by vectors"]
    assert by_row(made) == by_row(make(None, vectors, tmp_path))


def test_a_model_of_its_own_comes_before_the_teacher(model: str, vectors: str, tmp_path: Path) -> None:
    made = make("/no/teacher", None, tmp_path, model=model)
    assert made.origin == f"{model}; other words keep themselves"
    assert made.counts["replaced by the model"] > 0


def test_a_model_without_head_is_refused(vectors: str, tmp_path: Path) -> None:
    headless = str(make_teacher(tmp_path / "teacher"))
    with pytest.raises(ValueError, match="has no head that predicts masked words"):
        make(None, vectors, tmp_path, model=headless)
    with pytest.raises(
        ValueError, match=r"teacher has no head that predicts masked words.* give --task\.augment\.model, .*vectors"
    ):
        make(headless, None, tmp_path)
    with pytest.raises(ValueError, match=r"there is no teacher\.path"):
        make(None, None, tmp_path)
    assert not (tmp_path / "augmented").exists()


def test_missing_vectors(model: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file .*gone.txt"):
        make(model, str(tmp_path / "gone.txt"), tmp_path)


def test_the_cache_is_of_the_content_of_the_vectors(vectors: str, tmp_path: Path) -> None:
    moved = tmp_path / "moved.txt"
    moved.write_bytes(Path(vectors).read_bytes())
    first, same = make(None, vectors, tmp_path), make(None, str(moved), tmp_path)
    assert same.folder == first.folder
    moved.write_text(moved.read_text().replace("good ", "well "))
    assert make(None, str(moved), tmp_path).folder != first.folder


def test_the_cache_is_of_the_content_of_the_model(model: str, tmp_path: Path) -> None:
    moved = shutil.copytree(model, tmp_path / "moved")
    first, same = make(model, None, tmp_path), make(str(moved), None, tmp_path)
    assert same.folder == first.folder
    weights = load_file(moved / "model.safetensors")
    weights["cls.predictions.transform.dense.weight"][0, 0] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert make(str(moved), None, tmp_path).folder != first.folder
