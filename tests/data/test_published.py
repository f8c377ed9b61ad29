"""Splits whose answers are not published: no figures come from them, whatever an answer is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from fastdistill.data.tasks import load_task
from fastdistill.recipe import Task

HIDDEN_TESTS: dict[str, tuple[Task, dict[str, Any], list[Any], Any]] = {
    "span": (
        Task(kind="span", text="question", pair="context", label="answers"),
        {"question": "was it good", "context": "the film was good"},
        [{"text": ["good"], "answer_start": [13]}, {"text": ["film"], "answer_start": [4]}],
        {"text": [], "answer_start": []},
    ),
    "multilabel": (Task(kind="multilabel", text="text", label="labels"), {"text": "a film"}, [["a"], ["a", "b"]], []),
    "tagging": (
        Task(kind="tagging", text="tokens", label="ner_tags"), {"tokens": ["a", "film"]}, [["O", "B-X"], ["O", "O"]],
        [-1, -1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HIDDEN_TESTS)
def test_a_split_without_published_answers_is_not_used(
    kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    task, texts, labels, hidden = HIDDEN_TESTS[kind]
    assert task.label is not None
    for split, told in (("train", labels * 10), ("test", [hidden] * 5)):
        rows = [json.dumps({**texts, task.label: label}) for label in told]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    data = load_task(replace(task, path=str(tmp_path), validation_size=4, test_size=6), tokenizer, 0)
    assert data.origins["test"] == "train, 6 rows set aside"
    assert any("has no published labels; its rows are not used" in said for said in data.said)
