"""Labelled text of a task: its splits, tokenised, and where each of them came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from fastdistill.data.classes import classes_of, declared_order, distinct_names
from fastdistill.data.columns import complete, train_split
from fastdistill.data.gold import Gold
from fastdistill.data.packing import NO_LABEL, Sequences
from fastdistill.data.rows import (
    SOURCE,
    VALIDATION,
    Rows,
    divide,
    labelled_rows,
    open_splits,
    read_column,
    read_rows,
    said_of_splits,
    splits_named,
)
from fastdistill.data.source import Source, joined
from fastdistill.data.spans import check_stride, cut_windows
from fastdistill.data.tokenise import check_tokenizer, first_pieces, truncate_examples
from fastdistill.recipe import Task


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task, ready to train on.

    Args:
        train: what the models learn from.
        validation: what choices are made on.
        test: what the reported figures come from; never the rows that choices were made on.
        more: further splits that figures are reported of, such as MNLI's mismatched one.
        rows: of all of these, before they were tokenised; of `more` as "test, mismatched".
        label_names: class names by index; None where there are no classes.
        copied: whether rows of train are copies of others already, as those of an augmented data set are.
        origins: for train, validation and test the split of the data that it was taken from, for the report.
        said: what was found out about the data, in sentences.
    """

    train: Sequences
    validation: Sequences
    test: Sequences
    more: Mapping[str, Sequences]
    rows: Mapping[str, Rows]
    label_names: tuple[str, ...] | None
    copied: bool
    origins: Mapping[str, str]
    said: list[str]


def load_task(task: Task, tokenizer: PreTrainedTokenizerBase, seed: int) -> TaskData:
    """Read, check, split and tokenise a task.

    Splits train_1, train_2 and so on are joined. The figures come from the data's test split where its labels are
    published, otherwise from its validation split. Choices are made on the validation split, all parts of it, where the
    figures leave it free, otherwise on rows set aside from train. Of data with nothing but a train split, rows for both
    are set aside. `task.split_seed`, or else `seed`, decides which.

    Raises:
        FileNotFoundError: the files are missing, or the Hub data set cannot be reached.
        ValueError: a column, text or label is not what the task says, or there are too few rows.
    """
    task, _ = complete(task)
    for option in ("text", "pair", "label", "group"):
        if getattr(task, option) == SOURCE:
            raise ValueError(f"task.{option} is {SOURCE}, the column that tells copies of rows: rename the column")
    sources = open_splits(task)
    train_source = train_split(task, sources)
    assert task.label is not None
    assert task.max_length is not None
    check_tokenizer(tokenizer, task.max_length, pair=task.pair is not None)
    if task.kind == "span":
        check_stride(tokenizer, task.max_length, task.doc_stride or 0)
    train_labels = read_column(train_source, task.label, "task.label")
    classes = classes_of(train_source, task, train_labels)
    names = classes.names
    if task.group is not None and len(names or ()) != 2:
        raise ValueError(f"task.group ranks rows that are right or wrong, this task has {len(names or ())} classes")
    if task.group is not None and classes.found and names not in (("0", "1"), ("False", "True")):
        raise ValueError(
            f"task.group ranks rows that are right or wrong, but which of {' and '.join(names or ())} is right nothing "
            "says: set task.label_names, the right one last"
        )
    train = read_rows(train_source, task, train_labels, classes, "train")
    said = said_of_splits(task, sources)

    def labelled(found: dict[str, Source], origin: str) -> dict[str, Rows]:
        read = {ending: labelled_rows(source, task, classes, origin, said.append) for ending, source in found.items()}
        return {ending: rows for ending, rows in read.items() if rows}

    tests = labelled(splits_named(sources, "test"), "test")
    held = splits_named(sources, *VALIDATION)
    validations = labelled({"": joined(list(held.values()))} if tests and held else held, "validation")
    copied = _are_copies(train_source)
    if copied and not (tests and validations):
        raise ValueError(
            f"the column {SOURCE} of {train_source.where} says that some rows are copies of one another, so that none "
            "can be set aside: put files of validation and test rows beside it, that nothing was copied from; if the "
            "column says something else, rename it"
        )
    written = declared_order(train_source, task, classes) or distinct_names(train_labels)
    train, validation, test = divide(
        train,
        next(iter(validations.values()), None),
        next(iter(tests.values()), None),
        task,
        seed if task.split_seed is None else task.split_seed,
        classes.ranks(written) if task.kind == "classification" else np.zeros(0, np.int64),
    )
    _check_variety(train, task, names, train_source.where)
    more = dict(list((tests or validations).items())[1:])
    splits = {"train": train, "validation": validation, "test": test}
    origins = {name: rows.origin for name, rows in splits.items()}
    splits |= {f"test, {name}": rows for name, rows in more.items()}
    in_train = words_in_common(train, splits)
    may_lack = task.kind == "span" and not all(all(rows.labels) for rows in splits.values())
    ready = {name: tokenise(tokenizer, rows, task, names, may_lack) for name, rows in splits.items()}
    for name, count in in_train.items():
        ready[name] = replace(ready[name], counts={**ready[name].counts, "in train": count})
    return TaskData(
        train=ready["train"],
        validation=ready["validation"],
        test=ready["test"],
        more={name: ready[f"test, {name}"] for name in more},
        rows=splits,
        label_names=names,
        copied=copied,
        origins=origins,
        said=[*said, *_said_of_rows(splits, in_train), *_said_of_labels(splits, names)],
    )


