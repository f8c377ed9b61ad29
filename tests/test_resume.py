"""kill -9 at any moment, then --resume: the outcome is that of the uninterrupted run, to the bit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def start(world: Path, out: Path, moment: str, count: int = 0, how: str = "resume") -> int:
    program = [sys.executable, "-m", "tests.killed_run", str(world), str(out), moment, str(count), how]
    paths = f"{ROOT}:{ROOT / 'kernels'}"
    done = subprocess.run(
        program, cwd=ROOT, env={"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "PATH": ""}, capture_output=True
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outcome of the run that nobody killed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert start(world, out, "none") == 0
    return out


def outcome(out: Path) -> dict[str, object]:
    """All weights, and all that was logged and reported but for times."""
    files: dict[str, object] = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.safetensors")}
    timed = ("seconds", "tokens_per_second")
    files["log"] = [
        {k: v for k, v in json.loads(line).items() if k not in timed}
        for line in (out / "log.jsonl").read_text().splitlines()
    ]
    files["stages"] = [
        {k: v for k, v in s.items() if k not in timed} for s in json.loads((out / "report.json").read_text())["stages"]
    ]
    return files


def lies(out: Path, pattern: str) -> bool:
    return any(out.glob(pattern))


@pytest.mark.parametrize(
    ("moment", "count", "there", "not_there"),
    [
        pytest.param("step", 6, "checkpoints/finetune-00000004", "teacher", id="inside the fine-tuning"),
        pytest.param("step", 42, "stages/init", "checkpoints/gd-*", id="inside gd, before its first checkpoint"),
        pytest.param("step", 63, "checkpoints/tsd-00000004", "stages/tsd", id="inside tsd"),
        pytest.param("step", 71, "checkpoints/control-00000004", "control", id="inside the control"),
        pytest.param("write", 3, "checkpoints/.finetune-*", "checkpoints/finetune-*", id="in the first checkpoint"),
        pytest.param("write", 50, "checkpoints/.finetune-*", "teacher", id="in a later checkpoint"),
        pytest.param("stage", 2, "stages/.tsd*", "stages/tsd", id="while a stage is written"),
        pytest.param("rename", 10, "teacher", "stages", id="between the fine-tuning and gd"),
        pytest.param("rename", 13, "stages/gd", "stages/ged", id="between gd and ged"),
        pytest.param("report", 1, "student", "losses.png", id="inside the report"),
    ],
)
def test_resumed_run_is_bit_identical(
    world: Path, whole: Path, tmp_path: Path, moment: str, count: int, there: str, not_there: str
) -> None:
    out = tmp_path / "out"
    assert start(world, out, moment, count) == -signal.SIGKILL
    assert lies(out, there), sorted(out.rglob("*"))
    assert not lies(out, not_there), sorted(out.rglob("*"))
    assert not (out / "report.json").exists()
    assert start(world, out, "none") == 0
    assert outcome(out) == outcome(whole)
    assert not list(out.rglob("*.tmp*")), "leftovers of the killed run"


@pytest.mark.parametrize(
    ("how", "moment", "count", "left"),
    [
        ("overwrite", "rename", 2, "stages/tsd"),
        ("overwrite", "rename", 3, "teacher"),
        ("overwrite", "step", 43, "teacher"),
        ("tad", "rename", 3, "stages/ged"),
        ("tad", "step", 9, "stages/tad"),
    ],
)
def test_killed_while_a_finished_run_is_run_again(
    world: Path, whole: Path, tmp_path: Path, how: str, moment: str, count: int, left: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    assert start(world, out, moment, count, how) == -signal.SIGKILL
    assert lies(out, left), sorted(out.rglob("*"))
    assert start(world, out, "none") == 0
    assert outcome(out) == outcome(whole)
    assert not list(out.rglob("*.tmp*"))


def test_killed_twice(world: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert start(world, out, "step", 57) == -signal.SIGKILL
    assert start(world, out, "step", 7) == -signal.SIGKILL
    assert start(world, out, "none") == 0
    assert outcome(out) == outcome(whole)
