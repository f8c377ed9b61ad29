"""Where text comes from: local files or a Hugging Face Hub data set, read as columns, a few rows at a time."""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from glob import escape, glob
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import datasets
import pyarrow.parquet
from datasets import ClassLabel, Features, IterableDataset, Value

FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
# by separator: in tables like GLUE's a quote is a quote
QUOTING: dict[str, Literal[0, 3]] = {",": csv.QUOTE_MINIMAL, "\t": csv.QUOTE_NONE}
COMPRESSIONS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
KNOWN = f"{', '.join(FORMATS)}, also with {', '.join(COMPRESSIONS)}"
NO_ROWS = "has no rows; give data with at least one"
ROWS_AT_ONCE = 1000
_SURPLUS = "Length of header or names does not match length of data"  # as pandas says it


@dataclass(frozen=True, eq=False)
class Source:
    """The rows of one split.

    Args:
        where: how error messages name it.
        dataset: the rows, streamed.
        files: the local files, in reading order; none for a Hub data set.
        version: commit and configuration of a Hub data set; empty for local files.
    """

    where: str
    dataset: IterableDataset
    files: tuple[Path, ...] = ()
    version: str = ""

    @cached_property
    def columns(self) -> list[str]:
        names = self.dataset.column_names
        if names is None:
            with _named_errors(self.where, self.files):
                names = list(next(iter(self.dataset), {}))
        if not names:
            raise ValueError(f"{self.where} {NO_ROWS}")
        return list(names)

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Class names that the data set itself declares for `column`, or for what the lists of that column hold."""
        return _declared((self.dataset.features or {}).get(column))

    def read(self, *columns: str, option: str) -> Iterator[dict[str, list[Any]]]:
        """The rows, ROWS_AT_ONCE at a time, as ``{column: values}``.

        Args:
            columns: which columns.
            option: option group that chose the columns, named where a column does not exist.

        Raises:
            ValueError: there are no rows, a column does not exist, or a file is damaged or not UTF-8.
        """
        present = self.columns
        for column in columns:
            if column not in present:
                near = get_close_matches(column, present, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; set the columns in {option}"
                if set(present) == {"version", "data"}:
                    hint = "; SQuAD's nested file must become a table first, a row for each question"
                raise ValueError(f"{self.where} has no column {column!r}, only {', '.join(present)}{hint}")
        batches = self.dataset.select_columns(list(columns)).iter(batch_size=ROWS_AT_ONCE)
        empty = True
        while batch := self._next(batches):
            empty = False
            yield batch
        if empty:
            raise ValueError(f"{self.where} {NO_ROWS}")

    def _next(self, batches: Iterator[dict[str, list[Any]]]) -> dict[str, list[Any]] | None:
        with _named_errors(self.where, self.files):
            return next(batches, None)


def local_files(path: str) -> list[Path]:
    """The files that `path` (a file, glob or folder) stands for, sorted; none where it can only be a Hub id.

    Hidden ones below a folder are left out.

    Raises:
        FileNotFoundError: `path` is a path by its looks, but nothing is there.
        ValueError: a file is of an unknown format.
    """
    where = Path(path).expanduser()
    if where.is_file():
        _format(where)
        return [where]
    if where.is_dir():
        inside = [p for p in sorted(where.rglob("*")) if p.is_file() and suffix(p) in FORMATS and is_shown(p, where)]
        if not inside:
            raise FileNotFoundError(f"the folder {path} holds no file of text ({KNOWN})")
        return inside
    matches = sorted(Path(match) for match in glob(str(where), recursive=True))
    files = [match for match in matches if match.is_file()]
    if files:
        for file in files:
            _format(file)
        return files
    looks_like_hub_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?", path) and suffix(where) not in FORMATS
    if not looks_like_hub_id or (where.parent != Path() and where.parent.is_dir()):
        raise FileNotFoundError(f"no such file or folder: {path}; check the path, or that the glob matches something")
    return []


def is_shown(file: Path, folder: Path) -> bool:
    """Whether neither `file` nor a folder that it lies in, below `folder`, is hidden: editors keep old copies there."""
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def from_files(files: list[Path]) -> Source:
    """One source of local files of one format.

    Raises:
        ValueError: the files are of several formats, or one is empty or damaged.
    """
    for file in files:
        if file.stat().st_size == 0:
            raise ValueError(f"{file} is empty; remove it, or give a file with rows")
    kinds = sorted({suffix(file) for file in files})
    if len({(FORMATS[kind], kind == ".tsv") for kind in kinds}) > 1:
        raise ValueError(
            f"{files[0].parent} holds files of several formats ({', '.join(kinds)}); "
            f"choose one with a glob such as {files[0].parent}/*{kinds[0]}"
        )
    where = str(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    with _named_errors(where, tuple(files)):
        source = Source(where, _stream(files), tuple(files))
    for file in files[1:] if FORMATS[kinds[0]] == "parquet" else ():
        with _named_errors(str(file), (file,)):
            features = Features.from_arrow_schema(pyarrow.parquet.read_schema(file))
        for column in features:
            own, first = (_declared(these.get(column)) for these in (features, source.dataset.features or {}))
            if own != first:
                raise ValueError(
                    f"{file} declares the classes {', '.join(own or ['none'])} for column {column!r}, {files[0]} "
                    f"declares {', '.join(first or ['none'])}: files of one split must declare the same"
                )
    return source


def joined(sources: list[Source]) -> Source:
    """One source of the rows of all, one after the other.

    Raises:
        ValueError: they have not the same columns, or other things in them.
    """
    first, *others = sources
    if not others:
        return first
    for other in others:
        if set(other.columns) != set(first.columns):
            raise ValueError(
                f"{other.where} has the columns {', '.join(other.columns)}, {first.where} has "
                f"{', '.join(first.columns)}: parts of one split are joined and must have the same; rename the "
                "columns, or leave out a part"
            )
    files = tuple(file for source in sources for file in source.files)
    where = f"{files[0]} and {len(files) - 1} more" if files else f"{first.where} and {len(others)} more"
    with _named_errors(where, files):
        rows = datasets.concatenate_datasets([source.dataset for source in sources])
    return Source(where, rows, files, first.version)


def from_hub(path: str, name: str | None) -> dict[str, Source]:
    """The splits of a Hub data set, `id` or `id@revision`.

    Raises:
        FileNotFoundError: it does not exist or cannot be reached.
        ValueError: the configuration `name` does not exist.
    """
    hub_id, _, revision = path.partition("@")
    try:
        with _quiet():
            builder = datasets.load_dataset_builder(hub_id, name, revision=revision or None)
            splits = builder.as_streaming_dataset()
    except OSError as error:
        raise FileNotFoundError(
            f"{path!r} is no file or folder here, and as a Hugging Face Hub data set it cannot be reached "
            f"({type(error).__name__}: {error}); give the path of local files instead"
        ) from error
    version = f"{path}@{builder.hash}/{builder.config.name}"
    title = f"{path}/{name}" if name else path
    return {key: Source(f"{title}, split {key}", split, version=version) for key, split in splits.items()}


def _declared(feature: Any) -> tuple[str, ...] | None:
    """The class names of a column's feature, or of what its lists hold."""
    feature = getattr(feature, "feature", feature)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else None


