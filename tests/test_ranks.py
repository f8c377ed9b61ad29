"""Several processes: the outcome is that of one, what stops one stops all, and one of them says why."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastdistill import Recipe, Stage, main, run
from tests.ranked_run import ranked_run
from tests.tiny import tiny_recipe

ROOT = Path(__file__).parent.parent
Ended = list[tuple[int, str]]  # by rank: exit code, what was printed
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.ranked_run"])


def start(size: int, world: Path, out: Path, event: str = "none", *options: str) -> Ended:
    """Run `ranked_run` in `size` processes, with nobody to end one when another has ended."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    several = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    said = [out.with_name(f"{out.name} said {rank}") for rank in range(size)]
    started = []
    for rank in range(size):
        environment = several | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        arguments = (world, out, event, options, said[rank], environment)
        started.append(PROCESSES.Process(target=ranked_run, args=arguments))
        started[-1].start()
    for process in started:
        process.join(120)
        process.kill()  # where it hangs
        process.join()
    return [(process.exitcode, text.read_text()) for process, text in zip(started, said, strict=True)]


def errors(ended: Ended) -> list[str]:
    return [line for _, text in ended for line in text.splitlines() if line.startswith("error:")]


def student(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "stages" / "gd" / "model.safetensors")


def steps(out: Path) -> list[tuple[int, int, float]]:
    """Number, tokens and loss of the steps logged."""
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(r["step"], r["tokens"], pytest.approx(r["loss"], rel=1e-5)) for r in records]


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outcome of one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert [code for code, _ in start(1, world, out)] == [0]
    return out


def test_two_processes_have_the_outcome_of_one(world: Path, alone: Path, tmp_path: Path) -> None:
    """Dropout, the order of the batches, tokens and losses too; and only one of them speaks."""
    ended = start(2, world, tmp_path / "out")
    assert [code for code, _ in ended] == [0, 0], ended
    assert ended[0][1].startswith("2 x CPU")
    assert ended[1][1] == ""
    torch.testing.assert_close(student(tmp_path / "out"), student(alone), rtol=0, atol=1e-5)
    assert steps(tmp_path / "out") == steps(alone)


def test_each_process_may_have_several_batches_of_a_step(world: Path, tmp_path: Path) -> None:
    options = ("none", "--gd.gradient_accumulation_steps", "4", "--gd.tokens_per_batch", "48")
    for size in (1, 2):
        ended = start(size, world, tmp_path / str(size), *options)
        assert [code for code, _ in ended] == [0] * size, ended
    torch.testing.assert_close(student(tmp_path / "2"), student(tmp_path / "1"), rtol=0, atol=1e-5)
    assert steps(tmp_path / "2") == steps(tmp_path / "1")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_killed_run_goes_on_with_another_number_of_processes(
    world: Path, alone: Path, tmp_path: Path, before: int, after: int
) -> None:
    out = tmp_path / "out"
    assert [code for code, _ in start(before, world, out, "killed")] == [-signal.SIGKILL] * before
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["gd-00000004"]
    assert [code for code, _ in start(after, world, out, "none", "--resume")] == [0] * after
    torch.testing.assert_close(student(out), student(alone), rtol=0, atol=1e-5)
    assert steps(out) == steps(alone)


def test_the_teacher_is_asked_by_one_for_all(world: Path, tmp_path: Path) -> None:
    options = ("none", "--teacher_cache", "true", "--verify_cache", "3", "--gd.steps", "12", "--cache_dir")
    for size in (1, 2):
        ended = start(size, world, tmp_path / str(size), *options, str(tmp_path / f"cache {size}"))
        assert [code for code, _ in ended] == [0] * size, ended
        assert [text.count("the teacher is asked") for _, text in ended] == [1] + [0] * (size - 1)
    torch.testing.assert_close(student(tmp_path / "2"), student(tmp_path / "1"), rtol=0, atol=1e-4)
    names = [{p.name for p in (tmp_path / f"cache {size}").rglob("*")} for size in (1, 2)]
    assert names[0] == names[1]


def test_batches_that_cannot_be_shared_are_refused(world: Path, tmp_path: Path) -> None:
    ended = start(2, world, tmp_path / "out", "none", "--gd.gradient_accumulation_steps", "3")
    assert [code for code, _ in ended] == [2, 2]
    assert errors(ended) == [
        "error: gd.gradient_accumulation_steps is 3, which 2 processes cannot share: make it a multiple of 2, and "
        "tokens_per_batch smaller by as much"
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("event", "message"),
    [("nan", "stage gd, step 5: the loss is nan"), ("disk", "gd-00000004 could not be written")],
)
def test_what_stops_the_first_process_stops_all(world: Path, tmp_path: Path, event: str, message: str) -> None:
    ended = start(2, world, tmp_path / "out", event)
    assert [code for code, _ in ended] == [2, 2], ended
    (line,) = errors(ended)
    assert message in line
    assert "Traceback" not in ended[0][1] + ended[1][1]


def test_a_process_that_is_gone_stops_the_others(world: Path, tmp_path: Path) -> None:
    (code, said), (killed, _) = start(2, world, tmp_path / "out", "gone")
    assert killed == -signal.SIGKILL
    assert code == 1
    assert "rank 0 ends, for another rank is gone" in said
    assert "Traceback" not in said


def test_an_unknown_option_is_said_once(world: Path, tmp_path: Path) -> None:
    ended = start(2, world, tmp_path / "out", "none", "--gd.stepz", "3")
    assert [code for code, _ in ended] == [2, 2]
    assert len(errors(ended)) == 1


def test_processes_that_cannot_meet_are_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stop:
        main(tiny_recipe(world, tmp_path / "out"), "", argv=[])
    assert stop.value.code == 2
    assert "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set: start the processes with torchrun" in (
        capsys.readouterr().err
    )


def options_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a configuration file has it."""
    values = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return values | values.pop("stages")


def test_the_four_stages_under_torchrun(world: Path, tmp_path: Path) -> None:
    """The folders, the log and the report of one process."""
    recipe = tiny_recipe(world, tmp_path / "one")

    def share(stage: Stage) -> Stage:
        return dataclasses.replace(stage, gradient_accumulation_steps=2, tokens_per_batch=48)

    stages = {name: share(stage) for name, stage in recipe.stages.items()}
    recipe = dataclasses.replace(recipe, finetune=share(recipe.finetune), stages=stages, control=share(recipe.control))
    reports = [run(recipe)]
    config = tmp_path / "two.yaml"
    config.write_text(json.dumps(options_of(recipe) | {"output_dir": str(tmp_path / "two")}))
    program = "-m torch.distributed.run --nproc_per_node 2 -m recipes.ernie_tiny --config".split()
    done = subprocess.run(
        [sys.executable, *program, str(config)], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reports.append(json.loads((tmp_path / "two" / "report.json").read_text()))
    files, logged = [], []
    for out in (tmp_path / "one", tmp_path / "two"):
        files.append({p.relative_to(out) for p in out.rglob("*")})
        records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        logged.append([(r["event"], r["stage"], r["step"], r.get("tokens")) for r in records])
    one, two = reports
    assert files[0] == files[1]
    assert one.keys() == two.keys()
    assert logged[0] == logged[1]
    for mine, theirs in zip(one["stages"], two["stages"], strict=True):
        assert mine["tokens"] == theirs["tokens"]
        for term, values in mine["losses"].items():
            assert theirs["losses"][term] == pytest.approx(values, rel=0.01)
    assert two["teacher"]["score"] == pytest.approx(one["teacher"]["score"], abs=0.05)
