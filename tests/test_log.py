"""log.jsonl and what is shown: plain lines without a terminal, a live display on one."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from fastdistill.log import Log

ROOT = Path(__file__).parent.parent


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def report(log: Log, step: int) -> None:
    log.step(step=step, tokens_per_second=1234.5, losses={"hidden": 0.5, "soft": 0.25}, loss=0.75, seconds=2.0)


def test_every_interval_is_recorded_and_shown_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(tmp_path / "log.jsonl") as log:
        log.stage("tad", 40, 0)
        report(log, 10)
    (record,) = read(tmp_path / "log.jsonl")
    assert (record["event"], record["stage"], record["step"]) == ("step", "tad", 10)
    assert record["losses"] == {"hidden": 0.5, "soft": 0.25}
    (line,) = capsys.readouterr().out.splitlines()
    for part in ("tad", "step 10/40", "1,234 tokens/s", "hidden 0.5", "soft 0.25", "6 s left"):
        assert part in line


def test_cut_and_forget_remove_what_a_killed_run_logged(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Log(path) as log:
        log.stage("gd", 9, 0)
        report(log, 1)
        offset = log.offset
        report(log, 2)
        log.cut(offset)
        report(log, 3)
        log.record(event="validation", stage="tad", score=1.0)
        assert [(r["stage"], r.get("step")) for r in read(path)] == [("gd", 1), ("gd", 3), ("tad", None)]
        log.forget("gd")
        report(log, 4)
    assert [(r["stage"], r.get("step")) for r in read(path)] == [("tad", None), ("gd", 4)]


def test_a_log_shorter_than_the_checkpoint_says_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Log(path) as log:
        report(log, 1)
        offset = log.offset
    path.write_text("")
    with Log(path) as log:
        log.cut(offset)
        report(log, 2)
    assert [r["step"] for r in read(path)] == [2]


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "step", "stage": "gd", "step": 1}\n{"event": "st')
    with Log(path) as log:
        log.record(event="validation", stage="gd", score=1.0)
    assert [r["event"] for r in read(path)] == ["step", "validation"]


def test_live_display_on_a_terminal(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; import sys; from fastdistill.log import Log\n"
        "with Log(Path(sys.argv[1])) as log:\n"
        "    log.stage('tad', 40, 7)\n"
        "    log.live.refresh()\n"
        "    log.step(step=10, tokens_per_second=1234.5, losses={'hidden': 0.5}, seconds=2.0)\n"
        "    log.say('done')\n"
    )
    main, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log.jsonl")],
        cwd=ROOT,
        stdout=terminal,
        env=environment,
        check=True,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:  # the terminal's other end is closed and all is read
            break
        if not part:
            break
        shown += part
    os.close(main)
    for part in (b"tad", b"7/40", b"10/40", b"1,234 tokens/s", b"hidden 0.5", b"done"):
        assert part in shown
