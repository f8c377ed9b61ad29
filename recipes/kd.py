r"""Plain knowledge distillation: the teacher's soft labels and the gold labels, on task text (Hinton et al., 2015).

    python -m recipes.kd --teacher.path bert-base-uncased --student.num_hidden_layers 6 \
        --task.name rte --output_dir out

finetune  the teacher learns the task (left out when --teacher.finetuned names one that has)
kd        soft labels at temperature 2, and gold labels; the student starts from the teacher's first layers
control   the same student on gold labels alone

Result (docs/results.md): four layers of e5-small (3, 6, 9 and 12), 800 steps on the task, 5 to 6 minutes on one
thread of an EPYC: RTE 53.1, MRPC (F1) 81.9, CoLA 16.7, STS-B 62.1, where gold labels alone lead to 53.4, 80.6, 14.2
and 63.3, the teacher has 61.7, 88.7, 39.2 and 89.1.
"""

from fastdistill import CONTROL, FINETUNE, Corpus, Losses, Optim, Recipe, Stage, Student, Task, Teacher, main

RECIPE = Recipe(
    teacher=Teacher(),
    student=Student(num_hidden_layers=6, init_layers="first"),
    general=Corpus(),
    task=Task(),
    finetune=FINETUNE,
    stages={
        "kd": Stage(
            losses=Losses(soft=0.5, hard=0.5, temperature=2.0, soft_form="kl"),
            epochs=4,
            optim=Optim(learning_rate=5e-5),
            keep="best",
        ),
    },
    control=CONTROL,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
