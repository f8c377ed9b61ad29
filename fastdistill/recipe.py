"""The vocabulary: a run is one `Recipe`, a value made of the frozen dataclasses below. No logic lives here.

Importing this module costs nothing (no torch), so that a mistyped option is reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["classification", "regression", "multilabel", "tagging", "span"]
HeadKind = Literal[Kind, "masked"]  # masked: the words that were masked in general text
Metric = Literal[
    "accuracy", "f1", "macro_f1", "matthews", "mrr", "map", "pearson", "spearman", "micro_f1", "exact_match",
    "entity_f1", "entity_precision", "entity_recall",
]  # fmt: skip


@dataclass(frozen=True)
class Teacher:
    """The large model to learn from.

    Args:
        path: pretrained encoder: a Hugging Face folder or Hub id. Teaches the stages with `teacher: pretrained`.
        finetuned: the same encoder, already fine-tuned on the task (a folder or Hub id with the task's head);
            when absent, the `finetune` stage makes it from `path`.
        others: more fine-tuned teachers of the same vocabulary, and of the same shape where a loss is on hidden states.
            Together they teach the stages with `teacher: finetuned`: logits and hidden states are averaged, attention
            is that of the first.
        weights: of the average, one for each teacher, the first included; default all the same.
    """

    path: str | None = None
    finetuned: str | None = None
    others: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Student:
    """The small model to train: the teacher's architecture in another shape.

    Args:
        preset: a published shape: tinybert4 (4 layers, 312 wide, FFN 1200, 12 heads) or tinybert6 (6, 768, 3072, 12);
            on the command line it takes the place of the recipe's own shape.
        num_hidden_layers: depth; overrides the preset, default the teacher's.
        hidden_size: width; overrides the preset, default the teacher's.
        intermediate_size: FFN width; overrides the preset, default the teacher's FFN-to-width ratio times hidden_size.
        num_attention_heads: heads; overrides the preset, default the teacher's.
        dropout: probability in attention and hidden layers while training, default the teacher's.
        init: teacher = copy the teacher's weights, reduced to the student's width where it is narrower; random.
        init_layers: which teacher layers init copies: uniform, first, last, or a list such as "1,3,6".
        path: start from this student folder (or Hub id) instead, with the projections of the stage that left it, if one
            did; the options above must then be left alone, and those of the recipe go.
    """

    preset: Literal["tinybert4", "tinybert6"] | None = None
    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_attention_heads: int | None = None
    dropout: float | None = None
    init: Literal["teacher", "random"] = "teacher"
    init_layers: str = "uniform"
    path: str | None = None


@dataclass(frozen=True)
class Corpus:
    """General text, without labels.

    Args:
        path: .txt, .jsonl, .csv or .parquet file (or compressed), glob, folder, or Hub id; absent where no stage
            needs it.
        name: configuration of a Hub data set.
        split: split of a Hub data set.
        text: column that holds the text; .txt files have one document per line.
        max_length: tokens per training sequence; longer documents are cut into several, nothing is lost.
    """

    path: str | None = None
    name: str | None = None
    split: str = "train"
    text: str = "text"
    max_length: int = 128


@dataclass(frozen=True)
class Augment:
    """How the task's training text is multiplied for stages with `data: augmented` (TinyBERT, arXiv 1909.10351).

    Words are replaced that are letters alone and no stop words; Chinese characters count as words.

    Args:
        copies: copies drawn of every row; default by task.name as published for GLUE (10 to 30), else 20.
        probability: with which each word of a copy is replaced.
        candidates: words that a replacement is drawn from.
        model: masked language model, a folder or Hub id, for words that are one token of its vocabulary; default
            teacher.path where that has a masked-LM head.
        vectors: GloVe text file (or compressed), of which the first 100,000 words count: the nearest of them replace
            words of several tokens, and where there is no model all words.
        show_original: the model reads the unmasked text behind the masked one, as published, so that candidates stay
            near to the word; without it twice as fast.
        max_length: tokens that the model reads at once; of a longer text those around the word.
        tokens_per_batch: most tokens in a batch of the model.
        paper_pairs: of pairs, every second text goes with the last copy of the first, as in the published program.
    """

    copies: int | None = None
    probability: float = 0.4
    candidates: int = 15
    model: str | None = None
    vectors: str | None = None
    show_original: bool = True
    max_length: int = 128
    tokens_per_batch: int = 8192
    paper_pairs: bool = False


@dataclass(frozen=True)
class Task:
    """Labelled text of the task.

    What is left out comes from the definition that `name` selects; without one, columns and kind are found where the
    data leaves no doubt about them.

    Args:
        path: folder with train/validation/test files, a file, a glob, or a Hub id (`id@revision` for another revision);
            absent where no stage needs it.
        name: a known task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, squad, squad_v2, conll2003,
            chnsenticorp, lcqmc, xnli, msra_ner, dbqa; any other name is the configuration of a Hub data set.
        configuration: configuration of a Hub data set, where it is not the name.
        text: column of the text; of the words (tagging), of the question (span).
        pair: column of the second text, where there is one; of the context (span).
        label: column of the label: class index or name; number (regression); list of classes, or of a 0 or 1 for each
            class (multilabel); list of tags, one for each word (tagging); answers as SQuAD has them (span).
        group: column that tells which rows compete for a rank, such as the answers to one question; class 1 is right.
        kind: what the label is.
        metric: the score that choices are made by; default the first that the kind of label has.
        label_names: class names by index; default those of the data set.
        max_length: tokens per example, default 128; longer ones are truncated and counted, contexts cut into windows.
        doc_stride: tokens that neighbouring windows of a context share (span), default a quarter of max_length.
        validation_size: rows set aside from train for choices, where the data has no split left for that; default 500.
        split_seed: decides which rows are set aside; default the run's seed.
        test_size: rows set aside from train for the reported figures, where the data has no split for that; default
            1,000.
        augment: how the rows of train are multiplied, for stages with `data: augmented`.
    """

    path: str | None = None
    name: str | None = None
    configuration: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    group: str | None = None
    kind: Kind | None = None
    metric: Metric | None = None
    label_names: tuple[str, ...] | None = None
    max_length: int | None = None
    doc_stride: int | None = None
    validation_size: int | None = None
    split_seed: int | None = None
    test_size: int | None = None
    augment: Augment = field(default_factory=Augment)


@dataclass(frozen=True)
class Losses:
    """Weights of the loss terms of a stage; a term of weight 0 is not computed.

    Args:
        attention: mean squared error of attention maps, over mapped layers.
        attention_kind: maps compared by attention: scores = raw, before softmax; centered_scores = less the mean of
            each row, which softmax does not see; probs = after it.
        hidden: mean squared error of projected hidden states, over mapped layers.
        embedding: mean squared error of the projected embedding output.
        relation: KL divergence of relations between tokens (MiniLM, MiniLMv2), last mapped layer; any head counts.
        relation_pairs: which of q, k, v are related: "qq,kk,vv" (MiniLMv2), or "qk,vv", attention and values (MiniLM).
        relation_heads: heads into which the relation term splits both models.
        patience: squared distance of [CLS] states (Patient-KD), mean over mapped layers and rows.
        patience_distance: normalized = of their directions; squared = of the states as they are.
        patience_reduction: batchmean = mean over layers and rows; mean = over elements too, as in the published
            Patient-KD program, which makes the term as many times smaller as the teacher is wide.
        cosine: 1 - cosine of the states of the last mapped layer (DistilBERT), mean over tokens.
        soft: cross-entropy with the teacher's softened predictions, binary for each class of a multilabel task (squared
            error for regression).
        soft_form: ce, or kl for the KL divergence, which has the same gradient and is 0 where the two agree.
        soft_reduction: batchmean = mean over rows; mean = over rows and classes, as in the published TinyBERT program;
            of classes, tags and masked words. Multilabel tasks have the mean over both, answers that over rows.
        hard: the same with the gold labels, or with the words that were masked.
        regression_targets: what the soft term learns numbers (regression) from: the teacher's, or gold labels as in the
            published TinyBERT program, where the hard term takes its weight.
        temperature: softening of the soft term, but for regression.
        temperature_squared: multiply the soft term by the square of its temperature; its gradient then keeps its size.
        projection: one projection for all layers and the embedding (TinyBERT as published), or one for each; patience
            and cosine have none where student and teacher are equally wide.
        normalize: means of attention, hidden, embedding and relation over real entries; or padded: their sum over real
            entries, divided by as many as sequences of max_length would all have. That is the published TinyBERT
            program's divisor; what it also adds up over pad tokens stays left out.
    """

    attention: float = 0.0
    attention_kind: Literal["scores", "centered_scores", "probs"] = "scores"
    hidden: float = 0.0
    embedding: float = 0.0
    relation: float = 0.0
    relation_pairs: str = "qq,kk,vv"
    relation_heads: int = 12
    patience: float = 0.0
    patience_distance: Literal["normalized", "squared"] = "normalized"
    patience_reduction: Literal["batchmean", "mean"] = "batchmean"
    cosine: float = 0.0
    soft: float = 0.0
    soft_form: Literal["ce", "kl"] = "ce"
    soft_reduction: Literal["batchmean", "mean"] = "batchmean"
    hard: float = 0.0
    regression_targets: Literal["teacher", "gold"] = "teacher"
    temperature: float = 1.0
    temperature_squared: bool = True
    projection: Literal["shared", "layer"] = "shared"
    normalize: Literal["tokens", "padded"] = "tokens"


@dataclass(frozen=True)
class Optim:
    """AdamW and its schedule.

    Args:
        learning_rate: peak learning rate.
        lr_scheduler_type: what follows the warm-up.
        warmup_ratio: share of the steps over which the learning rate rises to its peak.
        weight_decay: decoupled weight decay, on matrices only (not on biases and norms).
        max_grad_norm: gradient norm above which gradients are scaled down; 0 switches clipping off.
    """

    learning_rate: float = 5e-5
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class Stage:
    """One run of the training loop: a teacher, data and weighted losses, with a schedule.

    Args:
        teacher: which teacher; none for training on gold labels alone.
        data: which text; masked is general text of which 15 % of the tokens are to be predicted; augmented is the
            task's, with copies in which words are replaced (task.augment).
        losses: weighted loss terms.
        epochs: passes over the data; exclusive with steps.
        steps: optimiser steps; exclusive with epochs.
        tokens_per_batch: most real tokens in a batch.
        gradient_accumulation_steps: batches per optimiser step; the processes of a run share them, so that it is a
            multiple of their number.
        optim: optimiser and schedule.
        layer_map: teacher layer for each student layer: uniform, skip, last, top, bottom, or pairs such as "1:3,2:6".
        teacher_dropout: leave the teacher's dropout on, as the published TinyBERT program does.
        keep: weights handed on: those of the last step, or of the best epoch on the validation rows.
        skip: leave the stage out.
    """

    teacher: Literal["pretrained", "finetuned", "none"] = "finetuned"
    data: Literal["general", "masked", "task", "augmented"] = "task"
    losses: Losses = field(default_factory=Losses)
    epochs: float | None = None
    steps: int | None = None
    tokens_per_batch: int = 1024
    gradient_accumulation_steps: int = 1
    optim: Optim = field(default_factory=Optim)
    layer_map: str = "uniform"
    teacher_dropout: bool = False
    keep: Literal["last", "best"] = "last"
    skip: bool = False


@dataclass(frozen=True)
class Recipe:
    """A whole run.

    Args:
        teacher: the model to learn from.
        student: the model to train.
        assistant: a model between the two (Mirzadeh et al., arXiv 1902.03393): it is distilled first, by the same
            stages, into output_dir/assistant, and then teaches the student.
        general: text without labels.
        task: text with labels.
        finetune: stage 0, which fine-tunes the teacher on the task.
        stages: the distillation stages by name, in order; the name is also directory and command-line prefix.
        control: the same student trained on gold labels alone, for as many steps as the task stages took.
        output_dir: everything the run writes.
        cache_dir: tokenised general text, augmented rows and what teachers said, shared by runs.
        seed: of initialisation, data order, dropout and splits.
        device: where to run; auto takes the GPU when there is one.
        precision: arithmetic of the matrix products; auto takes bf16 where the hardware has it.
        torch_compile: let torch.compile fuse what stands between the matrix products of teacher and student; meant for
            GPUs, on a CPU it gains nothing.
        cuda_graphs: launch the passes of a batch, and the update, as one CUDA graph each, where losses count tokens (no
            label losses, no `normalize: padded`) and the teacher runs beside the student; for batches so small that a
            GPU waits for its next kernel.
        teacher_cache: keep on disk, in cache_dir, what the teacher says of a text that it will see more than once.
        verify_cache: sequences of a cached text of which the teacher is asked again before the stage.
        logging_steps: optimiser steps between two log lines.
        save_steps: optimiser steps between two checkpoints.
    """

    teacher: Teacher
    student: Student
    general: Corpus
    task: Task
    finetune: Stage
    stages: dict[str, Stage]
    control: Stage
    assistant: Student | None = None
    output_dir: str = "out"
    cache_dir: str = "~/.cache/fastdistill"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    torch_compile: bool = False
    cuda_graphs: bool = False
    teacher_cache: bool = False
    verify_cache: int = 0
    logging_steps: int = 20
    save_steps: int = 200
