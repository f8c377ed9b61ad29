"""Sources: every format, and errors that name the file and the remedy."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from fastdistill.data import source as source_module
from fastdistill.data.source import from_files, from_hub, local_files, split_of

ROWS = [{"text": "a, b", "label": "1"}, {"text": "NA", "label": "0"}, {"text": "007 \u4f60", "label": "1"}]
OPENERS: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def as_text(kind: str) -> str:
    if kind == ".txt":
        return "".join(f"{row['text']}\n" for row in ROWS)
    if kind == ".json":
        return json.dumps(ROWS)
    if kind == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind == ".tsv":
        return "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS)
    return "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS)


def read(path: Path | str, *columns: str) -> dict[str, list[Any]]:
    (batch,) = from_files(local_files(str(path))).read(*columns, option="task")
    return batch


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("compression", OPENERS)
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json", ".csv", ".tsv"])
def test_text_formats(kind: str, compression: str, tmp_path: Path) -> None:
    file = tmp_path / f"rows{kind}{compression}"
    with OPENERS[compression](file, "wt", encoding="utf-8") as stream:
        stream.write(as_text(kind))
    expected = {"text": [row["text"] for row in ROWS]}
    if kind != ".txt":
        expected["label"] = [row["label"] for row in ROWS]
    assert read(file, *expected) == expected


def test_a_quote_in_tabbed_text_is_a_quote(tmp_path: Path) -> None:
    texts = ['" the film', 'a 5" disc', '"quite"', 'bad plot"', '"']
    file = written(tmp_path / "rows.tsv", "text\tlabel\n" + "".join(f"{text}\t{n}\n" for n, text in enumerate(texts)))
    assert read(file, "text", "label") == {"text": texts, "label": list("01234")}


def test_parquet_and_its_class_names(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])})
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(file)
    source = from_files([file])
    assert source.class_names("label") == ("n", "p")
    assert source.class_names("text") is None
    assert read(file, "label", "text") == {"text": ["a", "b"], "label": [1, 0]}


def test_globs_and_folders_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep [1]").mkdir()
    for name, text in [("b.txt", "2"), ("a.txt", "1"), ("deep [1]/c.txt", "3")]:
        written(tmp_path / name, f"{text}\n")
    written(tmp_path / "notes.md", "not text of ours")
    assert read(f"{tmp_path}/*.txt", "text")["text"] == ["1", "2"]
    assert read(f"{tmp_path}/**/*.txt", "text")["text"] == ["1", "2", "3"]
    assert read(tmp_path, "text")["text"] == ["1", "2", "3"]


def test_rows_come_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "ROWS_AT_ONCE", 2)
    file = written(tmp_path / "rows.txt", "1\n2\n3\n")
    assert list(from_files([file]).read("text", option="task")) == [{"text": ["1", "2"]}, {"text": ["3"]}]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("train/part-0.csv", "train"),
        ("data/Test_b/0/part-0.csv", "test_b"),
        ("test/train.csv", "train"),
        ("tests/part-0.csv", None),
        ("dev.tsv.gz", "dev"),
        ("Test.csv", "test"),
        ("train_part1.csv", "train_part1"),
        ("validation_matched.jsonl", "validation_matched"),
        ("test.csv", "test"),
        ("testimonials.csv", None),
        ("reviews.csv", None),
    ],
)
def test_file_names_tell_splits(name: str, split: str | None) -> None:
    assert split_of(Path("test") / name, Path("test")) == split


def test_reading_leaves_no_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    before = sorted(cache.iterdir()) if cache.exists() else []
    datasets.enable_progress_bars()
    datasets.logging.set_verbosity_warning()
    read(written(tmp_path / "rows.csv", as_text(".csv")), "text")
    with pytest.raises(ValueError, match="cannot be read"):
        read(written(tmp_path / "bad.jsonl", '{"text":\n'), "text")
    assert (sorted(cache.iterdir()) if cache.exists() else []) == before
    assert datasets.is_progress_bar_enabled()
    assert datasets.logging.get_verbosity() == datasets.logging.WARNING
    assert caplog.records == []


@pytest.mark.parametrize(
    "path",
    [
        "./texts",
        "/no/where",
        "~/no-such-texts",
        "texts.csv",
        "texts.jsonl.gz",
        "owner/texts.parquet",
        "*.none",
        "a/b/c",
    ],
)
def test_what_looks_like_a_path_is_a_missing_file(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no such file or folder: {re.escape(path)}; check the path"):
        local_files(path)


def test_a_name_inside_a_local_folder_is_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_files("data/texts") == []
    (tmp_path / "data").mkdir()
    with pytest.raises(FileNotFoundError, match="no such file or folder: data/texts"):
        local_files("data/texts")


def test_hidden_copies_below_a_folder_are_left_out(tmp_path: Path) -> None:
    shown = tmp_path / ".home" / "train.csv"
    for file in (
        shown,
        tmp_path / ".home" / ".ipynb_checkpoints" / "train-checkpoint.csv",
        tmp_path / ".home/._train.csv",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("text,label\na,0\n")
    assert local_files(str(tmp_path / ".home")) == [shown]


def test_csv_files_of_one_folder_have_one_header(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", "text,label\na,1\n")
    written(tmp_path / "b.csv", "sentence,label\nb,1\n")
    with pytest.raises(ValueError, match=r"b\.csv has the columns sentence, label, not text, label"):
        from_files(local_files(str(tmp_path)))


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    assert read(written(tmp_path / "rows.csv", "\ufefftext,label\na,1\n"), "text") == {"text": ["a"]}


def test_a_hub_id_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_files("imdb") == local_files("nyu-mll/glue") == []
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=r"'nyu-mll/glue' is no file or folder here.*cannot be reached.*local files"
    ):
        from_hub("nyu-mll/glue", "sst2")


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "text.docx", "x")
    for path in (file, tmp_path / "*.docx"):
        with pytest.raises(ValueError, match=r"text\.docx is of an unknown format; known are \.txt, \.jsonl"):
            local_files(str(path))
    with pytest.raises(FileNotFoundError, match=r"holds no file of text \(\.txt"):
        local_files(str(tmp_path))


def test_one_format_at_a_time(tmp_path: Path) -> None:
    files = [written(tmp_path / "a.csv", "text\nx\n"), written(tmp_path / "b.tsv", "text\nx\n")]
    with pytest.raises(ValueError, match=r"several formats \(\.csv, \.tsv\); choose one with a glob such as .*\*\.csv"):
        from_files(files)


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.jsonl", "x.parquet"])
def test_empty_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} is empty; remove it, or give a file with rows"):
        read(written(tmp_path / name, ""), "text")


def test_files_without_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"head\.csv has no rows"):
        read(written(tmp_path / "head.csv", "text,label\n"), "text")
    none = tmp_path / "none.parquet"
    datasets.Dataset.from_dict({"text": []}, features=datasets.Features({"text": datasets.Value("string")})).to_parquet(
        none
    )
    with pytest.raises(ValueError, match=r"none\.parquet has no rows"):
        read(none, "text")


def test_unknown_columns_are_named_with_those_there(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.csv", "sentence,label\nx,1\n")
    with pytest.raises(
        ValueError, match=r"rows\.csv has no column 'sentense', only sentence, label; did you mean 'sentence'"
    ):
        read(file, "sentense")
    with pytest.raises(ValueError, match="no column 'text', only sentence, label; set the columns in task"):
        read(file, "text")


@pytest.mark.parametrize("compression", ["", ".gz"])
@pytest.mark.parametrize(
    ("kind", "content", "where"),
    [
        (".txt", "abc\nd\u00e9f\n", "byte 5, line 2"),
        (".csv", "text,label\nab\u00e9,1\n", "byte 13, line 2"),
        (".jsonl", '{"text": "ab"}\n{"text": "\u00e9"}\n', "byte 25, line 2"),
    ],
)
def test_other_encodings_are_named_with_their_place(
    kind: str, content: str, where: str, compression: str, tmp_path: Path
) -> None:
    file = tmp_path / f"latin{kind}{compression}"
    with OPENERS[compression](file, "wb") as stream:
        stream.write(content.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"latin{kind}{compression} is not UTF-8 text \({where}\); convert it"):
        read(file, "text")


def test_columns_without_a_name_are_called_as_pandas_calls_them(tmp_path: Path) -> None:
    file = written(tmp_path / "index.csv", ",text,label\n0,a b,1\n1,c,0\n")
    assert read(file, "text", "label") == {"text": ["a b", "c"], "label": ["1", "0"]}
    assert read(file, "Unnamed: 0") == {"Unnamed: 0": ["0", "1"]}


def test_endings_in_capitals(tmp_path: Path) -> None:
    assert read(written(tmp_path / "ROWS.CSV", "text\na\n"), "text") == {"text": ["a"]}


@pytest.mark.parametrize("compression", [".gz", ".xz", ".bz2"])
def test_damaged_compressed_files_are_named(compression: str, tmp_path: Path) -> None:
    file = tmp_path / f"x.csv{compression}"
    with OPENERS[compression](file, "wb") as stream:
        stream.write(b"text\n" + b"some words\n" * 2000)
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = b"\0" * (len(content) - len(content) // 2)
    file.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        read(file, "text")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.jsonl", '{"text": "a"}\n{"text":\n'),
        ("broken.parquet", "no parquet"),
        ("broken.csv.gz", "no gzip"),
        ("more_fields_later.csv", "text,label\na,1\nb,1,1,1\n"),
        ("more_fields_at_once.csv", "text,label\na,b,1\n"),
    ],
)
def test_damaged_files_are_named(name: str, content: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name} cannot be read \(.+\); repair or remove it"):
        read(written(tmp_path / name, content), "text")
