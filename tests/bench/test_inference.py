"""The inference benchmark: what it counts, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import inference


class Counted(nn.Module):
    """Stands for a model; remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        assert attention_mask.all()
        self.seen.append(input_ids)


def test_models_take_turns_on_the_same_inputs() -> None:
    models = {"teacher": Counted(), "student": Counted()}
    times = inference.times_ms(dict(models), 3, 7, rounds=6, limit_s=60)
    assert [len(values) for values in times.values()] == [6, 6]
    for one, other in zip(models["teacher"].seen, models["student"].seen, strict=True):
        assert one.shape == (3, 7)
        assert torch.equal(one, other)
    assert not torch.equal(*models["teacher"].seen[:2])


def test_a_shape_ends_at_its_limit_but_not_before_the_fewest_rounds() -> None:
    models = {"teacher": Counted(), "student": Counted()}
    times = inference.times_ms(dict(models), 1, 1, rounds=1000, limit_s=0)
    assert len(times["teacher"]) == inference.FEWEST


def test_summary_by_hand() -> None:
    found = inference.summary({"teacher": [10.0] * 19 + [30.0], "student": [2.0] * 20}, 8, 128)
    assert found["teacher"]["p50_ms"] == 10
    assert found["teacher"]["p95_ms"] == pytest.approx(11)
    assert found["student"]["sequences_per_s"] == 4000
    assert found["faster"] == 5
    assert "8 x 128" in inference.line(found)
    assert "5.0x  (20 rounds)" in inference.line(found)


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(inference.SHAPES, "bert-base", (2, 24, 48))
    monkeypatch.setitem(inference.SHAPES, "tinybert4", (1, 12, 24))
    out = tmp_path / "inference.json"
    inference.main(["--cpu", "--batch_size=1,2", "--length=4", "--rounds=5", f"--out={out}"])
    written = json.loads(out.read_text())
    assert [(r["batch_size"], r["length"], r["rounds"]) for r in written["results"]] == [(1, 4, 5), (2, 4, 5)]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--batch_size=1,x", "'1,x' is no list such as 1,8,64"),
        ("--length=0", "'0' is no list"),
        ("--length=1024", "--length 1024: these models take 512 tokens at most"),
        ("--rounds=2", "--rounds 2: 5 at least"),
        ("--student=tiny", "choose from"),
    ],
)
def test_bad_options(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        inference.main(["--cpu", option])
    assert message in f"{error.value}{capsys.readouterr().err}"
