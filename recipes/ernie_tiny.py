r"""ERNIE-Tiny: distil a teacher in four stages, changing one of {teacher, data, objective} at a time.

    python -m recipes.ernie_tiny --teacher.path bert-base-uncased --student.preset tinybert4 \
        --general.path "wiki/*.txt" --task.name sst2 --output_dir out

finetune  the teacher learns the task (left out when --teacher.finetuned names one that has)
gd        general distillation: pretrained teacher, general text, latent losses
ged       general-enhanced distillation: fine-tuned teacher
tad       task-adaptive distillation: task text
tsd       task-specific distillation: latent losses, soft labels and hard labels
control   the same student on gold labels alone

With `--tad.data augmented --tsd.data augmented` the task stages also learn from copies of its rows in which words are
replaced (`--task.augment.vectors glove.6B.300d.txt`; see --help for the rest). `--config recipes/chinese.yaml` is for
Chinese.

Result (docs/results.md): four layers of e5-small, 384 wide, 1,000 steps on general text and 800 on the task, 34 to 48
minutes on one thread of an EPYC: RTE 60.6, MRPC (F1) 86.8, CoLA 22.8, STS-B 86.0, where gold labels alone lead to
53.4, 80.6, 14.2 and 63.3, the teacher has 61.7, 88.7, 39.2 and 89.1.
These are the settings of bench/quality/small.yaml: a projection for each layer, rates of 6e-4 (tad 4e-4), temperature
2 in tsd, one general step of four in gd. A narrower student of 192 may want `attention_kind: centered_scores` in the
losses of all stages and 7 of 8 general steps in gd: STS-B 76.6 instead of 58.6, for which that was chosen, MRPC 85.8
instead of 81.7, RTE 53.8 and CoLA 6.3 instead of 54.2 and 9.2, where none learns (why: bench/NOTES.md).
"""

from fastdistill import CONTROL, ERNIE_TINY, FINETUNE, Corpus, Recipe, Student, Task, Teacher, main

RECIPE = Recipe(
    teacher=Teacher(),
    student=Student(preset="tinybert4"),
    general=Corpus(),
    task=Task(),
    finetune=FINETUNE,
    stages=ERNIE_TINY,
    control=CONTROL,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
