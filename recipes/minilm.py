r"""MiniLM: attention and value relations of the last layer, on general text; then the task on gold labels.

    python -m recipes.minilm --teacher.path bert-base-uncased --general.path "wiki/*.txt" \
        --task.name sst2 --output_dir out

Wang et al., arXiv 2002.10957, compare heads one to one: the student has as many as the teacher, and
--minilm.losses.relation_heads is their number (12). Models of other numbers of heads are compared too: queries and keys
of both are then split anew, into as many parts as that says, which is the idea of recipes.minilm_v2.

finetune  the teacher learns the task, for the report to compare with (left out by --finetune.skip true)
minilm    KL divergence of attention and of value relations, last layer to last layer
tune      gold labels
control   the same student on gold labels alone, from the start

No result yet: docs/results.md compares MiniLMv2 alone.
"""

from fastdistill import CONTROL, FINETUNE, Corpus, Losses, Optim, Recipe, Stage, Student, Task, Teacher, main

RECIPE = Recipe(
    teacher=Teacher(),
    student=Student(num_hidden_layers=6, hidden_size=384, intermediate_size=1536, num_attention_heads=12),
    general=Corpus(),
    task=Task(),
    finetune=FINETUNE,
    stages={
        "minilm": Stage(
            teacher="pretrained",
            data="general",
            losses=Losses(relation=1.0, relation_pairs="qk,vv", relation_heads=12),
            epochs=1,
            tokens_per_batch=4096,
            optim=Optim(learning_rate=5e-4, warmup_ratio=0.01),
        ),
        "tune": Stage(teacher="none", losses=Losses(hard=1.0), epochs=5, optim=Optim(learning_rate=5e-5), keep="best"),
    },
    control=CONTROL,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
