"""A whole job in miniature: teacher, tokenizer, general text, task, and a recipe that runs in seconds."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from fastdistill import CONTROL, ERNIE_TINY, FINETUNE, Corpus, Recipe, Stage, Student, Task, Teacher
from fastdistill.recipe import Augment

WORDS = "the a film was is it very not too good great fine bad dull poor plot cast end scene one two three".split()
PIECES = [*WORDS, *"[unused1] . , ! ' movie actor story song ##s ##ly ##ing 2 好 坏 新 旧 电 影 戏".split()]
POSITIVE, NEGATIVE = {"good", "great", "fine"}, {"bad", "dull", "poor"}


def make_tokenizer(words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    """BERT's template ([CLS] text [SEP] pair [SEP], token types 0 and 1) over whole lower-cased words."""
    tokenizer = Tokenizer(models.WordLevel(_vocabulary(words), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _as_bert(tokenizer)


def make_wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's own way: pieces of words, marks and Chinese characters by themselves."""
    tokenizer = Tokenizer(models.WordPiece(_vocabulary(PIECES), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _as_bert(tokenizer)


def _vocabulary(words: list[str]) -> dict[str, int]:
    return {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}


def _as_bert(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, model_input_names=inputs, **names)


def make_teacher(folder: Path, *, head: bool = False, **shape: int) -> Path:
    """A small random BERT, saved the Hugging Face way."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(WORDS) + 5,
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    config = BertConfig(initializer_range=0.2, **(sizes | shape))
    (BertForSequenceClassification if head else BertModel)(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_masked_lm(folder: Path) -> Path:
    """A small random BERT with a masked-LM head, of decided opinions."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(PIECES) + 5, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    make_wordpiece_tokenizer().save_pretrained(folder)
    return folder


def make_vectors(path: Path, words: list[str], size: int = 4) -> Path:
    """A GloVe file of random directions."""
    draw = random.Random(0)
    lines = (" ".join([word, *(f"{draw.uniform(-1, 1):.4f}" for _ in range(size))]) for word in words)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def make_texts(count: int, seed: int) -> list[tuple[str, str]]:
    """Sentences with a label that their one telling word decides."""
    draw = random.Random(seed)
    filler = [w for w in WORDS if w not in POSITIVE | NEGATIVE]
    rows = []
    for _ in range(count):
        label = draw.choice(["negative", "positive"])
        words = draw.choices(filler, k=draw.randint(1, 8)) + [
            draw.choice(sorted(POSITIVE if label == "positive" else NEGATIVE))
        ]
        draw.shuffle(words)
        rows.append((" ".join(words), label))
    return rows


def make_world(folder: Path) -> Path:
    """The files of the job: teacher/, general.txt, task.csv."""
    make_teacher(folder / "teacher")
    (folder / "general.txt").write_text("".join(text + "\n" for text, _ in make_texts(120, 1)))
    with (folder / "task.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *make_texts(160, 2)])
    return folder


def shorten(stage: Stage, steps: int | None) -> Stage:
    optim = dataclasses.replace(stage.optim, learning_rate=5e-3)
    return dataclasses.replace(stage, epochs=None, steps=steps, tokens_per_batch=96, optim=optim)


def tiny_recipe(world: Path, output_dir: Path) -> Recipe:
    return Recipe(
        teacher=Teacher(path=str(world / "teacher")),
        student=Student(num_hidden_layers=2, hidden_size=12),
        general=Corpus(path=str(world / "general.txt"), max_length=16),
        task=Task(path=str(world / "task.csv"), max_length=16, validation_size=20, test_size=40),
        finetune=shorten(FINETUNE, 40),
        stages={name: shorten(stage, 6) for name, stage in ERNIE_TINY.items()},
        control=shorten(CONTROL, None),
        output_dir=str(output_dir),
        cache_dir=str(world / "cache"),
        precision="fp32",
        logging_steps=3,
        save_steps=4,
    )


def only(recipe: Recipe, *names: str) -> Recipe:
    """`recipe` with every other stage skipped."""
    stages = {n: dataclasses.replace(s, skip=n not in names) for n, s in recipe.stages.items()}
    return dataclasses.replace(recipe, stages=stages)


def miniature(name: str, world: Path, out: Path) -> Recipe:
    """The stages of a recipe on the tiny job; relation heads that divide its widths."""
    full: Recipe = importlib.import_module(f"recipes.{name}").RECIPE
    stages = {
        stage: dataclasses.replace(shorten(values, 2), losses=dataclasses.replace(values.losses, relation_heads=2))
        for stage, values in full.stages.items()
    }
    small = tiny_recipe(world, out)
    student = Student(num_hidden_layers=2, hidden_size=12, init_layers=full.student.init_layers)
    teacher, task = small.teacher, small.task
    if name in ("distilbert", "tinybert"):  # they ask the teacher about masked words
        teacher = Teacher(path=str(make_masked_lm(out.parent / "masked_lm")))
    if name == "tinybert":
        task = dataclasses.replace(task, augment=Augment(copies=2, probability=0.5))
    return dataclasses.replace(
        small, stages=stages, student=student, teacher=teacher, task=task, finetune=shorten(full.finetune, 2)
    )
