"""GLUE submissions: the names of the files, the spelling of the answers, the rows and their numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from fastdistill.recipe import Task
from fastdistill.submission import FILES, write_submission
from fastdistill.tasks import TASKS
from recipes.glue_submission import main
from tests.tiny import WORDS, make_texts, make_tokenizer


def student(folder: Path, names: tuple[str, ...] | None) -> Path:
    """A random model of these classes, whose mean over some texts favours none."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(WORDS) + 5, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64, initializer_range=0.5, num_labels=len(names or ("",)),
    )  # fmt: skip
    if names:
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    model, tokenizer = BertForSequenceClassification(config).eval(), make_tokenizer()
    texts = [text for text, _ in make_texts(60, 9)]
    with torch.no_grad():
        each = [model(**tokenizer(a, b, return_tensors="pt")).logits[0] for a, b in zip(texts, texts[1:], strict=False)]
        model.classifier.bias.sub_(torch.stack(each).mean(0))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def hidden_rows(folder: Path, task: Task, ending: str) -> list[dict[str, Any]]:
    columns = [column for column in (task.text, task.pair) if column]
    texts = [text for text, _ in make_texts(60, 9 + len(ending))]
    rows = [{"idx": 100 + n, **dict(zip(columns, texts[2 * n :], strict=False)), "label": -1} for n in range(30)]
    folder.mkdir(exist_ok=True)
    name = f"test_{ending}".rstrip("_")
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def read(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file, delimiter="\t"))


SPELLINGS = {
    "cola": {"0", "1"}, "sst2": {"0", "1"}, "mrpc": {"0", "1"}, "qqp": {"0", "1"}, "wnli": {"0", "1"},
    "mnli": {"entailment", "neutral", "contradiction"}, "qnli": {"entailment", "not_entailment"},
    "rte": {"entailment", "not_entailment"},
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_submission_holds_what_plain_transformers_says(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    folder = student(tmp_path / "student", task.label_names)
    rows = {ending: hidden_rows(tmp_path / "data", task, ending) for ending in FILES[name]}
    written = write_submission(folder, Task(name=name, path=str(tmp_path / "data")), tmp_path / "out")
    assert [path.name for path in written] == [f"{file}.tsv" for file in FILES[name].values()]
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForSequenceClassification, AutoTokenizer))
    for path, own in zip(written, rows.values(), strict=True):
        header, *lines = read(path)
        assert header == ["index", "prediction"]
        assert [index for index, _ in lines] == [str(row["idx"]) for row in own]
        for (_, answer), row in zip(lines, own, strict=True):
            texts = [row[column] for column in (task.text, task.pair) if column]
            logits = model(**tokenizer(*texts, return_tensors="pt")).logits[0]
            if name == "stsb":
                assert answer == f"{logits.clamp(0, 5).item():.3f}"
            else:
                best = int(logits.argmax())
                assert answer == (model.config.id2label[best] if name in ("mnli", "qnli", "rte") else str(best))
        answers = {answer for _, answer in lines}
        assert len(answers) > 1
        assert name == "stsb" or answers <= SPELLINGS[name]


@pytest.mark.parametrize("number", [None, 3.5, "dev-0", "", -1])
def test_numbers_of_rows_are_whole(number: Any, tmp_path: Path) -> None:
    rows = hidden_rows(tmp_path / "data", TASKS["qnli"], "")
    path = tmp_path / "data" / "test.jsonl"
    numbers = ["007" if isinstance(number, str) else 7.0, number]
    path.write_text("".join(json.dumps(row | {"idx": n}) + "\n" for row, n in zip(rows, numbers, strict=False)))
    folder, task = student(tmp_path / "student", TASKS["qnli"].label_names), Task(name="qnli", path=str(path.parent))
    with pytest.raises(ValueError, match=r"test.jsonl, row 2: column 'idx' is .*, no number of a row"):
        write_submission(folder, task, tmp_path / "out")
    path.write_text("".join(json.dumps(row | {"idx": f"{n:03d}"}) + "\n" for n, row in enumerate(rows)))
    (written,) = write_submission(folder, task, tmp_path / "out")
    assert [index for index, _ in read(written)[1:]] == [str(n) for n in range(30)]


def test_a_student_with_its_classes_in_another_order(tmp_path: Path) -> None:
    rows = hidden_rows(tmp_path / "data", TASKS["qnli"], "")
    folder = student(tmp_path / "student", ("not_entailment", "entailment"))
    (path,) = write_submission(folder, Task(name="qnli", path=str(tmp_path / "data")), tmp_path)
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForSequenceClassification, AutoTokenizer))
    for (_, answer), row in zip(read(path)[1:], rows, strict=True):
        logits = model(**tokenizer(row["question"], row["sentence"], return_tensors="pt")).logits[0]
        assert answer == ("not_entailment", "entailment")[int(logits.argmax())]


def test_rows_of_one_number_are_refused(tmp_path: Path) -> None:
    row = json.dumps({"sentence": "good film", "idx": 4})
    (tmp_path / "test.jsonl").write_text(f"{row}\n{row}\n")
    folder = student(tmp_path / "student", TASKS["sst2"].label_names)
    with pytest.raises(ValueError, match=r"test\.jsonl: column idx has the same number twice"):
        write_submission(folder, Task(name="sst2", path=str(tmp_path)), tmp_path / "out")


def test_glue_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their columns, their numbers, a single file, and a row without a text, which is answered like any other."""
    for ending in ("matched", "mismatched"):
        table = "index\tpromptID\tsentence1\tsentence2\n7\t1\tgood film\tbad film\n5\t1\t\tbad\n"
        (tmp_path / f"test_{ending}.tsv").write_text(table)
    folder = student(tmp_path / "student", ("LABEL_0", "LABEL_1", "LABEL_2"))
    columns = ["--task.text", "sentence1", "--task.pair", "sentence2"]
    common = ["--student", str(folder), "--output_dir", str(tmp_path / "out")]
    main([*common, "--task.name", "mnli", "--task.path", str(tmp_path), *columns])
    assert [index for index, _ in read(tmp_path / "out" / "MNLI-mm.tsv")] == ["index", "7", "5"]
    assert "does not name its classes: they are taken to be in the task's order, entailment" in capsys.readouterr().err
    (tmp_path / "rows.tsv").write_text("id\tquestion1\tquestion2\n3\tgood film\tbad\n")
    student(tmp_path / "student", TASKS["qqp"].label_names)
    main([*common, "--task.name", "qqp", "--task.path", str(tmp_path / "rows.tsv")])
    assert [index for index, _ in read(tmp_path / "out" / "QQP.tsv")] == ["index", "3"]


def test_the_command_writes_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hidden_rows(tmp_path / "data", TASKS["mnli"], "matched")
    folder = student(tmp_path / "student", TASKS["mnli"].label_names)
    data = ["--student", str(folder), "--task.path", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    for name, message in (("mnli", "no split test_mismatched"), ("squad", "choose one of GLUE's tasks, cola")):
        with pytest.raises(SystemExit) as stop:
            main([*data, "--task.name", name])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    hidden_rows(tmp_path / "data", TASKS["mnli"], "mismatched")
    main([*data, "--task.name", "mnli"])
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / f"{file}.tsv") for file in ("MNLI-m", "MNLI-mm")]
