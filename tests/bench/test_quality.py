"""The quality benchmark in miniature: two methods and two tasks, from nothing to the page."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.quality import __main__ as quality
from bench.quality import page
from bench.quality.config import read
from bench.quality.jobs import Job, Row, all_jobs, placed, resolved
from bench.quality.work import Work
from bench.table import ROOT
from fastdistill import Teacher, run
from fastdistill.data.gold import Gold
from fastdistill.metrics import score
from tests.tiny import make_teacher, make_texts

CONFIG = """
teacher: {path: teacher, learning_rates: [5e-5, 5e-3], epochs: 3, tokens_per_batch: 96}
general: {path: general.txt, max_length: 16}
tasks:
  reviews: {path: tasks/reviews, max_length: 16, validation_size: 20}
  stars: {path: tasks/stars, kind: regression, max_length: 16, validation_size: 20}
students:
  2x12: {num_hidden_layers: 2, hidden_size: 12}
budget: {general_steps: 7, general_tokens: 96, task_steps: {reviews: 6, stars: 5}, task_tokens: 64}
learning_rates: [5e-5, 5e-3]
common: {device: cpu, precision: fp32, logging_steps: 3, save_steps: 2}
methods:
  control: {title: gold labels, recipe: recipes.finetune}
  tiny: {recipe: recipes.ernie_tiny, shares: {ged: 2}, overrides: {gd: {optim: {learning_rate: 5e-3}}}}
