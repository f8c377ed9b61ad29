"""kill -9 at any moment, then --resume: the outcome is that of the uninterrupted run, to the bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def start(world: Path, out: Path, moment: str, count: int = 0) -> int:
    program = [sys.executable, "-m", "tests.killed_run", str(world), str(out), moment, str(count)]
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


@pytest.mark.parametrize(
    ("moment", "count", "what"),
    [
        ("step", 6, "inside the fine-tuning"),
        ("step", 42, "inside gd, before its first checkpoint"),
        ("step", 63, "inside tsd"),
        ("step", 71, "inside the control"),
        ("write", 3, "while the first checkpoint is written"),
        ("write", 50, "while a later checkpoint is written"),
        ("write", 90, "while a stage is written"),
        ("rename", 10, "between the fine-tuning and gd"),
        ("rename", 13, "between gd and ged"),
    ],
)
def test_resumed_run_is_bit_identical(
    world: Path, whole: Path, tmp_path: Path, moment: str, count: int, what: str
) -> None:
    out = tmp_path / "out"
    assert start(world, out, moment, count) == -signal.SIGKILL, f"the run ended before it was killed {what}"
    assert not (out / "report.json").exists()
    assert start(world, out, "none") == 0
    assert outcome(out) == outcome(whole)
    assert not list(out.rglob("*.tmp*")), "leftovers of the killed run"


def test_killed_twice(world: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert start(world, out, "step", 57) == -signal.SIGKILL
    assert start(world, out, "step", 7) == -signal.SIGKILL
    assert start(world, out, "none") == 0
    assert outcome(out) == outcome(whole)
