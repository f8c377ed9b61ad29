"""The jobs that an experiment comes to, and what is refused before any work."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.quality.config import read, recipe_of
from bench.quality.jobs import FINETUNE, Job, Row, all_jobs, placed, read_by, resolved, with_needs
from bench.quality.work import Work, digest_of
from bench.table import ROOT
from fastdistill import Corpus, Student, Task
from tests.tiny_quality import CONFIG, start


def test_general_text_decides_nothing_for_who_reads_none(tmp_path: Path) -> None:
    folders = []
    for length in (16, 12):
        (tmp_path / "tiny.yaml").write_text(
            CONFIG.replace("general.txt, max_length: 16", f"g.txt, max_length: {length}")
        )
        folders.append({job.name: job.folder for job in with_needs(all_jobs(read(tmp_path / "tiny.yaml")))})
    changed = {name for name, folder in folders[0].items() if folders[1][name] != folder}
    assert {name.split("/")[0] for name in changed} == {"tiny", "before", "general"}


def test_models_that_are_lost_are_made_again_where_something_starts_from_them(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    jobs, work = all_jobs(read(tmp_path / "tiny.yaml")), Work(tmp_path / "work")
    assert [job.name for job in work.todo(jobs)][:3] == [
        "teacher/reviews/5e-05",
        "teacher/reviews/0.005",
        "teacher/reviews",
    ]
    assert len(work.todo(jobs)) == len(with_needs(jobs)) == 21
    for job in with_needs(jobs):
        work.job(job).mkdir(parents=True)
        (work.job(job) / "result.json").write_text("{}")
    assert work.todo(jobs) == []
    (run,) = (job for job in jobs if job.name == "tiny/2x12/stars/1")
    (work.job(run) / "result.json").unlink()
    assert work.todo(jobs) == [run], "to choose among trials takes no model"
    trial = run.needs[0]
    (work.job(trial) / "result.json").unlink()
    of_teacher = ["teacher/stars/5e-05", "teacher/stars/0.005", "teacher/stars"]
    parts = ["general/2x12/1", "before/2x12/stars/1"]
    assert [job.name for job in work.todo(jobs)] == [*of_teacher, *parts, trial.name, run.name]
    for need in trial.needs:
        (work.jobs / need.model).mkdir()
    assert work.todo(jobs) == [trial, run]


def test_an_experiment_for_a_gpu_is_left_out_without_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    start(tmp_path, data, config=CONFIG.replace("device: cpu", "device: cuda"))
    assert "left out: tiny, for it is made for a GPU, and there is none" in capsys.readouterr().out
    assert not (tmp_path / "work").exists()


def test_nothing_to_collect_is_said(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no finished run of tiny"):
        start(tmp_path, data, "--collect=machine")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 3", "epoch: 3", "epoch"),
        ("max_length: 16, validation_size", "max_len: 16, validation_size", r"did you mean max_length\?$"),
        ("reviews: 6, ", "reviews: x, ", "task_steps holds 'x': give a mapping of names to whole numbers"),
        ("learning_rates: [5e-5, 5e-3]\ncommon", "learning_rates: [x]\ncommon", "rates holds 'x': give a list"),
        ("learning_rates: [5e-5, 5e-3]\ncommon", "learning_rates: 1\ncommon", "learning_rates is '1': give a list"),
        ("common: {", "common: {sead: 1, ", "common has 'sead': choose from"),
        ("common:", "comon:", "did you mean common"),
        ("shares: {ged: 2}", "shares: {gedd: 2}", r"shares has 'gedd': choose from gd, ged, tad, tsd"),
        ("shares: {ged: 2}", "shares: {ged: 0}", r"shares\.ged is 0.*must be above 0"),
        ("gd: {optim: {learning_rate", "gd: {optim: {lr", r"method tiny: .*optim\.lr.*did you mean gd\.optim"),
        ("overrides: {gd", "overrides: {task: {max_length: 8}, gd", r"task has 'max_length': choose from augment"),
        ("overrides: {gd", "overrides: {seed: 3, gd", "overrides has 'seed'"),
        ("overrides: {gd: {optim", "overrides: {gd: {steps: 9, optim", r"gd\.steps is 9, but the budget.*shares"),
        ("overrides: {gd: {optim", "overrides: {gd: {epochs: 9, optim", r"gd\.epochs is 9, but the budget"),
        ("overrides: {gd: {optim", "overrides: {gd: {tokens_per_batch: 9, optim", r"tokens_per_batch is 9, but"),
        ("{gd: {optim: {learning_rate: 5e-3}}}", "{tsd: {optim: {learning_rate: 1}}}", r"tsd\.optim.* leave it out"),
        ("learning_rates: [5e-5, 5e-3]\ncommon", "learning_rates: []\ncommon", "learning_rates is empty"),
        ("{path: tasks/reviews,", "{path: tasks/reviews, split_seed: 3,", r"split_seed is 3, but teacher\.seed"),
        ("{gd: {optim: {learning_rate: 5e-3}}}", "{tsd: {skip: true}}", "method tiny: its last stage must learn"),
        ("{gd: {optim: {learning_rate: 5e-3}}}", "{tsd: {keep: last}}", r"tsd\.keep is last.*set it to best"),
        ("general_steps: 7", "general_steps: 1", "method tiny: 1 steps leave none for stage gd"),
        ("recipe: recipes.ernie_tiny", "recipe: recipes.ernie", "recipe recipes.ernie cannot be had"),
        ("recipe: recipes.ernie_tiny", "base: tiny", "variant of itself"),
        ("recipe: recipes.ernie_tiny", "base: big", "base has 'big': choose from control, tiny"),
        ("recipe: recipes.ernie_tiny, ", "", "must have a recipe or a base"),
        (
            "recipe: recipes.ernie_tiny, shares: {ged: 2}, overrides: {gd: {optim: {learning_rate: 5e-3}}}",
            "recipe: recipes.distilbert", "method tiny: distil.data is masked, but",
        ),
        ("[control, tiny]", "[tiny]", "against has 'control': choose from tiny"),
        ("[control, tiny]", "[control, tinier]", "rows has 'tinier'"),
        ("reviews: 6, ", "", "'reviews'"),
        ("  reviews: {path", "  re/views: {path", "tasks has the key 're/views'"),
        ("  2x12: {", "  3x9: {hidden: 3, ", "hidden"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_any_work(
    old: str, new: str, message: str, data: Path, tmp_path: Path
) -> None:
    assert old in CONFIG
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        start(tmp_path, data, config=CONFIG.replace(old, new))
    assert not (tmp_path / "work").exists()


def test_a_stage_left_out_gives_its_steps_to_the_others(tmp_path: Path) -> None:
    variants = (
        "  no_gd: {base: tiny, overrides: {gd: {skip: true}}}\n  no_tad: {base: tiny, overrides: {tad: {skip: true}}}\n"
    )
    (tmp_path / "tiny.yaml").write_text(CONFIG.replace("tables:", f"{variants}tables:"))
    experiment = read(tmp_path / "tiny.yaml")
    recipes = {
        row: resolved(experiment, Row.of(experiment, row), "2x12", "stars", 1) for row in ("tiny", "no_gd", "no_tad")
    }
    steps = {row: {name: stage.steps for name, stage in recipe.stages.items()} for row, recipe in recipes.items()}
    assert steps == {
        "tiny": {"gd": 2, "ged": 5, "tad": 2, "tsd": 3},
        "no_gd": {"ged": 7, "tad": 2, "tsd": 3},
        "no_tad": {"gd": 2, "ged": 5, "tsd": 5},
    }


def test_an_augmentation_belongs_to_the_stages_that_read_it(tmp_path: Path) -> None:
    grown = "grown: {base: tiny, overrides: {task: {augment: {vectors: v.txt}}, tsd: {data: augmented}}}"
    config = CONFIG.replace("tables:", f"  {grown}\ntables:").replace("[control, tiny]", "[control, tiny, grown]")
    (tmp_path / "tiny.yaml").write_text(config)
    trials = {job.row: job.needs[0] for job in all_jobs(read(tmp_path / "tiny.yaml")) if job.task == "reviews"}
    assert trials["grown"].parts[0].folder == trials["tiny"].parts[0].folder
    recipe = trials["grown"].recipe
    assert recipe is not None
    assert recipe.task.augment.vectors == "v.txt"


def test_stages_in_another_order_are_another_job(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    part = next(job for job in all_jobs(read(tmp_path / "tiny.yaml")) if job.row == "tiny").needs[0].parts[0]
    assert part.recipe is not None
    turned = replace(part.recipe, stages=dict(reversed(part.recipe.stages.items())))
    assert len(turned.stages) > 1
    assert replace(part, recipe=turned).folder != part.folder == replace(part).folder


def test_what_decides_the_outcome_makes_another_job(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    trial = next(job for job in all_jobs(read(tmp_path / "tiny.yaml")) if job.row == "tiny").needs[0]
    assert trial.recipe is not None
    for option, decides in (("precision", True), ("seed", True), ("teacher_cache", False), ("save_steps", False)):
        value = {"precision": "bf16"}.get(option, 9)
        other = replace(trial, recipe=replace(trial.recipe, **{option: value}))
        assert (other.folder != trial.folder) == decides, option


def test_what_methods_share_knows_no_task_and_what_a_finetuned_teacher_taught_is_of_the_task(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    runs = [job for job in all_jobs(read(tmp_path / "tiny.yaml")) if job.row == "tiny"]
    shared, own = zip(*((chain[0].recipe, chain[1].recipe) for chain in map(job_chain, runs)), strict=True)
    assert len(runs) == 2
    assert shared[0] == shared[1]
    for recipe in shared:
        assert (list(recipe.stages), recipe.teacher.finetuned, recipe.task) == (["gd"], None, Task())
    for recipe, run in zip(own, runs, strict=True):
        assert list(recipe.stages) == ["ged", "tad"]
        assert recipe.teacher.finetuned.startswith(f"teacher/{run.task}-")


def test_no_method_has_larger_batches_than_the_budget(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    experiment = read(tmp_path / "tiny.yaml")
    row = Row.of(experiment, "tiny")
    stages = {name: replace(stage, gradient_accumulation_steps=4) for name, stage in row.recipe.stages.items()}
    spent = resolved(experiment, replace(row, recipe=replace(row.recipe, stages=stages)), "2x12", "stars", 1).stages
    assert [(s.tokens_per_batch, s.gradient_accumulation_steps) for s in spent.values()] == [(96, 1)] * 2 + [
        (64, 1)
    ] * 2


def test_a_student_of_the_experiment_lies_below_the_data_and_that_of_a_part_below_the_jobs(tmp_path: Path) -> None:
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "jobs" / "before" / "model").mkdir(parents=True)
    for path, folder in (("mine", "data"), ("before/model", "jobs")):
        recipe = placed(
            replace(recipe_of(FINETUNE), student=Student(path=path)), data=tmp_path / "data", models=tmp_path / "jobs",
            output_dir=tmp_path, cache_dir=tmp_path,
        )  # fmt: skip
        assert recipe.student.path == str(tmp_path / folder / path)


def test_a_glob_lies_below_the_data(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a")
    for path, expected in (("*.txt", f"{tmp_path}/*.txt"), ("*.csv", "*.csv"), ("none", "none")):
        recipe = placed(
            replace(recipe_of(FINETUNE), general=Corpus(path=path)), data=tmp_path, models=tmp_path / "jobs",
            output_dir=tmp_path, cache_dir=tmp_path,
        )  # fmt: skip
        assert recipe.general.path == expected


def test_what_jobs_read(tmp_path: Path) -> None:
    augmented = "task: {augment: {model: m, vectors: v.txt}}, tsd: {data: augmented}"
    mine = CONFIG.replace("{num_hidden_layers: 2, hidden_size: 12}", "{path: mine}")
    for config, row, own in (
        (CONFIG, "tiny", {"general.txt"}),
        (mine, "control", {"mine"}),
        (CONFIG.replace("overrides: {gd", f"overrides: {{{augmented}, gd"), "tiny", {"general.txt", "m", "v.txt"}),
    ):
        (tmp_path / "tiny.yaml").write_text(config)
        (run,) = (job for job in all_jobs(read(tmp_path / "tiny.yaml")) if job.name == f"{row}/2x12/stars/1")
        found = {path for path in read_by([run]) if not path.startswith(("general/", "before/"))}  # of other jobs
        assert found == {"teacher", "tasks/stars"} | own


def test_a_digest_is_of_names_and_contents_that_are_not_hidden(tmp_path: Path) -> None:
    files = {"a/train.csv": "0,1", "a/b/more.csv": "1,0"}
    others = {
        "swapped": {"a/train.csv": "1,0", "a/b/more.csv": "0,1"},
        "renamed": {"a/other.csv": "0,1", "a/b/more.csv": "1,0"},
        "fewer": {"a/train.csv": "0,1"},
        "hidden": files | {"a/.cache/huggingface/x.metadata": "y", "a/.gitattributes": "z"},
        "same": files,
    }
    digests = {}
    for case, content in ({"first": files} | others).items():
        for name, text in content.items():
            (tmp_path / case / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / case / name).write_text(text)
        digests[case] = digest_of(tmp_path / case / "a")
    assert digests["first"] == digests["hidden"] == digests["same"]
    assert len(set(digests.values())) == 4
    one, two = (digest_of(tmp_path / "swapped" / "a" / name) for name in ("train.csv", "b/more.csv"))
    assert None is not one != two
    assert digest_of(tmp_path / "none") is None
    assert None is not digest_of(tmp_path / "first" / "a" / "*.csv") != digest_of(tmp_path / "first" / "a" / "**/*.csv")


def test_a_digest_is_of_what_a_file_holds_now(tmp_path: Path) -> None:
    digests = set()
    for changed, text in enumerate(["0,1", "1,0"]):
        (tmp_path / "train.csv").write_text(text)
        os.utime(tmp_path / "train.csv", ns=(changed, changed))
        digests.add(digest_of(tmp_path))
    assert len(digests) == 2


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no data at .*: pass --data FOLDER"):
        start(tmp_path, tmp_path / "none")


def job_chain(run: Job) -> list[Job]:
    """The jobs that train the student of a run, the first one first."""
    chain = [run.needs[0]]
    while chain[0].parts:
        chain = [*chain[0].parts, *chain]
    return chain


@pytest.mark.parametrize("path", sorted((ROOT / "bench" / "quality").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_experiments_of_the_repository_are_at_equal_steps(path: Path) -> None:
    experiment = read(path)
    budget, jobs = experiment.budget, [job for job in all_jobs(experiment) if job.kind == "run"]
    for job in jobs:
        assert job.steps["general"] in (0, budget.general_steps)
        assert job.steps["task"] == budget.task_steps[job.task]
        chain = job_chain(job)
        first, rates = chain[0].recipe, [trial.learning_rate for trial in job.needs]
        assert first is not None
        assert rates == list(experiment.learning_rates)
        own = {"init": "random"} if job.row == "random" else {}
        assert first.student == replace(experiment.students[job.student], **own)
        assert {part.recipe.task.split_seed for part in chain if part.recipe and part.task} == {experiment.teacher.seed}
        stages = [stage for part in chain if part.recipe for stage in part.recipe.stages.values()]
        assert {(s.data, s.tokens_per_batch) for s in stages} <= {
            ("general", budget.general_tokens),
            ("task", budget.task_tokens),
            ("augmented", budget.task_tokens),
        }
