"""Reading Hugging Face checkpoints: safetensors only, no remote code, float32, and never a silently random weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os.path import expanduser
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from fastdistill.models.capture import ATTENTION
from fastdistill.models.heads import AUTO, PROBLEM_TYPES, Headed
from fastdistill.recipe import HeadKind

READ_ALIKE = "é\u0301 Ｗ \t東京\x07\u200b it's 3.14, x_1-y!"  # what tokenizers of one vocabulary differ in, beside case


@contextmanager
def _readable(path: str | Path) -> Iterator[str]:
    """The folder or Hub id `path` stands for; what goes wrong in reading it becomes one sentence.

    Raises:
        FileNotFoundError: `path` is a path by its looks, but no folder is there; or the Hub cannot be reached.
        ValueError: transformers cannot read what is there.
    """
    folder = expanduser(path)
    is_local = folder.startswith(("/", ".")) or folder.count("/") > 1 or Path(folder).exists()
    if is_local and not Path(folder).is_dir():
        raise FileNotFoundError(f"{path} is no folder: name one with config.json and model.safetensors, or a Hub id")
    try:
        yield folder
    except OSError:
        raise
    except Exception as error:  # of many kinds, from configurations, tokenizers and weights
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{path} needs code of its own, which is never run: use a model of transformers"
            ) from error
        raise ValueError(f"{path} cannot be loaded ({' '.join(str(error).split())[:500]})") from error


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint; never its own code.

    Raises:
        ValueError: the checkpoint has none.
    """
    with _readable(path) as folder:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # transformers invents one where there is none
        raise ValueError(f"{path} has no tokenizer files: save the tokenizer beside the weights")
    return tokenizer


def load_plain(path: str | Path, kind: HeadKind | None) -> PreTrainedModel:
    """The model as a user without fastdistill runs it: transformers' own attention, float32, eval mode; with a head of
    this kind, or without one."""
    auto = AutoModel if kind is None else AUTO[kind]
    with _readable(path) as folder:
        model: PreTrainedModel = auto.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    return model.eval()


def quiet() -> None:
    """No progress bars or advice of the libraries between our own lines."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_headless(path: str | Path) -> PreTrainedModel:
    """The bare encoder of a checkpoint; a pooler that it lacks is drawn at random, but the same every time.

    Raises:
        ValueError: weights of the encoder are missing (a pooler may be: pretraining often leaves it out).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, missing = _from_pretrained(AutoModel, path)
    if lacking := [name for name in missing if "pooler" not in name]:
        raise ValueError(f"{path} lacks {len(lacking)} weights of a {model.config.model_type} encoder: {lacking[:3]} …")
    return model


def load_headed(path: str | Path, kind: HeadKind, num_labels: int | None = None) -> PreTrainedModel:
    """A model with the head of its checkpoint, pretrained for masked words, fine-tuned for the other kinds.

    Raises:
        ValueError: the checkpoint has no such head, one for another problem type, or one with a number of labels other
            than `num_labels`.
    """
    model, missing = _from_pretrained(AUTO[kind], path)
    if missing and kind == "masked":
        raise ValueError(
            f"{path} has no head that predicts masked words (it lacks {missing[:3]} …): name a model that was saved "
            "with the head of its pretraining, or leave out what needs it"
        )
    if missing:
        raise ValueError(
            f"{path}: the {kind} head was never fine-tuned, the folder lacks {missing[:3]}. "
            "Fine-tune it on the task first (the finetune stage), or name a folder that was"
        )
    fits = PROBLEM_TYPES.get(kind, "single_label_classification")
    own = model.config.problem_type if AUTO[kind] is AutoModelForSequenceClassification else None
    if own not in (None, fits):
        raise ValueError(
            f"{path} was fine-tuned for {own}, a {kind} task needs {fits}: name a model of such a task, or set "
            "--task.kind"
        )
    if num_labels is not None and model.config.num_labels != num_labels:
        raise ValueError(f"{path} was fine-tuned on {model.config.num_labels} labels, the task has {num_labels}")
    return model


def _from_pretrained(auto: type[AutoModel] | Headed, path: str | Path) -> tuple[PreTrainedModel, list[str]]:
    with _readable(path) as folder:
        model, info = auto.from_pretrained(
            folder,
            attn_implementation=ATTENTION,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise ValueError(f"{path} holds weights that are NaN or infinite: {broken[:3]}; take another checkpoint")
    return model, sorted(info["missing_keys"])


def check_same_tokens(path: str | Path, tokenizer: Tokenizer) -> None:
    """Models that learn from each other, or teach together, must read the same token ids.

    Raises:
        ValueError: the tokenizer of `path` has another vocabulary than `tokenizer`, or makes other tokens of a text.
    """
    other, vocabulary = load_tokenizer(path), tokenizer.get_vocab()
    if other.get_vocab() != vocabulary:
        raise ValueError(
            f"{path} and the teacher have tokenizers with different vocabularies, but must read the same token "
            "ids: take models of one tokenizer"
        )
    words = [word for word in sorted(vocabulary, key=vocabulary.__getitem__) if word.isalpha()][:80]
    pieced = "".join(words)[:80]  # a word that is none of the vocabulary's
    for text in (READ_ALIKE, *words[:10], *map(str.capitalize, words[:10]), pieced):
        theirs, ours = (one(text, text).encodings[0].tokens for one in (other, tokenizer))
        if theirs != ours:
            raise ValueError(
                f"the tokenizer of {path} reads {text!r} as {' '.join(theirs)}, that of the teacher as "
                f"{' '.join(ours)}: both must read the same token ids"
            )