tables:
  methods: {rows: [control, tiny]}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: teacher, general text, and two tasks with validation splits of their own."""
    folder = tmp_path_factory.mktemp("data")
    make_teacher(folder / "teacher")
    (folder / "general.txt").write_text("".join(text + "\n" for text, _ in make_texts(120, 1)))
    for task, value in (("reviews", str), ("stars", {"positive": "3.5", "negative": "1.25"}.get)):
        (folder / "tasks" / task).mkdir(parents=True)
        for split, rows, seed in (("train", 80, 2), ("validation", 40, 3)):
            lines = [f"{text},{value(label)}\n" for text, label in make_texts(rows, seed)]
            (folder / "tasks" / task / f"{split}.csv").write_text("text,label\n" + "".join(lines))
    return folder


def start(folder: Path, data: Path, *options: str, config: str = CONFIG) -> Work:
    """Run the benchmark in `folder`."""
    path = folder / "tiny.yaml"
    path.write_text(config)
    quality.main([f"--config={path}", f"--data={data}", f"--work={folder / 'work'}", *options])
    return Work(folder / "work" / "tiny")


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished benchmark; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("done")
    start(folder, data)
    return folder


def results(folder: Path) -> dict[str, dict[str, Any]]:
    paths = (folder / "work" / "tiny" / "jobs").rglob("result.json")
    found = [json.loads(path.read_text()) | {"folder": path.parent} for path in paths]
    return {result["name"]: result for result in found}


def outcome(result: dict[str, Any]) -> dict[str, Any]:
    """What two runs of the same job must have in common, to the bit."""
    timeless = [{k: v for k, v in stage.items() if "second" not in k} for stage in result["stages"]]
    answers = dict(np.load(result["folder"] / "predictions.npz"))
    return {"scores": result["scores"], "stages": timeless, **{k: v.tolist() for k, v in answers.items()}}


def test_every_job_is_done_once_and_leaves_no_more_than_it_must(done: Path) -> None:
    found = results(done)
    tried = [f"{row}2x12/{task}/1" for task in ("reviews", "stars") for row in ("control/", "tiny/")]
    tried += ["teacher/reviews", "teacher/stars"]
    parts = ["general/2x12/1", "before/2x12/reviews/1", "before/2x12/stars/1"]
    assert sorted(found) == sorted(parts + [f"{name}{rate}" for name in tried for rate in ("", "/0.005", "/5e-05")])
    with_model = {name for name, result in found.items() if (result["folder"] / "model").exists()}
    assert with_model == {*parts, "teacher/reviews", "teacher/stars"}
    assert not [path for path in (done / "work" / "tiny" / "runs").rglob("*") if path.is_file()]


def test_the_best_teacher_on_validation_rows_teaches(done: Path) -> None:
    found = results(done)
    for task in ("reviews", "stars"):
        trials = {rate: found[f"teacher/{task}/{rate}"] for rate in ("0.005", "5e-05")}
        best = max(trials, key=lambda rate: trials[rate]["validation"])
        teacher = found[f"teacher/{task}"]
        assert (teacher["learning_rate"], teacher["score"]) == (float(best), trials[best]["score"])
        for row in ("control", "tiny"):
            assert found[f"{row}/2x12/{task}/1"]["teacher_score"] == teacher["score"]
    assert found["teacher/reviews"]["learning_rate"] == 5e-3, "a teacher that learnt nothing was chosen"


def test_every_method_has_the_best_of_the_same_rates(done: Path) -> None:
    found = results(done)
    for name in ("control/2x12/reviews/1", "tiny/2x12/reviews/1", "control/2x12/stars/1", "tiny/2x12/stars/1"):
        trials = [found[f"{name}/{rate}"] for rate in ("5e-05", "0.005")]
        best = max(trials, key=lambda trial: trial["validation"])
        assert (found[name]["score"], found[name]["validation"]) == (best["score"], best["validation"])
        told = [(t["learning_rate"], t["validation"], t["score"]) for t in found[name]["trials"]]
        assert told == [(r, t["validation"], t["score"]) for r, t in zip((5e-5, 5e-3), trials, strict=True)]


def test_methods_spend_the_same_steps_on_the_same_text(done: Path) -> None:
    found = results(done)
    for task, steps in (("reviews", 6), ("stars", 5)):
        tiny, control = found[f"tiny/2x12/{task}/1"], found[f"control/2x12/{task}/1"]
        for job, names in (("general/2x12/1", "gd"), (f"before/2x12/{task}/1", "gd ged tad")):
            assert [stage["name"] for stage in found[job]["stages"]] == names.split()
        assert [s["steps"] for s in tiny["stages"]] == [2, 5, 3 if steps == 6 else 2, 3]
        assert (tiny["steps"], control["steps"]) == ({"general": 7, "task": steps}, {"general": 0, "task": steps})


def test_scores_are_of_the_kept_predictions_on_the_official_split(done: Path) -> None:
    for task, metric, kind in (("reviews", "accuracy", "classification"), ("stars", "pearson", "regression")):
        result = results(done)[f"tiny/2x12/{task}/1"]
        answers = np.load(result["folder"] / "predictions.npz")
        gold = Gold(kind, answers["labels"], ("bad", "good") if kind == "classification" else None)  # type: ignore[arg-type]
        assert result["score"] == pytest.approx(score(metric, answers["predictions"], gold))  # type: ignore[arg-type]
        assert result["metric"] == metric
        texts = {split: [text for text, _ in make_texts(*of)] for split, of in (("train", (80, 2)), ("test", (40, 3)))}
        found = result["test"].pop("in train")
        assert result["test"] == {"rows": 40, "origin": "validation"}
        assert 0 < found <= sum(text in texts["train"] for text in texts["test"])  # 20 of train are set aside
        assert result["scores"].keys() == (
            {"accuracy", "f1", "macro_f1", "matthews"} if task == "reviews" else {"pearson", "spearman"}
        )


def test_a_method_from_shared_general_stages_is_the_method_run_whole(done: Path, data: Path, tmp_path: Path) -> None:
    """To the bit; so the student goes on with the projections of the stage that left it."""
    experiment, found = read(done / "tiny.yaml"), results(done)
    recipe = placed(
        resolved(experiment, Row.of(experiment, "tiny"), "2x12", "reviews", 1),
        data=data, models=tmp_path, output_dir=tmp_path / "out", cache_dir=tmp_path / "cache",
    )  # fmt: skip
    teacher = Teacher(path=recipe.teacher.path, finetuned=str(found["teacher/reviews"]["folder"] / "model"))
    rate = found["tiny/2x12/reviews/1"]["learning_rate"]
    tsd = replace(recipe.stages["tsd"], optim=replace(recipe.stages["tsd"].optim, learning_rate=rate))
    report = run(replace(recipe, teacher=teacher, stages={**recipe.stages, "tsd": tsd}))
    in_parts = found["tiny/2x12/reviews/1"]["stages"]
    assert [s["losses"] for s in report["stages"]] == [s["losses"] for s in in_parts]
    assert report["student"]["score"] == found["tiny/2x12/reviews/1"]["score"]


def test_what_is_done_is_not_done_again(done: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("bench.quality.perform.perform", refuse)
    start(done, data)
    start(done, data, config=CONFIG.replace("save_steps: 2", "save_steps: 3"))  # which decides no outcome
    other = CONFIG.replace("task_tokens: 64", "task_tokens: 65")
    with pytest.raises(SystemExit, match="jobs failed: control/2x12/reviews/1/5e-05"):
        start(done, data, config=other)
    (done / "tiny.yaml").write_text(CONFIG)


def test_general_text_decides_nothing_for_who_reads_none(done: Path, tmp_path: Path) -> None:
    folders = []
    for length in (16, 12):
        (tmp_path / "tiny.yaml").write_text(
            CONFIG.replace("general.txt, max_length: 16", f"g.txt, max_length: {length}")
        )
        folders.append({job.name: job.folder for job in quality.with_needs(all_jobs(read(tmp_path / "tiny.yaml")))})
    changed = {name for name, folder in folders[0].items() if folders[1][name] != folder}
    assert {name.split("/")[0] for name in changed} == {"tiny", "before", "general"}


def test_two_processes_share_the_work(
    done: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What another one is at work on, and what needs it, is left; what it has done meanwhile is not done again."""
    shutil.copytree(done / "work", tmp_path / "work")
    jobs = tmp_path / "work" / "tiny" / "jobs"
    shutil.rmtree(jobs / "control")
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    found = {job.name: job for job in quality.with_needs(all_jobs(read(tmp_path / "tiny.yaml")))}
    busy = found["control/2x12/reviews/1/5e-05"]
    with Work(tmp_path / "work" / "tiny").lock(busy) as free:
        assert free
        start(tmp_path, data)
    assert f"left to the process that is at work on it: {busy.name}" in capsys.readouterr().out
    assert found.keys() - results(tmp_path).keys() == {busy.name, "control/2x12/reviews/1"}
    start(tmp_path, data)
    assert found.keys() == results(tmp_path).keys()