def _stream(files: list[Path]) -> IterableDataset:
    kind = FORMATS[suffix(files[0])]
    options: dict[str, Any] = {}
    if kind == "csv":
        separator = "\t" if suffix(files[0]) == ".tsv" else ","
        columns = _header(files[0], separator)
        if repeated := sorted({column for column in columns if columns.count(column) > 1}):
            raise ValueError(f"{files[0]} has two columns called {', '.join(repeated)}; rename one in its header")
        for file in files[1:]:
            if (others := _header(file, separator)) != columns:
                raise ValueError(f"{file} has the columns {', '.join(others)}, not {', '.join(columns)}")
        # read every column as text: guessed types would turn the text "NA" into nothing and "007" into 7
        features = Features({column: Value("string") for column in columns})
        options = {
            "sep": separator, "quoting": QUOTING[separator], "names": columns, "header": 0, "features": features,
            "keep_default_na": False, "index_col": False,
        }  # fmt: skip
    names = [escape(str(file.resolve())) for file in files]
    # datasets leaves a lock file for every set of files that it opens: keep those out of the user's cache
    with TemporaryDirectory() as scratch:
        builder = datasets.load_dataset_builder(kind, data_files={"train": names}, cache_dir=scratch, **options)
        return builder.as_streaming_dataset(split="train")


def _header(file: Path, separator: str) -> list[str]:
    """The column names; a column without one, as pandas writes its index, is called as pandas calls it."""
    with COMPRESSIONS.get(file.suffix, open)(file, "rt", encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, delimiter=separator, quoting=QUOTING[separator])
        names = next((row for row in rows if row), [])
    return [name or f"Unnamed: {number}" for number, name in enumerate(names)]


def suffix(file: Path) -> str:
    """The ending that tells the format, without that of a compression."""
    return (file.with_suffix("").suffix if file.suffix in COMPRESSIONS else file.suffix).lower()


def split_of(file: Path, folder: Path) -> str | None:
    """The split that a file name tells, as in train-00000-of-00002.parquet or Dev.tsv.gz, or else the name of a folder
    below `folder`, as in train/0.csv; None without one."""
    for name in (file.name, *(f"{parent.name}." for parent in file.relative_to(folder).parents)):
        if match := re.match(r"(train|validation|valid|val|dev|test)(_\w+)?(?=[.-])", name.lower()):
            return match[0]
    return None


def _format(file: Path) -> None:
    if suffix(file) not in FORMATS:
        raise ValueError(f"{file} is of an unknown format; known are {KNOWN}")


def _not_utf8(files: tuple[Path, ...]) -> str | None:
    """Name the first byte that is not UTF-8; the decoder's own message counts from the start of some block."""
    for file in files:
        position = 0
        with COMPRESSIONS.get(file.suffix, open)(file, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    where = f"byte {position + error.start}, line {number}"
                    return f"{file} is not UTF-8 text ({where}); convert it, for example with iconv -t UTF-8"
                position += len(line)
    return None


@contextmanager
def _named_errors(where: str, files: tuple[Path, ...]) -> Iterator[None]:
    """Turn what goes wrong in reading a file into one sentence that names the file."""
    try:
        with _quiet(), warnings.catch_warnings():
            # pandas would go on, without the fields that have no column
            warnings.filterwarnings("error", _SURPLUS)
            yield
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(files) or f"{where} is not UTF-8 text: {error}") from error
    except (ValueError, OSError, EOFError, KeyError, Warning, zlib.error, lzma.LZMAError, csv.Error) as error:
        reason = " ".join(str(error).split())
        if reason.startswith(_SURPLUS):
            reason = "rows have more fields than its header has columns; put a text that has the separator into quotes"
        raise ValueError(f"{where} cannot be read ({reason}); repair or remove it") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars or log lines of datasets, whose errors are raised again in our words."""
    verbosity, bars = datasets.logging.get_verbosity(), datasets.is_progress_bar_enabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
