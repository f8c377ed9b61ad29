"""What all programs that measure refuse before any work: a file that cannot be written, a GPU that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bench import augment, inference, loader, memory, ops, record, step

ON_A_DEVICE = [inference, memory, ops, step]


@pytest.mark.parametrize("program", [*ON_A_DEVICE, augment, loader], ids=lambda program: program.__name__)
def test_a_file_that_cannot_be_written_is_named(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--out=/proc/none/out.json"])
    assert "--out: /proc/none/out.json cannot be written (No such file or directory)" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("program", ON_A_DEVICE, ids=lambda program: program.__name__)
def test_a_gpu_that_is_not_there_is_named(program: ModuleType) -> None:
    with pytest.raises(SystemExit, match="--gpu, but torch sees no GPU: leave it out, or pass --cpu"):
        program.main(["--gpu"])


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    new, old = tmp_path / "new" / "out.json", tmp_path / "old.json"
    old.write_text("{}")
    assert (record.writable(str(new)), record.writable(str(old))) == (new, old)
    assert new.parent.is_dir()
    assert not new.exists()
    assert old.read_text() == "{}"


def test_a_report_is_kept_without_its_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    report = tmp_path / "report.json"
    for text in ("[1]", '"x"', "{", '{"stages": []}'):
        report.write_text(text)
        with pytest.raises(SystemExit):
            record.main([str(report), "machine", "name"])
        assert "report.json is no report of a run" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
    report.write_text('{"student": {"path": "/home/me/student", "score": 0.5}}')
    record.main([str(report), "machine", "name"])
    kept = tmp_path / "results" / "machine" / "name.json"
    assert json.loads(kept.read_text()) == {"student": {"path": "student", "score": 0.5}}
    monkeypatch.setattr(record, "RESULTS", Path("/proc/none"))
    with pytest.raises(SystemExit):
        record.main([str(report), "machine", "name"])
    assert "cannot be written" in capsys.readouterr().err
