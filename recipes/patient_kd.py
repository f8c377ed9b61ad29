r"""Patient knowledge distillation: the student also follows the teacher's [CLS] states, layer by layer.

    python -m recipes.patient_kd --teacher.path bert-base-uncased --pkd.layer_map skip \
        --task.name rte --output_dir out

PKD-Skip follows teacher layers 2, 4, 6, 8, 10, PKD-Last (--pkd.layer_map last) layers 7 to 11. The paper (Sun et al.,
arXiv 1908.09355, section 4.2) chooses by the score on the development set among these, the loss being
(1 - alpha) hard + alpha T^2 soft + beta patience:

    --sweep '{"pkd.losses.temperature": [5, 10, 20], "pkd.losses.patience": [10, 100, 500, 1000],
              "pkd.losses.soft,pkd.losses.hard": [[0.2, 0.8], [0.5, 0.5], [0.7, 0.3]],
              "pkd.optim.learning_rate": [5e-5, 2e-5, 1e-5]}'

As in the published program, to which these weights belong, patience is a mean over the components of a state too, and
soft labels one over the classes. Its switch that leaves states as long as they are is
--pkd.losses.patience_distance squared.

finetune  the teacher learns the task (left out when --teacher.finetuned names one that has)
pkd       soft labels, gold labels and patience; the student starts from the teacher's first layers
control   the same student on gold labels alone

Result (docs/results.md), PKD-Skip: four layers of e5-small (3, 6, 9 and 12), 800 steps on the task, 5 to 6 minutes on
one thread of an EPYC: RTE 52.0, MRPC (F1) 81.5, CoLA 14.9, STS-B 67.2, where gold labels alone lead to 53.4, 80.6,
14.2 and 63.3, the teacher has 61.7, 88.7, 39.2 and 89.1.
"""

from fastdistill import CONTROL, FINETUNE, Corpus, Losses, Optim, Recipe, Stage, Student, Task, Teacher, main

RECIPE = Recipe(
    teacher=Teacher(),
    student=Student(num_hidden_layers=6, init_layers="first"),
    general=Corpus(),
    task=Task(),
    finetune=FINETUNE,
    stages={
        "pkd": Stage(
            losses=Losses(
                soft=0.5,
                soft_form="kl",
                soft_reduction="mean",
                hard=0.5,
                patience=100.0,
                patience_reduction="mean",
                temperature=5.0,
            ),
            epochs=4,
            optim=Optim(learning_rate=5e-5),
            layer_map="skip",
            keep="best",
        ),
    },
    control=CONTROL,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
