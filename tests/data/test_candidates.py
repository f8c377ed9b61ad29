"""Candidates: whole words, never the word itself, the same in batches as one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from fastdistill.data.candidates import MODEL, NONE, VECTORS, Candidates, Frame
from fastdistill.data.vectors import Vectors, read_vectors
from fastdistill.models.masked_lm import MaskedLM
from fastdistill.recipe import Augment
from tests.tiny import PIECES, WORDS, make_masked_lm, make_vectors

TEXTS = ["The good film was too dull.", "bad story", "这部电影好, a great actor", "...", "great great plot", "Films !"]
WHOLE = {word for word in PIECES if word.isalpha() and word.isascii()}
Found = list[list[tuple[str, int, list[str]]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_masked_lm(tmp_path_factory.mktemp("masked_lm"))


@pytest.fixture(scope="module")
def model(folder: Path) -> MaskedLM:
    return MaskedLM(folder, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    words = [*WORDS, "films", "actors", "songs", "好"]
    return read_vectors(make_vectors(tmp_path_factory.mktemp("vectors") / "glove.txt", words))


def find(
    model: MaskedLM | None, vectors: Vectors | None, texts: list[str] = TEXTS, most_words: int = 64, **options: int
) -> Found:
    candidates = Candidates(model, vectors, Augment(**options), most_words)  # type: ignore[arg-type]
    return [[(p.word.text, p.source, p.candidates) for p in places] for places in candidates(texts)]


def one_by_one(folder: Path, model: MaskedLM, text: str, word: str, count: int, show_original: bool) -> list[str]:
    """As one would ask transformers about a word that occurs once."""
    plain = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    start = text.index(word)
    masked = f"{text[:start]}[MASK]{text[start + len(word) :]}"
    inputs = model.tokenizer(masked, *[text] * show_original, return_tensors="pt")
    with torch.no_grad():
        logits = plain(**inputs).logits[0, inputs["input_ids"][0].tolist().index(model.tokenizer.mask_token_id)]
    likely = model.tokenizer.convert_ids_to_tokens(logits.argsort(descending=True).tolist())
    kind = WHOLE if word.isascii() else {word for word in PIECES if not word.isascii()}
    return [word_ for word_ in likely if word_ in kind and word_ != word][:count]


@pytest.mark.parametrize("show_original", [True, False])
@pytest.mark.parametrize("tokens_per_batch", [40, 8192])
def test_batches_say_what_the_model_says_of_one_word_at_a_time(
    show_original: bool, tokens_per_batch: int, folder: Path, model: MaskedLM
) -> None:
    found = find(model, None, candidates=5, show_original=show_original, tokens_per_batch=tokens_per_batch)
    for text, places in zip(TEXTS, found, strict=True):
        for word, source, candidates in places:
            if source == MODEL and text.count(word) == 1:
                assert candidates == one_by_one(folder, model, text, word, 5, show_original), (text, word)
    asked = [[word for word, source, _ in places if source == MODEL] for places in found]
    chinese = ["部", "电", "影", "好", "great", "actor"]
    assert asked == [["good", "film", "dull"], ["bad", "story"], chinese, [], ["great", "great", "plot"], []]


def test_of_equal_words_each_is_asked_about_at_its_place(model: MaskedLM) -> None:
    (_, _, first), (_, _, second), _ = find(model, None)[4]
    assert first != second


def test_candidates_are_whole_words_and_never_the_word(model: MaskedLM) -> None:
    for places in find(model, None, candidates=1000):
        for word, source, candidates in places:
            if source == MODEL:
                expected = WHOLE if word.isascii() else set("好坏新旧电影戏")
                assert {c.lower() for c in candidates} == expected - {word.lower()}
                assert len(candidates) == len(set(candidates))


@pytest.mark.parametrize("count", [1, 4])
def test_there_are_as_many_as_asked_for(count: int, model: MaskedLM, vectors: Vectors) -> None:
    for places in find(model, vectors, candidates=count):
        assert {len(candidates) for _, source, candidates in places if source != NONE} <= {count}


def test_words_of_several_pieces_have_neighbours_among_the_vectors(model: MaskedLM, vectors: Vectors) -> None:
    text = "Films of goodly songs"
    (films, goodly, songs) = find(model, vectors, [text], candidates=3)[0]
    near = vectors.nearest(["films", "songs"], 3)
    assert films == ("Films", VECTORS, [word.capitalize() for word in near["films"]])
    assert goodly == ("goodly", NONE, [])
    assert songs == ("songs", VECTORS, near["songs"])
    assert [source for _, source, _ in find(model, None, [text])[0]] == [NONE] * 3


def test_without_a_model_vectors_serve_for_all_words(vectors: Vectors) -> None:
    near = vectors.nearest(["good", "film"], 15)
    assert find(None, vectors, ["good film unheard"]) == [
        [("good", VECTORS, near["good"]), ("film", VECTORS, near["film"]), ("unheard", NONE, [])]
    ]


def test_a_text_has_the_same_candidates_alone_and_among_others(model: MaskedLM, vectors: Vectors) -> None:
    together = find(model, vectors, tokens_per_batch=60)
    assert together == [find(model, vectors, [text])[0] for text in TEXTS]
    assert find(model, vectors, []) == []


def byte_level(folder: Path) -> MaskedLM:
    """A tiny RoBERTa, whose tokens of words begin with their space and whose Chinese characters are several bytes."""
    merges = []
    for whole in ("film", "plot", "新"):
        ((word, _),) = pre_tokenizers.ByteLevel(add_prefix_space=True).pre_tokenize_str(whole)
        merges += [(word[1:n], word[n]) for n in range(2, len(word))] + [(word[0], word[1:])]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(words), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=66, pad_token_id=1, type_vocab_size=1,
    )  # fmt: skip
    RobertaForMaskedLM(config).save_pretrained(folder)
    return MaskedLM(folder, torch.device("cpu"), torch.float32)


def test_tokens_of_bytes(tmp_path: Path) -> None:
    """A word counts as one token with the space before it, and a character of three tokens does not."""
    (found,) = find(byte_level(tmp_path), None, ["good film 好 plot"])
    assert found == [("good", NONE, []), ("film", MODEL, ["plot"]), ("好", NONE, []), ("plot", MODEL, ["film"])]


def test_words_past_the_most_are_left_alone(model: MaskedLM) -> None:
    assert [word for word, _, _ in find(model, None, most_words=3)[0]] == ["good", "film"]


@pytest.mark.parametrize("show_original", [True, False])
def test_of_a_long_text_the_model_reads_what_is_around_the_word(show_original: bool, model: MaskedLM) -> None:
    frame = Frame(model, Augment(max_length=13, show_original=show_original))
    room = 5 if show_original else 11
    assert frame.room == room
    cls, sep, mask = (model.tokenizer.convert_tokens_to_ids(token) for token in ("[CLS]", "[SEP]", "[MASK]"))
    text = np.arange(10, 40, dtype=np.int32)
    ids, types, masks = frame.variants(text, np.array([0, 15, 29]))
    for variant, at, place, start in zip(ids, [0, 15, 29], masks, [0, 15 - room // 2, 30 - room], strict=True):
        window = text[start : start + room].tolist()
        masked = [mask if token == text[at] else token for token in window]
        expected = [cls, *masked, sep, *([*window, sep] if show_original else [])]
        assert variant.tolist() == expected
        assert variant[place] == mask
    assert types.tolist() == [0] * (room + 2) + [1] * ((room + 1) * show_original)


def test_a_short_text_is_read_whole(model: MaskedLM) -> None:
    ids, types, masks = Frame(model, Augment()).variants(np.array([20, 21], np.int32), np.array([1]))
    assert ids.tolist() == [[2, 20, 4, 3, 20, 21, 3]]
    assert types.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert masks.tolist() == [2]


def test_no_room_for_a_word_is_refused(model: MaskedLM) -> None:
    with pytest.raises(ValueError, match=r"of which 3 are special: .* raise max_length"):
        find(model, None, max_length=4)
