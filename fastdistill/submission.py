"""GLUE submissions: the predictions for a task's test rows, in the files that gluebenchmark.com reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdistill.data.classes import as_text
from fastdistill.data.columns import complete
from fastdistill.data.packing import Sequences
from fastdistill.data.rows import open_splits, read_column, read_texts, splits_named
from fastdistill.data.source import Source
from fastdistill.data.tokenise import check_tokenizer, truncate_examples
from fastdistill.evaluate import predict
from fastdistill.models.encoder import Encoder
from fastdistill.models.pretrained import Tokenizer, load_tokenizer, quiet
from fastdistill.recipe import Task
from fastdistill.tasks import TASKS

# the file of each test split; MNLI has two
FILES = {
    "cola": {"": "CoLA"},
    "sst2": {"": "SST-2"},
    "mrpc": {"": "MRPC"},
    "stsb": {"": "STS-B"},
    "qqp": {"": "QQP"},
    "mnli": {"matched": "MNLI-m", "mismatched": "MNLI-mm"},
    "qnli": {"": "QNLI"},
    "rte": {"": "RTE"},
    "wnli": {"": "WNLI"},
}
NUMBERS = ("idx", "index", "id")  # what the Hub and GLUE's own files call the column of row numbers
BY_NAME = ("mnli", "qnli", "rte")  # whose predictions are class names; those of the others are numbers


def write_submission(
    student: str | Path, task: Task, output_dir: str | Path, say: Callable[[str], None] = print
) -> list[Path]:
    """Predict the test rows of a GLUE task and write a file for each test split: `index` and `prediction`, as TSV.

    Args:
        student: a folder fine-tuned on the task.
        task: one of GLUE's nine, by its name; its path is a folder, or the file of a task's only test split.
        output_dir: where the files go.
        say: takes what is taken for granted of the student's classes.

    Returns:
        The files, such as MNLI-m.tsv and MNLI-mm.tsv.

    Raises:
        FileNotFoundError: the folder or the data is not there.
        ValueError: the task is none of GLUE's; there is no test split, or its rows are not what the task says; the
            student has other classes.
    """
    quiet()
    if task.name not in FILES:
        raise ValueError(f"task.name is {task.name!r}: choose one of GLUE's tasks, {', '.join(FILES)}")
    files = FILES[task.name]
    names = TASKS[task.name].label_names
    spelt = names if task.name in BY_NAME else None
    task, _ = complete(task)
    assert task.kind is not None
    assert task.max_length is not None
    tokenizer = load_tokenizer(student)
    check_tokenizer(tokenizer, task.max_length, pair=task.pair is not None)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = Encoder.load(student, head="finetuned", kind=task.kind).to(device)
    if told := encoder.order_labels(names, len(names) if names else 1):
        say(f"student: {student} {told}")
    sources = open_splits(task)
    alone = Path(task.path or "").expanduser().is_file() and len(files) == 1
    splits = {"": sources["train"]} if alone else splits_named(sources, "test")
    if missing := [ending for ending in files if ending not in splits]:
        wanted = ", ".join(f"test_{ending}".rstrip("_") for ending in missing)
        raise ValueError(f"{task.path} has no split {wanted}, of which a submission of {task.name} consists")
    written = []
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    for ending, file in files.items():
        indices, data = _read(splits[ending], task, tokenizer)
        lines = [
            f"{index}\t{_spelling(x, spelt)}" for index, x in zip(indices, predict(encoder, data, device), strict=True)
        ]
        written.append(Path(output_dir) / f"{file}.tsv")
        written[-1].write_text("\n".join(["index\tprediction", *lines, ""]))
    return written


def _read(source: Source, task: Task, tokenizer: Tokenizer) -> tuple[list[int], Sequences]:
    """The rows of a test split: their numbers, and their texts as tokens; every row is answered, an empty one too."""
    assert task.text is not None
    assert task.max_length is not None
    texts = read_texts(source, task.text, "task.text", may_lack=True)
    pairs = None if task.pair is None else read_texts(source, task.pair, "task.pair", may_lack=True)
    column = next((name for name in NUMBERS if name in source.columns), None)
    indices = _whole(read_column(source, column, "task"), column, source.where) if column else list(range(len(texts)))
    if len(set(indices)) < len(indices):
        raise ValueError(f"{source.where}: column {column} has the same number twice, of which a submission takes none")
    return indices, truncate_examples(tokenizer, texts, pairs, task.max_length)


def _whole(indices: list[Any], column: str, where: str) -> list[int]:
    for row, index in enumerate(indices, start=1):
        if not re.fullmatch(r"\d+", as_text(index)):
            raise ValueError(f"{where}, row {row}: column {column!r} is {index!r}, no number of a row; correct it")
    return [int(as_text(index)) for index in indices]


def _spelling(prediction: Any, names: tuple[str, ...] | None) -> str:
    """A class by its name or its number; a similarity of sentences from 0 to 5 with three decimals."""
    if isinstance(prediction, np.floating):
        return f"{min(5.0, max(0.0, float(prediction))):.3f}"
    return names[prediction] if names else str(prediction)
