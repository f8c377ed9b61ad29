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
from bench.quality.jobs import Job, Row, all_jobs, placed, resolved, with_needs
from bench.quality.work import Work
from fastdistill import Teacher, run
from fastdistill.data.gold import Gold
from fastdistill.metrics import score
from tests.tiny import make_texts
from tests.tiny_quality import CONFIG, results, start


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
    assert not [path for path in (done / "work" / "runs").rglob("*") if path.is_file()]


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
    in_parts = found["tiny/2x12/reviews/1"]
    assert [s["losses"] for s in report["stages"]] == [s["losses"] for s in in_parts["stages"]]
    assert report["student"]["score"] == in_parts["score"]
    assert report["teacher"]["score"] == in_parts["teacher_score"]
    assert {name: report[name]["parameters"] for name in ("teacher", "student")} == in_parts["parameters"]


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


def test_other_data_than_what_is_done_was_made_from_are_refused_before_any_work(
    done: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "do", lambda jobs, *_: ([], True))
    for folder in ("later", "same"):
        shutil.copytree(data, tmp_path / folder)
    other = tmp_path / "later" / "tasks" / "stars" / "train.csv"
    other.write_text(other.read_text().replace("1", "2"))
    (tmp_path / "same" / "teacher" / ".cache").mkdir()
    (tmp_path / "same" / "teacher" / ".cache" / "etag").touch()
    with pytest.raises(SystemExit, match="stars is not what .*stars.* was made from: give another --work folder"):
        start(done, tmp_path / "later", "--only=*/reviews/*")
    start(done, tmp_path / "same")
    start(tmp_path, tmp_path / "later")


def test_two_processes_share_the_work(
    done: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What another one is at work on, and what needs it, is left; what it has done meanwhile is not done again."""
    shutil.copytree(done / "work", tmp_path / "work")
    jobs = tmp_path / "work" / "jobs"
    shutil.rmtree(jobs / "control")
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    found = {job.name: job for job in with_needs(all_jobs(read(tmp_path / "tiny.yaml")))}
    busy = found["control/2x12/reviews/1/5e-05"]
    with Work(tmp_path / "work").lock(busy) as free:
        assert free
        start(tmp_path, data)
    assert f"left to the process that is at work on it: {busy.name}" in capsys.readouterr().out
    assert found.keys() - results(tmp_path).keys() == {busy.name, "control/2x12/reviews/1"}
    start(tmp_path, data)
    assert found.keys() == results(tmp_path).keys()


def test_the_best_of_the_trials_that_came_to_an_end(done: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "work", tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "jobs" / "control")
    config = CONFIG.replace("learning_rates: [5e-5, 5e-3]\ncommon", "learning_rates: [5e-5, 1e30]\ncommon")
    with pytest.raises(SystemExit, match=r"1 jobs failed: control/2x12/reviews/1/1e\+30"):
        start(tmp_path, data, "--only=control/2x12/reviews/1*", config=config)
    assert results(tmp_path)["control/2x12/reviews/1"]["learning_rate"] == 5e-5


def test_there_is_no_choice_before_a_trial_that_failed_for_another_reason(
    done: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.quality import perform as module

    shutil.copytree(done / "work", tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "jobs" / "control" / "2x12" / "reviews")
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
    jobs = tmp_path / "work" / "jobs"
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
    assert len(results(tmp_path)) == 3, "an experiment was begun when there was no time left"

    (trial, *others) = [job for job in all_jobs(read(done / "tiny.yaml")) if job.name == "tiny/2x12/stars/1"][0].needs
    seconds = {name: result["seconds"] for name, result in results(done).items()}
    work = Work(done / "work")
    (work.jobs / ".torn.tmp").mkdir()
    (work.jobs / ".torn.tmp" / "result.json").touch()  # as a kill leaves it
    assert work.expected_seconds(trial) == max(seconds[job.name] for job in (trial, *others))
    unknown = replace(trial, row="new")
    assert work.expected_seconds(unknown) == max(seconds[job.name] for job in (trial, *others)), "of as many steps"
    assert trial.recipe is not None
    ((last, stage),) = trial.recipe.stages.items()
    unheard = replace(unknown, recipe=replace(trial.recipe, stages={last: replace(stage, steps=50)}))
    like = [seconds[f"{row}/2x12/stars/1/{rate}"] for row in ("tiny", "control") for rate in ("5e-05", "0.005")]
    assert work.expected_seconds(unheard) == max(like)
    assert Work(tmp_path / "none").expected_seconds(trial) == 0
    shutil.rmtree(work.jobs / ".torn.tmp")


def test_what_experiments_share_is_done_once(done: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = done / "longer.yaml"
    path.write_text(
        "base: tiny.yaml\n" + CONFIG[CONFIG.index("budget:") :].replace("general_steps: 7", "general_steps: 9")
    )
    capsys.readouterr()
    quality.main([f"--config={path}", f"--data={data}", f"--work={done / 'work'}", "--list"])
    states = {line.split()[-1]: line[:6].rstrip() for line in capsys.readouterr().out.splitlines()}
    shared = [name for name in states if name.startswith(("teacher", "control"))]
    assert len(shared) == 12
    assert {name for name, state in states.items() if state == "done"} == set(shared)


def test_a_job_that_fails_stops_no_other(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = CONFIG.replace("tasks/reviews", "tasks/missing")
    with pytest.raises(SystemExit, match="6 jobs failed: teacher/reviews/5e-05"):
        start(tmp_path, data, "--only=control/*", config=config)
    told = capsys.readouterr()
    assert "failed: teacher/reviews/5e-05" in told.err
    assert "left out: control/2x12/reviews/1/5e-05, for teacher/reviews failed" in told.out
    made = {f"{name}{rate}" for name in ("teacher/stars", "control/2x12/stars/1") for rate in ("", "/5e-05", "/0.005")}
    assert results(tmp_path).keys() == made
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(data / "tasks" / "reviews", tmp_path / "data" / "tasks" / "missing")
    start(tmp_path, tmp_path / "data", "--only=teacher/reviews*", config=config)  # mended, it goes on
    assert results(tmp_path).keys() == made | {f"teacher/reviews{rate}" for rate in ("", "/5e-05", "/0.005")}


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
    shutil.rmtree(tmp_path / "work" / "jobs" / "control")
    with pytest.raises(SystemExit, match=r"quality_tiny.json has 2 runs that .* such as control/2x12/reviews/1: coll"):
        start(tmp_path, data, "--collect=machine")
    assert path.read_text() == before
