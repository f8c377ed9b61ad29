r"""DistilBERT: masked words, the teacher's distribution over them and the direction of its states; then the task.

    python -m recipes.distilbert --teacher.path bert-base-uncased --general.path "wiki/*.txt" \
        --task.name sst2 --output_dir out

Sanh et al., arXiv 1910.01108: 5 KL (temperature 2) + 2 masked language modelling + 1 cosine of the last hidden states.
The soft loss is over the masked words; the published trainer takes it over all words unless --restrict_ce_to_mask is
given. The teacher needs its head for masked words. Of one that lost it, states alone can be learnt:

    --distil.data general --distil.losses.soft 0 --distil.losses.hard 0

finetune  the teacher learns the task (left out when --teacher.finetuned names one that has)
distil    masked general text; the student starts from every second layer of the teacher, and from its head if it is
          as wide
tune      gold labels, and soft labels where --tune.teacher finetuned --tune.losses.soft 1 asks for them
control   the same student on gold labels alone, from the start

Result (docs/results.md), with states alone and soft labels at the end: four layers of e5-small, 384 wide, 1,000 steps
on general text and 800 on the task, 27 minutes on one thread of an EPYC: RTE 53.8, MRPC (F1) 81.1, CoLA 18.3, STS-B
81.8, where gold labels alone lead to 53.4, 80.6, 14.2 and 63.3, the teacher has 61.7, 88.7, 39.2 and 89.1.
"""

from fastdistill import CONTROL, FINETUNE, Corpus, Losses, Optim, Recipe, Stage, Student, Task, Teacher, main

RECIPE = Recipe(
    teacher=Teacher(),
    student=Student(num_hidden_layers=6, init_layers="uniform"),
    general=Corpus(max_length=512),
    task=Task(),
    finetune=FINETUNE,
    stages={
        "distil": Stage(
            teacher="pretrained",
            data="masked",
            losses=Losses(soft=5.0, soft_form="kl", temperature=2.0, hard=2.0, cosine=1.0),
            epochs=3,
            tokens_per_batch=4096,
            gradient_accumulation_steps=8,
            optim=Optim(learning_rate=5e-4, warmup_ratio=0.05),
        ),
        "tune": Stage(teacher="none", losses=Losses(hard=1.0), epochs=3, optim=Optim(learning_rate=3e-5), keep="best"),
    },
    control=CONTROL,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
