"""Stages that train on augmented text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fastdistill import Augment, Recipe, run
from fastdistill.checks import check_augment
from fastdistill.inputs import load_inputs
from tests.bad_cases import with_stage
from tests.tiny import WORDS, make_vectors, only, tiny_recipe

replace = dataclasses.replace


def recipe_of(world: Path, folder: Path, **options: object) -> Recipe:
    vectors = str(make_vectors(folder / "glove.txt", WORDS))
    augment = Augment(vectors=vectors, **({"copies": 3} | options))  # type: ignore[arg-type]
    recipe = tiny_recipe(world, folder / "out")
    recipe = replace(recipe, task=replace(recipe.task, augment=augment), cache_dir=str(folder / "cache"))
    return with_stage(only(recipe, "tsd"), "tsd", data="augmented", steps=None, epochs=1.0)


def test_a_stage_learns_from_the_rows_and_their_copies(world: Path, tmp_path: Path) -> None:
    recipe = recipe_of(world, tmp_path)
    said: list[str] = []
    inputs = load_inputs(recipe, said.append)
    assert len(said) == 1
    assert inputs.augmented is not None
    assert inputs.task is not None
    assert inputs.data(recipe.stages["tsd"]) is inputs.augmented
    counts = inputs.augmented.counts
    assert len(inputs.augmented) == counts["examples"] == counts["rows"] + counts["copies"] > 300
    by_text = {tuple(ids): label for ids, label in pieces(inputs.task.train)}
    same = [by_text.get(tuple(ids)) == label for ids, label in pieces(inputs.augmented)]
    assert sum(same) >= 100, "a row itself is there with its label"
    labels = inputs.augmented.labels
    assert labels is not None
    assert 0 < labels.mean() < 1

    report = run(recipe)
    (stage,) = report["stages"]
    assert stage["data"] == "augmented"
    assert stage["tokens"] == len(inputs.augmented.input_ids) > 3 * len(inputs.task.train.input_ids)
    assert report["data"]["augmented"] == {**counts, "origin": inputs.copied_from}
    assert "alone, for" in inputs.copied_from
    assert json.loads((tmp_path / "out" / "control" / "result.json").read_text())["steps"] == stage["steps"]


def test_held_out_rows_among_the_copies_are_said(world: Path, tmp_path: Path) -> None:
    recipe, folder = recipe_of(world, tmp_path, copies=50, candidates=2, probability=0.5), tmp_path / "task"
    folder.mkdir()
    for name, texts in (("train", ("good film", "bad story")), ("test", ("film film", "good film", "story good"))):
        lines = (f"{text},{label}\n" for text, label in zip(texts, ("positive", "negative") * 2, strict=False))
        (folder / f"{name}.csv").write_text("".join(["text,label\n", *lines]))
    (folder / "validation.csv").write_text("text,label\nit was a film,positive\nit was a story,negative\n")
    vectors = str(make_vectors(tmp_path / "few.txt", ["good", "film", "bad"]))
    task = replace(recipe.task, path=str(folder), augment=replace(recipe.task.augment, vectors=vectors))
    said = load_inputs(replace(recipe, task=task), [].append).said
    assert "task: 1 of 3 rows of test are in train word for word, where a model may answer from memory" in said
    assert "task: 1 of 3 rows of test are among the copies word for word, where a model may answer from memory" in said


def pieces(sequences) -> list[tuple[list[int], int]]:  # type: ignore[no-untyped-def]
    bounds = zip(sequences.offsets, sequences.offsets[1:], strict=False)
    return [(sequences.input_ids[a:b].tolist(), label) for (a, b), label in zip(bounds, sequences.labels, strict=True)]


def test_batches_are_checked_before_the_copies_are_made(world: Path, tmp_path: Path) -> None:
    recipe = with_stage(recipe_of(world, tmp_path), "tsd", tokens_per_batch=4)
    with pytest.raises(ValueError, match="stage tsd: a sequence of .* does not fit"):
        load_inputs(recipe)
    assert not (tmp_path / "cache" / "augmented").exists()


def test_other_copies_are_other_data(world: Path, tmp_path: Path) -> None:
    first, again = (load_inputs(recipe_of(world, tmp_path), [].append).fingerprint for _ in range(2))
    other = load_inputs(recipe_of(world, tmp_path, probability=0.5), [].append).fingerprint
    plain = load_inputs(with_stage(recipe_of(world, tmp_path), "tsd", data="task"), [].append).fingerprint
    assert first == again
    assert len({first, other, plain}) == 3


def test_a_batch_has_room_for_the_longest_copy(world: Path, tmp_path: Path) -> None:
    recipe = with_stage(recipe_of(world, tmp_path), "tsd", tokens_per_batch=8)
    with pytest.raises(ValueError, match="stage tsd: a sequence of .* tokens does not fit into tokens_per_batch=8"):
        load_inputs(recipe, [].append)


@pytest.mark.parametrize("kind", ["tagging", "span"])
def test_labels_of_single_words_are_refused(kind: str, world: Path, tmp_path: Path) -> None:
    task = replace(recipe_of(world, tmp_path).task, kind=kind)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=f"task.kind is {kind}, whose labels belong to single words.* set data to task"
    ):
        check_augment(task)
