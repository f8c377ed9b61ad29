r"""MiniLMv2: query, key and value relations of one layer, on general text; then the task on gold labels.

    python -m recipes.minilm_v2 --teacher.path bert-base-uncased --general.path "wiki/*.txt" \
        --task.name sst2 --output_dir out

Wang et al., arXiv 2012.15828. Both models' heads are re-split into 48 relation heads, so that their own numbers may
differ; 48 must divide both widths (--minilm_v2.losses.relation_heads). Of a teacher of 24 layers the paper takes an
upper middle one: --minilm_v2.layer_map 6:21.

finetune  the teacher learns the task, for the report to compare with (left out by --finetune.skip true)
minilm_v2 KL divergence of query, key and value relations, last layer to last layer
tune      gold labels
control   the same student on gold labels alone, from the start

Result (docs/results.md): four layers of e5-small, 384 wide, 1,000 steps on general text and 800 on the task, 31
minutes on one thread of an EPYC: RTE 54.5, MRPC (F1) 81.4, CoLA 12.4, STS-B 79.9, where gold labels alone lead to
53.4, 80.6, 14.2 and 63.3, the teacher has 61.7, 88.7, 39.2 and 89.1.
"""

from fastdistill import CONTROL, FINETUNE, Corpus, Losses, Optim, Recipe, Stage, Student, Task, Teacher, main

RECIPE = Recipe(
    teacher=Teacher(),
    student=Student(num_hidden_layers=6, hidden_size=384, intermediate_size=1536, num_attention_heads=12),
    general=Corpus(),
    task=Task(),
    finetune=FINETUNE,
    stages={
        "minilm_v2": Stage(
            teacher="pretrained",
            data="general",
            losses=Losses(relation=1.0, relation_pairs="qq,kk,vv", relation_heads=48),
            epochs=1,
            tokens_per_batch=4096,
            optim=Optim(learning_rate=6e-4, warmup_ratio=0.01),
        ),
        "tune": Stage(teacher="none", losses=Losses(hard=1.0), epochs=5, optim=Optim(learning_rate=5e-5), keep="best"),
    },
    control=CONTROL,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
