r"""TinyBERT's data augmentation by itself: a task's training rows and their copies, as a data set of parquet files.

    python -m recipes.augment --teacher.path bert-base-uncased --task.name sst2 \
        --task.augment.vectors glove.6B.300d.txt --output_dir sst2_augmented

The folder is a task to train on: --task.path sst2_augmented. Rows that a run sets aside from train for choices, or for
its figures, are not copied but written beside, as validation and test. `source_id` is the number of the row in the
data's train, counted from 0, of a copy that of the row that it comes from. Runs whose stages have `data: augmented`
make the same copies by themselves, and keep them in the same cache; of this folder they make no more.

Result (README, bench/augment.py): on two threads of an EPYC bert-base finds the candidates of 59 words a second in
bf16, 26 in fp32, where one forward pass for each word, as published, is at 24 and 10.
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
    """Write the rows of train and their copies, those of validation and test, and a report of what changed.

    Args:
        task: the rows, divided as a run divides them.
        teacher: whose tokenizer tells how long texts are, and whose masked-LM head fills in words where
            task.augment.model names no other model.
        output_dir: what is written, where nothing is yet: data/*.parquet, which `datasets` reads, and report.json.
        cache_dir: where the copies are made, and found again.
        seed: of splits and draws.
        device: where the model runs; auto takes the GPU when there is one.
        precision: arithmetic of the model; auto takes bf16 where the hardware has it.
    """
    from fastdistill import inputs
    from fastdistill.checkpoint import publish
    from fastdistill.checks import check_augment, check_values
    from fastdistill.data.columns import complete
    from fastdistill.data.rows import REPORT
    from fastdistill.data.tasks import load_task
    from fastdistill.data.written import write_renumbered, write_rows
    from fastdistill.models.pretrained import load_tokenizer, quiet
    from fastdistill.workspace import check_writable

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

    def refuse_existing() -> None:
        if folder.exists():
            raise ValueError(f"output_dir {folder} exists: choose another --output_dir, or remove it")

    refuse_existing()
    check_writable(folder)
    data = load_task(task, load_tokenizer(base), seed)
    for line in [found, *data.said] if found else data.said:
        print(line)
    if data.copied:
        raise ValueError(f"{task.path}: rows of train are copies of others already: name the data without them")
    made = inputs.augment(recipe, data, print)

    def write(to: Path) -> None:
        (to / "data").mkdir()
        shutil.copy(made.folder / REPORT, to)
        for shard in made.folder.glob("*.parquet"):
            write_renumbered(shard, to / "data" / shard.name, data.rows["train"].numbers)
        for name, rows in data.rows.items():
            if name != "train":  # "test, mismatched" is test_mismatched to those who read it
                write_rows(
                    to / "data" / f"{name.replace(', ', '_')}-00000-of-00001.parquet", task, rows, data.label_names
                )

    refuse_existing()  # what has been put there meanwhile
    publish(folder, write)
    print(f"{folder}: {', '.join(f'{what} {count:,}' for what, count in made.counts.items())}")


RECIPE = Recipe(Teacher(), Student(), Corpus(), Task(), FINETUNE, {}, CONTROL)

if __name__ == "__main__":
    command(augment, __doc__)