def test_the_best_of_the_trials_that_came_to_an_end(done: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "work", tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "tiny" / "jobs" / "control")
    config = CONFIG.replace("learning_rates: [5e-5, 5e-3]\ncommon", "learning_rates: [5e-5, 1e30]\ncommon")
    with pytest.raises(SystemExit, match=r"1 jobs failed: control/2x12/reviews/1/1e\+30"):
        start(tmp_path, data, "--only=control/2x12/reviews/1*", config=config)
    assert results(tmp_path)["control/2x12/reviews/1"]["learning_rate"] == 5e-5


def test_there_is_no_choice_before_a_trial_that_failed_for_another_reason(
    done: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.quality import perform as module

    shutil.copytree(done / "work", tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "tiny" / "jobs" / "control" / "2x12" / "reviews")
    perform, full = module.perform, True

    def flaky(job: Job, *rest: Any) -> Any:
        if full and job.name.endswith("/0.005"):
            raise OSError("No space left on device")
        return perform(job, *rest)

    monkeypatch.setattr(module, "perform", flaky)
    with pytest.raises(SystemExit, match="2 jobs failed"):
        start(tmp_path, data)
    assert "control/2x12/reviews/1" not in results(tmp_path)
    full = False
    start(tmp_path, data)
    assert len(results(tmp_path)["control/2x12/reviews/1"]["trials"]) == 2


def test_killed_in_the_middle_and_started_again_gives_the_same(
    done: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only = "--only=tiny/2x12/reviews/1"
    shutil.copytree(done / "work", tmp_path / "work")
    jobs = tmp_path / "work" / "tiny" / "jobs"
    for job in ("general", "before", "tiny"):
        shutil.rmtree(jobs / job)
    step, calls, kills = torch.optim.AdamW.step, 0, [2, 6, 13]  # in GD, in GED, in TAD

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in kills:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, data, only)
        start(tmp_path, data, "--list")
        assert capsys.readouterr().out.count("begun") == 1
    start(tmp_path, data, only)
    assert calls == 13 + 3 + 2 * 3, "stages that were done have been done again"
    again, before = results(tmp_path), results(done)
    assert "tiny/2x12/stars/1" not in again, "more was done than was asked for"
    assert outcome(again["tiny/2x12/reviews/1"]) == outcome(before["tiny/2x12/reviews/1"])


def test_models_that_are_lost_are_made_again_where_something_starts_from_them(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    jobs, work = all_jobs(read(tmp_path / "tiny.yaml")), Work(tmp_path / "work")
    assert [job.name for job in work.todo(jobs)][:3] == [
        "teacher/reviews/5e-05",
        "teacher/reviews/0.005",
        "teacher/reviews",
    ]
    assert len(work.todo(jobs)) == len(quality.with_needs(jobs)) == 21
    for job in quality.with_needs(jobs):
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


def test_time_is_kept(done: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for jobs in (1, 2):  # the first job of a call is always begun
        start(tmp_path, data, "--most_seconds=0")
        assert len(results(tmp_path)) == jobs
    assert "stopped before" in capsys.readouterr().out
    shutil.copy(tmp_path / "tiny.yaml", tmp_path / "other.yaml")
    quality.main([
        "--config", f"{tmp_path / 'tiny.yaml'}", f"{tmp_path / 'other.yaml'}", f"--data={data}",
        f"--work={tmp_path / 'work'}", "--most_seconds=0",
    ])  # fmt: skip
    assert len(results(tmp_path)) == 3
    assert not (tmp_path / "work" / "other").exists(), "an experiment was begun when there was no time left"

    (trial, *others) = [job for job in all_jobs(read(done / "tiny.yaml")) if job.name == "tiny/2x12/stars/1"][0].needs
    seconds = {name: result["seconds"] for name, result in results(done).items()}
    work = Work(done / "work" / "tiny")
    (work.jobs / ".torn.tmp").mkdir()
    (work.jobs / ".torn.tmp" / "result.json").touch()  # as a kill leaves it
    assert work.expected_seconds(trial) == max(seconds[job.name] for job in (trial, *others))
    unknown = replace(trial, row="new")
    like = [seconds[f"{row}/2x12/stars/1/{rate}"] for row in ("tiny", "control") for rate in ("5e-05", "0.005")]
    assert work.expected_seconds(unknown) == max(like)
    assert Work(tmp_path / "none").expected_seconds(trial) == 0
    shutil.rmtree(work.jobs / ".torn.tmp")


def test_a_job_that_fails_stops_no_other(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = CONFIG.replace("tasks/reviews", "tasks/missing")
    with pytest.raises(SystemExit, match="6 jobs failed: teacher/reviews/5e-05"):
        start(tmp_path, data, "--only=control/*", config=config)
    told = capsys.readouterr()
    assert "failed: teacher/reviews/5e-05" in told.err
    assert "left out: control/2x12/reviews/1/5e-05, for teacher/reviews failed" in told.out
    made = {f"{name}{rate}" for name in ("teacher/stars", "control/2x12/stars/1") for rate in ("", "/5e-05", "/0.005")}
    assert results(tmp_path).keys() == made


def test_results_are_collected_and_printed(
    done: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "RESULTS", tmp_path)
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    start(done, data, "--collect=machine")
    found = json.loads((tmp_path / "machine" / "quality_tiny.json").read_text())
    runs = results(done)
    rows = found["tables"]["methods"]["students"]["2x12"]
    of_tiny = [runs[f"tiny/2x12/{task}/1"]["score"] for task in ("reviews", "stars")]
    taught = [runs[f"teacher/{task}"]["score"] for task in ("reviews", "stars")]
    assert rows["tiny"]["tasks"]["reviews"]["score"] == of_tiny[0]
    assert rows["tiny"]["average"]["score"] == pytest.approx(np.mean(of_tiny))
    assert rows["tiny"]["average"]["retention"] == pytest.approx(sum(of_tiny) / sum(taught))
    compared = rows["tiny"]["tasks"]["reviews"]["against"]
    apart = of_tiny[0] - runs["control/2x12/reviews/1"]["score"]
    assert compared["difference"] == pytest.approx(apart)
    assert compared["low"] <= apart <= compared["high"]
    assert rows["control"]["average"]["against"] is None
    text = page.render()
    assert "## tiny" in text
    assert "| against gold labels | reviews | stars | average |" in text
    assert str(data) not in json.dumps(found), "a path of this machine is in the results"


def test_results_are_not_overwritten_by_fewer(
    done: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "RESULTS", tmp_path)
    start(done, data, "--collect=machine")
    path = tmp_path / "machine" / "quality_tiny.json"
    before = path.read_text()
    shutil.copytree(done / "work", tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "tiny" / "jobs" / "control")
    with pytest.raises(SystemExit, match=r"quality_tiny.json has 2 runs that .* such as control/2x12/reviews/1: coll"):
        start(tmp_path, data, "--collect=machine")
    assert path.read_text() == before


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
        ("max_length: 16, validation_size", "max_len: 16, validation_size", "max_len"),
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
        ("general_steps: 7", "general_steps: 1", "method tiny: 1 steps leave none for stage gd"),
        ("recipe: recipes.ernie_tiny", "recipe: recipes.ernie", "recipe recipes.ernie cannot be had"),
        ("recipe: recipes.ernie_tiny", "base: tiny", "variant of itself"),
        ("recipe: recipes.ernie_tiny", "base: big", "base has 'big': choose from control, tiny"),
        ("recipe: recipes.ernie_tiny, ", "", "must have a recipe or a base"),
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
