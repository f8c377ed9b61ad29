"""Reading Hugging Face checkpoints: safetensors only, no remote code, float32, and never a silently random weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os.path import expanduser
from pathlib import Path

import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from fastdistill.models.capture import ATTENTION


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


def load_plain(path: str | Path, *, head: bool) -> PreTrainedModel:
    """The model as a user without fastdistill runs it: transformers' own attention, float32, eval mode."""
    auto = AutoModelForSequenceClassification if head else AutoModel
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
    """The bare encoder of a checkpoint.

    Raises:
        ValueError: weights of the encoder are missing (a pooler may be: pretraining often leaves it out).
    """
    model, missing = _from_pretrained(AutoModel, path)
    if lacking := [name for name in missing if "pooler" not in name]:
        raise ValueError(f"{path} lacks {len(lacking)} weights of a {model.config.model_type} encoder: {lacking[:3]} …")
    return model


def load_finetuned(path: str | Path, num_labels: int | None = None) -> PreTrainedModel:
    """A fine-tuned sequence classifier.

    Raises:
        ValueError: the checkpoint has no classification head, or one with a number of labels other than `num_labels`.
    """
    model, missing = _from_pretrained(AutoModelForSequenceClassification, path)
    if missing:
        raise ValueError(
            f"{path}: the classification head was never fine-tuned, the folder lacks {missing[:3]}. "
            "Fine-tune it on the task first (the finetune stage), or name a folder that was"
        )
    if num_labels is not None and model.config.num_labels != num_labels:
        raise ValueError(f"{path} was fine-tuned on {model.config.num_labels} labels, the task has {num_labels}")
    return model


def load_masked_lm(path: str | Path) -> PreTrainedModel:
    """A masked language model.

    Raises:
        ValueError: the checkpoint has no masked-LM head.
    """
    model, missing = _from_pretrained(AutoModelForMaskedLM, path)
    if missing:
        raise ValueError(
            f"{path} has no masked-LM head (it lacks {missing[:3]} …): name a model that was saved with one"
        )
    return model


def _from_pretrained(
    auto: type[AutoModel] | type[AutoModelForSequenceClassification] | type[AutoModelForMaskedLM], path: str | Path
) -> tuple[PreTrainedModel, list[str]]:
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
