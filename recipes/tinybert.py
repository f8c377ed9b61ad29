r"""TinyBERT: general distillation, then two stages on augmented task text: inner layers first, predictions after.

    python -m recipes.tinybert --teacher.path bert-base-uncased --student.preset tinybert4 \
        --general.path "wiki/*.txt" --task.name mrpc --task.augment.vectors glove.6B.300d.txt --output_dir out

Jiao et al., arXiv 1909.10351. TinyBERT6 is --student.preset tinybert6; other layer maps (the paper's top and bottom)
--gd.layer_map top --intermediate.layer_map top. --paper_mode does what the published program does, where that differs
from the paper, a random student to begin with included; without it those places are mended. docs/tinybert.md lists
them, and what is different in both modes.

finetune      the teacher learns the task (left out when --teacher.finetuned names one that has)
gd            general distillation: pretrained teacher, general text, attention scores, hidden states, embeddings
intermediate  the same losses, fine-tuned teacher, augmented task text
prediction    soft labels, augmented task text
control       the same student on gold labels alone

Result (docs/results.md), without augmentation: four layers of e5-small, 384 wide, 1,000 steps on general text and 800
on the task, 34 minutes on one thread of an EPYC: RTE 57.4, MRPC (F1) 86.4, CoLA 24.9, STS-B 84.9, where gold labels
alone lead to 53.4, 80.6, 14.2 and 63.3, the teacher has 61.7, 88.7, 39.2 and 89.1.
"""

from dataclasses import replace

from fastdistill import CONTROL, FINETUNE, Corpus, Losses, Optim, Recipe, Stage, Student, Task, Teacher, main

LATENT = Losses(attention=1.0, hidden=1.0, embedding=1.0, projection="layer")

RECIPE = Recipe(
    teacher=Teacher(),
    student=Student(preset="tinybert4"),
    general=Corpus(),
    task=Task(),
    finetune=FINETUNE,
    stages={
        "gd": Stage(
            teacher="pretrained",
            data="general",
            losses=LATENT,
            epochs=3,
            tokens_per_batch=4096,
            gradient_accumulation_steps=8,
            optim=Optim(learning_rate=1e-4),
        ),
        "intermediate": Stage(
            data="augmented",
            losses=LATENT,
            epochs=20,
            optim=Optim(learning_rate=5e-5, lr_scheduler_type="constant", warmup_ratio=0.0),
        ),
        "prediction": Stage(
            data="augmented", losses=Losses(soft=1.0), epochs=3, optim=Optim(learning_rate=3e-5), keep="best"
        ),
    },
    control=CONTROL,
)


def as_published(stage: Stage) -> Stage:
    """Means over max_length, one projection for all layers, soft labels averaged over classes, numbers from gold labels
    alone, a noisy teacher."""
    losses = replace(
        stage.losses, normalize="padded", projection="shared", soft_reduction="mean", temperature_squared=False,
        regression_targets="gold",
    )  # fmt: skip
    return replace(stage, losses=losses, teacher_dropout=True)


PAPER = replace(
    RECIPE,
    student=replace(RECIPE.student, init="random"),
    task=replace(RECIPE.task, augment=replace(RECIPE.task.augment, paper_pairs=True)),
    stages={name: as_published(stage) for name, stage in RECIPE.stages.items()},
)


if __name__ == "__main__":
    main(RECIPE, __doc__, modes={"paper_mode": PAPER})
