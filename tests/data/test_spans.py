"""Windows hold the answers where they stand, and answers come back from windows as text."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from fastdistill.data.gold import Windows
from fastdistill.data.labels import Answers
from fastdistill.data.packing import Sequences
from fastdistill.data.spans import check_stride, choose_answers, cut_windows

QUESTION = "was it good"
CONTEXT = "the film was very long it is not good the film is a very bad film"
WORDS = CONTEXT.split()


def answer(first: int, last: int, context: str = CONTEXT) -> Answers:
    words = context.split()
    start = len(" ".join([*words[:first], ""]))
    return ((start, " ".join(words[first : last + 1])),)


def cut(
    tokenizer: PreTrainedTokenizerFast, answers: list[Answers], max_length: int = 12, doc_stride: int = 2
) -> tuple[Sequences, Windows]:
    count = len(answers)
    return cut_windows(tokenizer, [QUESTION] * count, [CONTEXT] * count, answers, max_length, doc_stride)


def test_every_word_is_in_a_window_and_neighbours_share_the_stride(tokenizer: PreTrainedTokenizerFast) -> None:
    sequences, windows = cut(tokenizer, [(), answer(1, 1)])
    assert windows.rows.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert sequences.counts == {
        "examples": 2, "windows": 8, "tokens": sequences.offsets[-1], "cut questions": 0, "lost answers": 0,
    }  # fmt: skip
    held = []
    for window in range(4):
        tokens = slice(sequences.offsets[window], sequences.offsets[window + 1])
        assert sequences.lengths[window] <= 12
        spans = windows.characters[tokens]
        of_context = spans[:, 0] >= 0
        assert of_context.tolist() == (sequences.token_type_ids[tokens] == 1).tolist()[:-1] + [False]  # without [SEP]
        held.append([CONTEXT[a:b] for a, b in spans[of_context]])
    assert held[0] == WORDS[:6]
    assert [words[:2] for words in held[1:]] == [words[-2:] for words in held[:-1]]
    assert [*held[0], *(word for words in held[1:] for word in words[2:])] == WORDS


@pytest.mark.parametrize(("first", "last"), [(0, 0), (2, 4), (5, 5), (14, 15)])
def test_the_label_is_the_place_of_the_answer(first: int, last: int, tokenizer: PreTrainedTokenizerFast) -> None:
    sequences, windows = cut(tokenizer, [answer(first, last)])
    assert sequences.labels is not None
    found = []
    for window, (start, end) in enumerate(sequences.labels):
        spans = windows.characters[sequences.offsets[window] : sequences.offsets[window + 1]]
        if start:
            found.append(CONTEXT[spans[start, 0] : spans[end, 1]])
        else:
            assert end == 0
    assert set(found) == {" ".join(WORDS[first : last + 1])}
    assert sequences.counts["lost answers"] == 0


def test_answers_that_no_window_holds_are_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    sequences, windows = cut(tokenizer, [answer(2, 9), answer(2, 3), ()])
    assert sequences.counts["lost answers"] == 1
    assert sequences.labels[windows.rows == 0].tolist() == [[0, 0]] * 4


def test_a_window_without_the_first_answer_has_the_next(tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = answer(0, 1), answer(14, 15)
    both, _ = cut(tokenizer, [first + second])
    of_first, of_second = (cut(tokenizer, [one])[0].labels for one in (first, second))
    assert both.labels.tolist() == np.where(of_first > 0, of_first, of_second).tolist()
    assert (both.labels > 0).all(1).sum() == (of_first > 0).all(1).sum() + (of_second > 0).all(1).sum() > 1


def test_white_space_around_an_answer_is_no_part_of_it(tokenizer: PreTrainedTokenizerFast) -> None:
    ((start, text),) = answer(14, 15)
    wide, _ = cut_windows(tokenizer, [QUESTION], [f"{CONTEXT} \n"], [((start - 1, f" {text} \n"),)], 12, 2)
    assert wide.labels.tolist() == cut(tokenizer, [answer(14, 15)])[0].labels.tolist()
    assert wide.counts["lost answers"] == 0


def test_a_question_takes_half_of_the_window_at_most(tokenizer: PreTrainedTokenizerFast) -> None:
    questions = ["a b c d e f g film", QUESTION]
    sequences, windows = cut_windows(tokenizer, questions, [CONTEXT] * 2, [(), ()], 12, 2)
    assert sequences.counts["cut questions"] == 1
    first = sequences.input_ids[: sequences.lengths[0]].tolist()
    assert first[:8] == tokenizer("a b c d e f")["input_ids"]
    assert (windows.characters[:8] == -1).all()


def test_windows_that_would_not_move_on_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    check_stride(tokenizer, 12, 2)
    with pytest.raises(ValueError, match=r"task.doc_stride is 3: with task.max_length=12 it must be from 0 to 2"):
        check_stride(tokenizer, 12, 3)
    cut_windows(tokenizer, ["a b c d e f g"], [CONTEXT], [()], 12, 2)


def logits(sequences: Sequences, scores: dict[tuple[int, int], tuple[float, float]]) -> list[np.ndarray]:
    """-5 everywhere but at these (window, token)."""
    found = [np.full((length, 2), -5.0) for length in sequences.lengths]
    for (window, token), pair in scores.items():
        found[window][token] = pair
    return found


def test_the_best_answer_of_all_windows_is_chosen(tokenizer: PreTrainedTokenizerFast) -> None:
    sequences, windows = cut(tokenizer, [answer(2, 3), answer(0, 0)])
    scores = {
        (0, 6): (4.0, 0.0), (0, 8): (0.0, 3.0),  # row 0, window 0: words 1 to 3
        (1, 7): (9.0, -5.0), (1, 5): (-5.0, 9.0), (1, 2): (-5.0, 9.0),  # ends before it starts, or in the question
        (6, 5): (6.0, 6.0),  # row 1, its third window
        (7, 0): (50.0, 50.0),  # [CLS], but no question lacks an answer here
    }  # fmt: skip
    third = windows.characters[sequences.offsets[6] + 5]
    found = choose_answers(logits(sequences, scores), windows, may_lack=False)
    assert found == ["film was very", CONTEXT[third[0] : third[1]]]


def test_no_answer_where_every_window_says_so(tokenizer: PreTrainedTokenizerFast) -> None:
    sequences, windows = cut(tokenizer, [(), answer(0, 0)])
    best = {(0, 6): (2.0, 2.0), (4, 6): (2.0, 2.0)}
    sure = {(window, 0): (3.0, 3.0) for window in range(4)}
    unsure = {(window, 0): (3.0, 3.0) for window in (4, 6, 7)}  # the second window of row 1 says -10
    found = logits(sequences, best | sure | unsure)
    assert choose_answers(found, windows, may_lack=True) == ["", "film"]
    assert choose_answers(found, windows, may_lack=False) == ["film", "film"]


def test_answers_have_30_tokens_at_most(tokenizer: PreTrainedTokenizerFast) -> None:
    context = " ".join(["film", *["very"] * 30, "bad"])
    sequences, windows = cut_windows(tokenizer, ["a"], [context], [answer(0, 0, context)], 60, 5)
    found = logits(sequences, {(0, 3): (9.0, 0.0), (0, 34): (-5.0, 9.0), (0, 32): (-5.0, 1.0)})
    assert choose_answers(found, windows, may_lack=False) == [" ".join(context.split()[:30])]


@pytest.mark.parametrize("text", ["good\ufe0f", "good\u0301", "good\u200b", "\ufefffilm", "\x07film good"])
@pytest.mark.parametrize("where", ["alone", "first", "last", "between"])
def test_signs_that_the_tokenizer_drops(text: str, where: str, pieces: PreTrainedTokenizerFast) -> None:
    before, behind = {"alone": ("", ""), "first": ("", " very"), "last": ("was ", ""), "between": ("was ", " very")}[
        where
    ]
    right = ((len(before), text),)
    sequences, windows = cut_windows(pieces, ["a"], [f"{before}{text}{behind}"], [right], 12, 2)
    assert sequences.counts["lost answers"] == 0
    first, last = sequences.labels[0].tolist()
    assert [pieces.decode(sequences.input_ids[first]), pieces.decode(sequences.input_ids[last])] == [
        "film" if "film" in text else "good", "film" if text.endswith("film") else "good"
    ]  # fmt: skip
    scores = {(0, first): (9.0, -5.0), (0, last): (9.0 if first == last else -5.0, 9.0)}
    (chosen,) = choose_answers(logits(sequences, scores), windows, may_lack=False)
    assert chosen == text.strip("\u200b\ufeff\x07")
