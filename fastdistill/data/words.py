"""Words of a text: where they lie, and which of them augmentation may replace."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import BertPreTokenizer, Sequence, Split

CHARACTERS = "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"  # Chinese, each of them a word
# BERT's basic tokenizer, but for what it changes in the text
SPLITTER = Sequence([BertPreTokenizer(), Split(Regex(CHARACTERS), "isolated")])

# Replacing these would change what a sentence says (negations, pronouns) or break it (all others). The parts of
# contractions are here, for an apostrophe cuts them off.
STOP_WORDS = frozenset(
    """
    a an the this that these those such same own other another each every either neither both all any some few more most
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
    herself it its itself they them their theirs themselves who whom whose which what one
    am is are was were be been being have has had having do does did doing can could may might must shall should will
    would ought s t d m ll re ve don didn doesn isn aren wasn weren hasn haven hadn won wouldn shouldn couldn mustn
    mightn needn shan ain no nor not never
    and or but if because as until while than so though although unless whether when where why how
    of at by for with without about against between among into onto through during before after above below to from up
    down in out on off over under upon within toward towards
    again once here there then now only very too just also even yet
    """.split()
) | frozenset(
    "的地得了着过吗呢吧啊嘛和与及或而但且因所以若如是在有不没无非未别也都就还又才很太更最"
    "我你您他她它们这那哪谁什么个被把给对从到向于为之其"
)


@dataclass(frozen=True)
class Word:
    """A word that may be replaced: `text` is ``[start, end)`` of the sentence."""

    text: str
    start: int
    end: int


def is_character(word: str) -> bool:
    """Whether `word` is a single Chinese character."""
    return re.fullmatch(CHARACTERS, word) is not None


def replaceable(sentence: str, most: int) -> list[Word]:
    """Of the first `most` words and marks of `sentence` those that are letters alone and no stop words."""
    cut = SPLITTER.pre_tokenize_str(sentence)[:most]
    return [Word(text, start, end) for text, (start, end) in cut if text.isalpha() and text.lower() not in STOP_WORDS]


def as_spelt(word: str, candidate: str) -> str:
    """`candidate` with the capitals of `word`, where it has none of its own."""
    if not candidate.islower() or word[0].islower():
        return candidate
    return candidate.upper() if len(word) > 1 and word.isupper() else candidate.capitalize()
