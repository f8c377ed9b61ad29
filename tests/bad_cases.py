"""What may be wrong with a recipe or its inputs, case by case, and what the error must say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from fastdistill import Augment, Losses, Recipe
from tests.bad_files import (
    answers,
    cased,
    classifier,
    configured,
    listed_labels,
    other_vocabulary,
    spoilt,
    tags,
    torn,
    uncapturable,
    without_tokenizer,
)
from tests.tiny import make_teacher, make_vectors

replace = dataclasses.replace


def with_stage(recipe: Recipe, name: str, **changes: object) -> Recipe:
    return replace(recipe, stages=recipe.stages | {name: replace(recipe.stages[name], **changes)})  # type: ignore[arg-type]


def with_losses(recipe: Recipe, name: str, **changes: object) -> Recipe:
    return with_stage(recipe, name, losses=replace(recipe.stages[name].losses, **changes))  # type: ignore[arg-type]


def task_file(recipe: Recipe, tmp: Path, text: str | bytes) -> Recipe:
    path = tmp / "bad.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return replace(recipe, task=replace(recipe.task, path=str(path), validation_size=2, test_size=2))


ROWS = "".join(f"a good film {i},positive\na bad film {i},negative\n" for i in range(8))

# each: what is wrong with the recipe, and what the error must say
CASES: dict[str, tuple[Callable[[Recipe, Path], Recipe], tuple[str, ...]]] = {
    "an empty name among several": (
        lambda r, t: replace(r, teacher=replace(r.teacher, others=("a", ""))),
        ("teacher.others is ['a', '']", "empty"),
    ),
    "missing task file": (lambda r, t: replace(r, task=replace(r.task, path=str(t / "gone.csv"))), ("gone.csv",)),
    "missing general file": (
        lambda r, t: replace(r, general=replace(r.general, path=str(t / "gone.txt"))),
        ("gone.txt",),
    ),
    "empty task file": (lambda r, t: task_file(r, t, ""), ("bad.csv", "empty")),
    "task file without rows": (lambda r, t: task_file(r, t, "text,label\n"), ("bad.csv", "no rows")),
    "unknown column": (
        lambda r, t: replace(r, task=replace(r.task, text="sentence")),
        ("sentence", "text", "label"),
    ),
    "label outside the names": (
        lambda r, t: replace(
            task_file(r, t, "text,label\n" + ROWS + "odd,neutral\n"),
            task=replace(
                task_file(r, t, "text,label\n" + ROWS + "odd,neutral\n").task, label_names=("negative", "positive")
            ),
        ),
        ("neutral", "17"),
    ),
    "two columns of one name": (
        lambda r, t: task_file(r, t, "text,label,text\n" + "a film,positive,x\n"),
        ("bad.csv", "two columns called text"),
    ),
    "lists for labels": (
        lambda r, t: replace(r, task=replace(r.task, path=str(listed_labels(t)), kind="classification")),
        ("bad.jsonl, row 1", "[0, 1]"),
    ),
    "columns that may be read in two ways": (
        lambda r, t: task_file(r, t, "text,sentence,label\n" + "a film,it is good,positive\n"),
        ("bad.csv", "text, sentence, label", "set task.text"),
    ),
    "a task that there is not": (
        lambda r, t: replace(r, task=replace(r.task, path=None, name="sst-2")),
        ("'sst-2'", "mean sst2?"),
    ),
    "a named task without data": (
        lambda r, t: replace(r, task=replace(r.task, name="dbqa", path=None)),
        ("--task.path",),
    ),
    "ranking without groups": (
        lambda r, t: replace(r, task=replace(r.task, metric="mrr")),
        ("mrr", "without task.group", "accuracy"),
    ),
    "answers to rank as numbers": (
        lambda r, t: replace(r, task=replace(r.task, kind="regression", group="text")),
        ("task.group",),
    ),
    "targets that are no numbers": (
        lambda r, t: task_file(r, t, "text,label\n" + "a film,0.5\nbad,1\nfine,nan\n"),
        ("bad.csv, row 3", "'nan' is not a finite number"),
    ),
    "windows that do not move on": (
        lambda r, t: replace(r, task=replace(r.task, path=str(answers(t)), doc_stride=9)),
        ("task.doc_stride is 9", "from 0 to"),
    ),
    "tags of unequal length": (
        lambda r, t: replace(r, task=replace(r.task, path=str(tags(t)))),
        ("bad.jsonl, row 2", "1 tags for 2 words"),
    ),
    "entities of tags that are none": (
        lambda r, t: replace(r, task=replace(r.task, path=str(tags(t, good=True)), metric="entity_f1")),
        ("entity_f1", "accuracy"),
    ),
    "masked text of which nothing is predicted": (
        lambda r, t: with_stage(r, "gd", data="masked"),
        ("gd reads masked text and predicts nothing", "gd.losses.hard"),
    ),
    "masked words of a teacher without them": (
        lambda r, t: with_stage(with_losses(r, "gd", soft=1.0), "gd", data="masked"),
        ("teacher has no head that predicts masked words",),
    ),
    "masked words of a fine-tuned teacher": (
        lambda r, t: with_stage(with_losses(r, "ged", soft=1.0), "ged", data="masked"),
        ("ged", "predicts no masked words", "ged.teacher to pretrained"),
    ),
    "best epoch of masked text": (
        lambda r, t: with_stage(with_losses(r, "gd", hard=1.0), "gd", data="masked", keep="best"),
        ("gd.keep is best", "last"),
    ),
    "no label names": (lambda r, t: replace(r, task=replace(r.task, label_names=())), ("task.label_names is []",)),
    "a label name twice": (
        lambda r, t: replace(r, task=replace(r.task, label_names=("positive", "positive"))),
        ("task.label_names is ['positive', 'positive']",),
    ),
    "family whose attention cannot be captured": (
        lambda r, t: replace(
            r, teacher=replace(r.teacher, path=str(uncapturable(t))), student=replace(r.student, init="random")
        ),
        ("stage gd", "mpnet", "hidden", "embedding", "soft"),
    ),
    "fine-tuned on other classes": (
        lambda r, t: replace(r, teacher=replace(r.teacher, finetuned=str(classifier(t, "no", "perhaps", "yes")))),
        ("3 labels", "has 2"),
    ),
    "fine-tuned on classes of other names": (
        lambda r, t: replace(r, teacher=replace(r.teacher, finetuned=str(classifier(t, "good", "bad")))),
        ("['good', 'bad']", "['negative', 'positive']", "id2label"),
    ),
    "empty text": (lambda r, t: task_file(r, t, "text,label\n" + ROWS + ",positive\n"), ("17", "text")),
    "not UTF-8": (
        lambda r, t: task_file(r, t, b"text,label\ncaf\xe9,positive\n" + ROWS.encode()),
        ("bad.csv", "UTF-8"),
    ),
    "no teacher": (lambda r, t: replace(r, teacher=replace(r.teacher, path=None)), ("--teacher.path",)),
    "teacher that is a file": (
        lambda r, t: replace(r, teacher=replace(r.teacher, path=str(task_file(r, t, "x").task.path))),
        ("bad.csv is no folder",),
    ),
    "teacher of an unknown kind": (
        lambda r, t: replace(r, teacher=replace(r.teacher, path=str(configured(t, model_type="unheard")))),
        ("configured cannot be loaded", "unheard"),
    ),
    "heads that do not divide the width": (
        lambda r, t: replace(r, teacher=replace(r.teacher, path=str(configured(t, num_attention_heads=5)))),
        ("configured cannot be loaded", "5"),
    ),
    "augmented text without a source of words": (
        lambda r, t: with_stage(r, "tad", data="augmented"),
        ("has no head that predicts masked words", "--task.augment.model", "--task.augment.vectors"),
    ),
    "augmented text without vectors": (
        lambda r, t: with_augment(r, vectors=str(t / "gone.txt")),
        ("task.augment.vectors", "gone.txt"),
    ),
    "augmented text of a model without head": (
        lambda r, t: with_augment(r, model=r.teacher.path),
        ("has no head that predicts masked words",),
    ),
    "augmented text without a task": (
        lambda r, t: replace(
            with_augment(r), task=replace(r.task, path=None), teacher=replace(r.teacher, finetuned=r.teacher.path)
        ),
        ("stage tad reads task data", "--task.path"),
    ),
    "no copies": (lambda r, t: with_augment(r, copies=0), ("task.augment.copies is 0",)),
    "words replaced always and more": (
        lambda r, t: with_augment(r, probability=1.5),
        ("task.augment.probability is 1.5",),
    ),
    "no candidates": (lambda r, t: with_augment(r, candidates=0), ("task.augment.candidates is 0",)),
    "an empty path": (lambda r, t: replace(r, task=replace(r.task, path="")), ("task.path is empty",)),
    "a metric that there is not": (
        lambda r, t: replace(r, task=replace(r.task, metric="auc")),  # type: ignore[arg-type]
        ("task.metric is 'auc'", "accuracy"),
    ),
    "an attention kind that there is not": (
        lambda r, t: with_losses(r, "gd", attention_kind="score"),
        ("gd.losses.attention_kind is 'score'", "did you mean scores?"),
    ),
    "data that there is not": (lambda r, t: with_stage(r, "tad", data="tasks"), ("tad.data is 'tasks'", "mean task?")),
    "a schedule that there is not": (
        lambda r, t: with_optim(r, "tsd", lr_scheduler_type="polynomial"),
        ("tsd.optim.lr_scheduler_type is 'polynomial'", "cosine"),
    ),
    "a preset that there is not": (
        lambda r, t: replace(r, student=replace(r.student, preset="tinybert")),  # type: ignore[arg-type]
        ("student.preset is 'tinybert'", "tinybert4"),
    ),
    "seed too large": (lambda r, t: replace(r, seed=10**20), ("seed is 100000000000000000000",)),
    "missing teacher": (
        lambda r, t: replace(r, teacher=replace(r.teacher, path=str(t / "none"))),
        ("none is no folder",),
    ),
    "vocabularies that differ in size": (
        lambda r, t: replace(r, student=type(r.student)(path=str(other_vocabulary(t, size=40)))),
        ("40", "27"),
    ),
    "vocabularies that differ in words": (
        lambda r, t: replace(r, student=type(r.student)(path=str(other_vocabulary(t, size=27)))),
        ("vocabular",),
    ),
    "tokenizers that differ in case": (
        lambda r, t: replace(r, teacher=replace(r.teacher, finetuned=str(cased(t)))),
        ("reads 'The' as", "the same token ids"),
    ),
    "augmentation that nothing reads": (
        lambda r, t: replace(r, task=replace(r.task, augment=Augment(vectors="none.txt"))),
        ("task.augment.vectors is given", "data: augmented"),
    ),
    "augmentation that only a skipped stage reads": (
        lambda r, t: with_stage(with_augment(r, vectors="none.txt"), "tad", skip=True),
        ("task.augment.vectors is given", "data: augmented"),
    ),
    "augmentation that replaces no word": (
        lambda r, t: with_augment(r, vectors=str(make_vectors(t / "glove.txt", ["mot", "parole", "wort"]))),
        ("no word of the text has been replaced", "glove.txt"),
    ),
    "several teachers of attention alone": (
        lambda r, t: replace(
            r,
            stages={"tad": replace(r.stages["tad"], losses=Losses(attention=1.0, relation=1.0))},
            teacher=replace(r.teacher, others=(r.teacher.path or "",)),
        ),
        ("teacher.others is given", "a loss on logits or hidden states"),
    ),
    "teacher of another problem": (
        lambda r, t: replace(
            r, teacher=replace(r.teacher, finetuned=str(classifier(t, "a", "b", problem_type="regression")))
        ),
        ("was fine-tuned for regression", "needs single_label_classification"),
    ),
    "steps of the control": (lambda r, t: replace(r, control=replace(r.control, steps=7)), ("control.steps is 7",)),
    "epochs of the control": (
        lambda r, t: replace(r, control=replace(r.control, epochs=2.0)),
        ("control.epochs is 2",),
    ),
    "names of classes for a regression": (
        lambda r, t: replace(r, task=replace(r.task, kind="regression", label_names=("a", "b"))),
        ("task.label_names", "regression"),
    ),
    "head never fine-tuned": (
        lambda r, t: replace(r, teacher=replace(r.teacher, finetuned=r.teacher.path)),
        ("head was never fine-tuned", r"teacher"),
    ),
    "fine-tuning skipped": (
        lambda r, t: replace(r, finetune=replace(r.finetune, skip=True)),
        ("head was never fine-tuned", "--teacher.finetuned"),
    ),
    "soft labels of a pretrained teacher": (
        lambda r, t: with_losses(r, "gd", soft=1.0),
        ("gd", "never fine-tuned", "gd.teacher"),
    ),
    "layer map past the teacher": (lambda r, t: with_stage(r, "ged", layer_map="1:3,2:5"), ("ged", "2:5", "4")),
    "layer map past the student": (lambda r, t: with_stage(r, "tad", layer_map="3:4"), ("tad", "3:4", "2 layers")),
    "unequal heads": (
        lambda r, t: replace(r, student=replace(r.student, num_attention_heads=3, init="random")),
        ("3", "2", "relation"),
    ),
    "width not divisible": (lambda r, t: replace(r, student=replace(r.student, hidden_size=13)), ("13", "2")),
    "no general text": (lambda r, t: replace(r, general=replace(r.general, path=None)), ("gd", "--general.path")),
    "no losses": (
        lambda r, t: with_losses(r, "gd", attention=0.0, hidden=0.0, embedding=0.0),
        ("all loss weights are 0",),
    ),
    "hard labels on general text": (lambda r, t: with_losses(r, "gd", hard=1.0), ("gd", "no labels")),
    "temperature of 0": (lambda r, t: with_losses(r, "tsd", temperature=0.0), ("tsd.losses.temperature is 0",)),
    "temperature of 1e7": (lambda r, t: with_losses(r, "tsd", temperature=1e7), ("it must be from 1e-06 to 1e+06",)),
    "negative learning rate": (lambda r, t: with_optim(r, "gd", learning_rate=-1.0), ("gd.optim.learning_rate is -1",)),
    "negative clipping": (lambda r, t: with_optim(r, "gd", max_grad_norm=-1.0), ("gd.optim.max_grad_norm is -1",)),
    "warm-up past the end": (lambda r, t: with_optim(r, "gd", warmup_ratio=2.0), ("gd.optim.warmup_ratio is 2",)),
    "negative weight decay": (lambda r, t: with_optim(r, "gd", weight_decay=-1.0), ("gd.optim.weight_decay is -1",)),
    "no relation heads": (lambda r, t: with_losses(r, "gd", relation=1.0, relation_heads=0), ("relation_heads is 0",)),
    "logging every 0 steps": (lambda r, t: replace(r, logging_steps=0), ("logging_steps is 0",)),
    "saving every -1 steps": (lambda r, t: replace(r, save_steps=-1), ("save_steps is -1",)),
    "negative seed": (lambda r, t: replace(r, seed=-1), ("seed is -1",)),
    "negative split seed": (lambda r, t: replace(r, task=replace(r.task, split_seed=-1)), ("task.split_seed is -1",)),
    "endless epochs": (lambda r, t: with_stage(r, "gd", steps=None, epochs=1e9), ("gd.epochs is 1000000000",)),
    "best epoch without a head": (lambda r, t: with_stage(r, "gd", keep="best"), ("gd.keep is best",)),
    "taught control": (
        lambda r, t: replace(r, control=replace(r.control, teacher="finetuned")),
        ("control trains on gold labels alone",),
    ),
    "reserved stage name": (lambda r, t: replace(r, stages={"init": r.stages["tsd"]}), ("'init'",)),
    "student without width": (
        lambda r, t: replace(r, student=replace(r.student, hidden_size=0)),
        ("hidden_size is 0",),
    ),
    "teacher without tokenizer": (
        lambda r, t: replace(r, teacher=replace(r.teacher, path=str(without_tokenizer(t)))),
        ("no tokenizer files",),
    ),
    "tokenizer larger than the teacher's vocabulary": (
        lambda r, t: replace(r, teacher=replace(r.teacher, path=str(make_teacher(t / "small", vocab_size=20)))),
        ("ids up to 26", "embeds 20"),
    ),
    "NaN in the teacher's weights": (
        lambda r, t: replace(r, teacher=replace(r.teacher, path=str(spoilt(t)))),
        ("NaN or infinite",),
    ),
    "torn weights": (lambda r, t: replace(r, teacher=replace(r.teacher, path=str(torn(t)))), ("cannot be loaded",)),
    "fine-tuned teacher of another vocabulary": (
        lambda r, t: replace(r, teacher=replace(r.teacher, finetuned=str(other_vocabulary(t, size=27, head=True)))),
        ("vocabular",),
    ),
    "every stage skipped": (
        lambda r, t: replace(r, stages={n: replace(s, skip=True) for n, s in r.stages.items()}),
        ("every stage is skipped",),
    ),
    "epochs and steps": (lambda r, t: with_stage(r, "gd", epochs=1.0), ("gd", "epochs", "steps")),
    "no epochs": (lambda r, t: with_stage(r, "gd", steps=None, epochs=0.0), ("gd.epochs is 0",)),
    "max_length past the model": (lambda r, t: replace(r, general=replace(r.general, max_length=512)), ("512", "64")),
    "budget below a sequence": (lambda r, t: with_stage(r, "gd", tokens_per_batch=8), ("tokens_per_batch", "8")),
    "metric of another kind": (
        lambda r, t: replace(r, task=replace(r.task, metric="pearson")),
        ("pearson", "classification"),
    ),
    "no GPU": (lambda r, t: replace(r, device="cuda"), ("cuda", "--device cpu")),
    "too few rows": (lambda r, t: replace(r, task=replace(r.task, test_size=900)), ("900", "160")),
}


def with_optim(recipe: Recipe, name: str, **changes: object) -> Recipe:
    return with_stage(recipe, name, optim=replace(recipe.stages[name].optim, **changes))  # type: ignore[arg-type]


def with_augment(recipe: Recipe, **changes: object) -> Recipe:
    """`recipe` with augmented text in stage tad."""
    augment = replace(recipe.task.augment, **changes)  # type: ignore[arg-type]
    return replace(with_stage(recipe, "tad", data="augmented"), task=replace(recipe.task, augment=augment))
