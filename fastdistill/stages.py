"""The stages as values: which teacher, which data, which losses. One loop runs them all.

ERNIE-Tiny (arXiv 2106.02241) changes one of {teacher, data, objective} at each step. Schedules, layer maps and weights
are this project's recipe: the paper's are not known.
"""

from __future__ import annotations

from fastdistill.recipe import Losses, Optim, Stage

LATENT = Losses(attention=1.0, hidden=1.0, embedding=1.0)

FINETUNE = Stage(
    teacher="none", data="task", losses=Losses(hard=1.0), epochs=3, optim=Optim(learning_rate=3e-5), keep="best"
)

GD = Stage(
    teacher="pretrained",
    data="general",
    losses=LATENT,
    epochs=1,
    tokens_per_batch=4096,
    optim=Optim(learning_rate=3e-4),
)
GED = Stage(
    teacher="finetuned", data="general", losses=LATENT, epochs=1, tokens_per_batch=4096, optim=Optim(learning_rate=3e-4)
)
TAD = Stage(teacher="finetuned", data="task", losses=LATENT, epochs=5, optim=Optim(learning_rate=2e-4))
TSD = Stage(
    teacher="finetuned",
    data="task",
    losses=Losses(attention=1.0, hidden=1.0, embedding=1.0, soft=1.0, hard=1.0),
    epochs=5,
    optim=Optim(learning_rate=1e-4),
    keep="best",
)
ERNIE_TINY = {"gd": GD, "ged": GED, "tad": TAD, "tsd": TSD}

CONTROL = Stage(teacher="none", data="task", losses=Losses(hard=1.0), optim=Optim(learning_rate=1e-4), keep="best")