def _are_copies(source: Source) -> bool:
    """Whether the source has rows and copies of them, with the number of the row."""
    if SOURCE not in source.columns:
        return False
    numbers = read_column(source, SOURCE, "task")
    return len(set(map(str, numbers))) < len(numbers)


def words_in_common(train: Rows, splits: Mapping[str, Rows]) -> dict[str, int]:
    """Of every split but train, how many rows have the text (of pairs, both) of one in `train`, word for word."""
    seen = set(train.wording())
    return {name: sum(map(seen.__contains__, rows.wording())) for name, rows in splits.items() if name != "train"}


def said_of_memory(found: Mapping[str, int], splits: Mapping[str, Rows], where: str) -> list[str]:
    """That rows which are held out are trained on, in a sentence; none where they are not."""
    shares = [f"{count:,} of {len(splits[name].texts):,} rows of {name}" for name, count in found.items() if count]
    if not shares:
        return []
    return [f"task: {' and '.join(shares)} are {where} word for word, where a model may answer from memory"]


def _said_of_rows(splits: Mapping[str, Rows], in_train: Mapping[str, int]) -> list[str]:
    said = [
        f"task: {rows.skipped:,} rows of {name} have no words and are skipped"
        for name, rows in splits.items()
        if rows.skipped
    ]
    lacking = {name: sum(not pair.strip() for pair in rows.pairs or ()) for name, rows in splits.items()}
    said += [f"task: {count:,} rows of {name} have no second text" for name, count in lacking.items() if count]
    said += said_of_memory(in_train, splits, "in train")
    return said


def _said_of_labels(splits: Mapping[str, Rows], names: tuple[str, ...] | None) -> list[str]:
    """Labels of held-out rows that leave nothing, or less, to be scored.

    Raises:
        ValueError: of rows that compete for a rank none is right.
    """
    said = []
    for name, rows in splits.items():
        if name == "train" or not isinstance(rows.labels, np.ndarray):
            continue
        if rows.groups is not None:
            groups, ranked = len(np.unique(rows.groups)), len(np.unique(rows.groups[rows.labels == 1]))
            if not ranked:
                raise ValueError(
                    f"{name}: in none of its {groups:,} groups a row is right, so that none can be ranked; give rows "
                    f"of the class {names[1] if names else 1!r}, or name the other class last in task.label_names"
                )
            if ranked < groups:
                said.append(f"task: {groups - ranked:,} of {groups:,} groups of {name} have no right row, mrr and map "
                            "leave them out")  # fmt: skip
        elif rows.labels.ndim == 1 and (rows.labels == rows.labels[0]).all():
            label = names[rows.labels[0]] if names else rows.labels[0]
            said.append(f"task: all rows of {name} have the label {label}, so that most metrics tell nothing")
    return said


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    task: Task,
    names: tuple[str, ...] | None,
    may_lack: bool = False,
) -> Sequences:
    """The rows of a completed task as token sequences, with their labels and what predictions are compared with;
    whether questions `may_lack` an answer all splits decide."""
    assert task.kind is not None
    assert task.max_length is not None
    if task.kind == "tagging":
        assert names is not None
        sequences, places, words = first_pieces(tokenizer, rows.texts, task.max_length)
        if not len(places):
            raise ValueError(
                f"{rows.origin}: the tokenizer keeps no word of its {len(rows.texts):,} rows; are they words, in its "
                "language?"
            )
        token_labels = np.full(len(sequences.input_ids), NO_LABEL, np.int64)
        token_labels[places] = np.concatenate([tags[kept] for tags, kept in zip(rows.labels, words, strict=True)])
        gold = Gold(task.kind, [[names[tag] for tag in tags] for tags in rows.labels], names, words=words)
        counts = {**sequences.counts, "skipped": rows.skipped}
        return replace(sequences, token_labels=token_labels, gold=gold, counts=counts)
    if task.kind == "span":
        assert rows.pairs is not None
        right = list(rows.labels)
        sequences, windows = cut_windows(
            tokenizer, rows.texts, rows.pairs, right, task.max_length, task.doc_stride or 0
        )
        gold = Gold(task.kind, [tuple(text for _, text in own) for own in right], windows=windows, may_lack=may_lack)
        return replace(sequences, gold=gold)
    sequences = truncate_examples(tokenizer, rows.texts, rows.pairs, task.max_length)
    labels = np.asarray(rows.labels)
    return replace(sequences, labels=labels, gold=Gold(task.kind, labels, names, rows.groups))


def _check_variety(rows: Rows, task: Task, names: tuple[str, ...] | None, where: str) -> None:
    """Rows that all have the same label teach nothing; of a single class, texts are no choice of several."""
    if task.kind == "multilabel" and names is not None and len(names) < 2:
        raise ValueError(
            f"{where}: {names[0]!r} is the only class, which a text has or has not: label the rows 0 and 1, and set "
            "task.kind to classification"
            if names
            else f"{where}: no row has a class; give the classes of each text, or a 0 or 1 for each of them"
        )
    if task.kind == "span":
        same, shown = not any(rows.labels), "no answer"
    else:
        labels = np.concatenate(list(rows.labels)) if task.kind == "tagging" else np.asarray(rows.labels)
        same, shown = bool((labels == labels[0]).all()), f"the value {labels[0]}"
        if names is not None and labels.ndim == 1:
            shown = f"the label {names[labels[0]]!r}"
    if same:
        raise ValueError(f"{where}: every row left to train on has {shown}; give data with two classes or more")
