r"""TinyBERT's data augmentation by itself: a task's training rows and their copies, as a folder of parquet files.

    python -m recipes.augment --teacher.path bert-base-uncased --task.name sst2 \
        --task.augment.vectors glove.6B.300d.txt --output_dir sst2_augmented

Runs whose stages have `data: augmented` make the same by themselves, and keep it in the same cache.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Literal

from fastdistill import CONTROL, FINETUNE, Corpus, Recipe, Student, Task, Teacher
from fastdistill.cli import command


def augment(
    task: Task,
    teacher: Teacher,
    output_dir: str = "augmented",
    cache_dir: str = "~/.cache/fastdistill",
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> None:
    """Write the rows of train and their copies, and a report of what changed.

    Args:
        task: the rows; those that a run would set aside from train are left out.
        teacher: whose tokenizer tells how long texts are, and whose masked-LM head fills in words where
            task.augment.model names no other model.
        output_dir: what is written: parquet files that `datasets` reads, and report.json.
        cache_dir: where the copies are made, and found again.
        seed: of splits and draws.
        device: where the model runs; auto takes the GPU when there is one.
        precision: arithmetic of the model; auto takes bf16 where the hardware has it.
    """
    from fastdistill import inputs
    from fastdistill.checkpoint import publish
    from fastdistill.checks import check_augment, check_values
    from fastdistill.data.columns import complete
    from fastdistill.data.tasks import load_task
    from fastdistill.models.pretrained import load_tokenizer, quiet

    quiet()
    base = teacher.path or teacher.finetuned
    if base is None:
        raise ValueError("no teacher is named: give --teacher.path, a Hugging Face folder or Hub id")
    task, found = complete(task)
    recipe = dataclasses.replace(
        RECIPE, teacher=teacher, task=task, cache_dir=cache_dir, seed=seed, device=device, precision=precision
    )
    check_values(recipe)
    check_augment(task)
    folder = Path(output_dir).expanduser()
    if folder.exists():
        raise ValueError(f"output_dir {folder} exists: choose another --output_dir, or remove it")
    data = load_task(task, load_tokenizer(base), seed)
    for line in [found, *data.said] if found else data.said:
        print(line)
    made = inputs.augment(recipe, data, print)

    def copy(to: Path) -> None:
        shutil.copytree(made.folder, to, dirs_exist_ok=True)

    publish(folder, copy)
    print(f"{folder}: {', '.join(f'{what} {count:,}' for what, count in made.counts.items())}")


RECIPE = Recipe(Teacher(), Student(), Corpus(), Task(), FINETUNE, {}, CONTROL)

if __name__ == "__main__":
    command(augment, __doc__)
