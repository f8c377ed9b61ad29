"""Spans: contexts cut into windows that hold the answers, and answers chosen from what a model says of the windows."""

from __future__ import annotations

from unicodedata import category

import numpy as np
from transformers import PreTrainedTokenizerBase

from fastdistill.data.gold import Windows
from fastdistill.data.labels import Answers
from fastdistill.data.packing import Sequences
from fastdistill.data.tokenise import EXAMPLES_AT_ONCE

CANDIDATES = 20  # best starts, and best ends, that are tried with each other
LONGEST = 30  # tokens of an answer that is given
MARKS = ("Mn", "Me")  # Unicode's categories of accents and the like, of the letter before them
CONTROLS = ("Cc", "Cf")  # of what shows nothing; tokenizers drop both


def check_stride(tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int) -> None:
    """Raise ValueError where windows would not move on: a question takes up to half of their tokens."""
    most = max_length - max_length // 2 - tokenizer.num_special_tokens_to_add(pair=True) - 1
    if not 0 <= doc_stride <= most:
        raise ValueError(
            f"task.doc_stride is {doc_stride}: with task.max_length={max_length} it must be from 0 to {max(0, most)}"
        )


def cut_windows(
    tokenizer: PreTrainedTokenizerBase,
    questions: list[str],
    contexts: list[str],
    answers: list[Answers],
    max_length: int,
    doc_stride: int,
) -> tuple[Sequences, Windows]:
    """Windows of at most `max_length` tokens: the question, and a part of its context.

    The label of a window is the first and last token of the first answer that it holds all of; both are the place of
    [CLS] where there is none. A question may take half of the tokens; a longer one is cut.
    `counts`: examples, windows, tokens, cut questions, and lost answers, which no window holds.
    """
    kept = [_cut_question(tokenizer, question, max_length // 2) for question in questions]
    rows: list[int] = []
    ids, types, labels, characters = [], [], [], []
    held = np.zeros(len(contexts), bool)
    for start in range(0, len(kept), EXAMPLES_AT_ONCE):
        now = slice(start, start + EXAMPLES_AT_ONCE)
        encoded = tokenizer(
            kept[now], contexts[now], truncation="only_second", max_length=max_length, stride=doc_stride,
            return_overflowing_tokens=True,
        )  # fmt: skip
        for row, encoding in zip(encoded["overflow_to_sample_mapping"], encoded.encodings, strict=True):
            of_context = np.array([part == 1 for part in encoding.sequence_ids])
            spans = np.where(of_context[:, None], np.array(encoding.offsets, np.int32), -1)
            places = (_place(spans, *answer) for answer in answers[start + row])
            place = next((found for found in places if found), None)
            held[start + row] |= place is not None
            rows.append(start + row)
            ids.append(np.array(encoding.ids, np.int32))
            types.append(np.array(encoding.type_ids, np.int8))
            labels.append(place or (0, 0))
            characters.append(spans)
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    has_answer = np.array([bool(own) for own in answers])
    sequences = Sequences(
        input_ids=np.concatenate(ids),
        offsets=offsets,
        token_type_ids=np.concatenate(types) if "token_type_ids" in tokenizer.model_input_names else None,
        labels=np.array(labels, np.int64),
        counts={
            "examples": len(questions),
            "windows": len(rows),
            "tokens": int(offsets[-1]),
            "cut questions": sum(a is not b for a, b in zip(kept, questions, strict=True)),
            "lost answers": int((has_answer & ~held).sum()),
        },
    )
    return sequences, Windows(np.array(rows), np.concatenate(characters), contexts)


def _place(spans: np.ndarray, start: int, text: str) -> tuple[int, int] | None:
    """First and last token of an answer, by the characters of each token; None where the window lacks some of it.
    White space and marks at its ends may be no token's."""
    end, start = start + len(text.rstrip()), start + len(text) - len(text.lstrip())
    text = text.strip()
    heard = [place for place, sign in enumerate(text, start) if category(sign) not in (*MARKS, *CONTROLS)] or [start]
    real = np.flatnonzero(spans[:, 1] > spans[:, 0])
    inside = real[(spans[real, 1] > start) & (spans[real, 0] < end)]
    whole = len(inside) > 0 and spans[real[0], 0] <= heard[0] and spans[real[-1], 1] > heard[-1]
    return (int(inside[0]), int(inside[-1])) if whole else None


def _cut_question(tokenizer: PreTrainedTokenizerBase, question: str, most: int) -> str:
    """The question itself, or as much of it as has `most` tokens."""
    ends = [end for _, end in tokenizer(question, add_special_tokens=False).encodings[0].offsets]
    return question if len(ends) <= most else question[: ends[most - 1]]


def choose_answers(logits: list[np.ndarray], windows: Windows, may_lack: bool) -> list[str]:
    """For every row the text with the highest sum of start and end, over its windows.

    Where questions `may_lack` an answer, the text is empty if [CLS] has a higher sum (the least of its windows).

    Shapes:
        logits: for every window ``(n, 2)`` start and end.
    """
    best = [(-np.inf, "") for _ in windows.contexts]
    none = np.full(len(windows.contexts), np.inf)
    ends = np.cumsum([len(z) for z in logits])
    for window, (row, z) in enumerate(zip(windows.rows, logits, strict=True)):
        characters = windows.characters[ends[window] - len(z) : ends[window]]
        none[row] = min(none[row], z[0].sum())
        places = np.flatnonzero(characters[:, 1] > characters[:, 0])
        starts, stops = (places[np.argsort(-z[places, side], kind="stable")[:CANDIDATES]] for side in (0, 1))
        sums = z[starts, 0][:, None] + z[stops, 1]
        length = stops - starts[:, None] + 1
        sums = np.where((length >= 1) & (length <= LONGEST), sums, -np.inf)
        if sums.size and sums.max() > best[row][0]:
            i, j = np.unravel_index(sums.argmax(), sums.shape)
            context, end = windows.contexts[row], int(characters[stops[j], 1])
            while end < len(context) and category(context[end]) in MARKS:  # which its token has lost
                end += 1
            best[row] = (sums[i, j], context[characters[starts[i], 0] : end])
    return ["" if may_lack and none[row] > score else text for row, (score, text) in enumerate(best)]
