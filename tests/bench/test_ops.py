"""The benchmark measures what it says, on every op, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import ops
from bench.opponents import EAGER
from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import SPECS

SMALL = Shape((4, 4, 4), heads=2, head_dim_s=8, head_dim_t=16, layers=1, classes=5)
each_spec = pytest.mark.parametrize("spec", [s for s in SPECS if s.name in EAGER], ids=lambda spec: spec.name)


@each_spec
def test_opponents_compute_what_the_ops_do(spec: Spec) -> None:
    inputs = spec.inputs(SMALL)
    output = spec.op(**inputs)
    ours = sum(output) if isinstance(output, tuple) else output
    torch.testing.assert_close(EAGER[spec.name](**inputs), ours, rtol=1e-4, atol=1e-6)


def test_a_run_writes_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ops, "shapes", lambda *_: [SMALL])
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(ops, "machine_limits", lambda _: {"copy_bytes_per_s": 1e9, "flops_per_s": 1e12})
    ops.main(["--cpu", "--rounds", "2", "--out", str(tmp_path / "new" / "ops.json")])
    results = json.loads((tmp_path / "new" / "ops.json").read_text())["results"]
    assert {r["op"] for r in results} == set(EAGER)
    for r in results:
        assert not r["failed"]
        assert {"eager", "compile"} < r["ms"].keys()
        assert all(ms["forward"] > 0 and ms["both"] > 0 for ms in r["ms"].values())
        assert min(r["floor_ms"].values()) > 0
    assert len([text for text in capsys.readouterr().out.splitlines() if "x  eager" in text]) == len(EAGER)


def test_what_fails_is_named_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> torch.Tensor:
        raise RuntimeError("no kernel\nimage")

    spec = next(s for s in SPECS if s.name == "hidden_mse")
    monkeypatch.setattr(ops, "implementations", lambda *_: {"eager": broken, "ours": spec.op})
    limits = {"copy_bytes_per_s": 1e9, "flops_per_s": 1e12}
    result = ops.measure(spec, SMALL, "cpu", torch.float32, 1, limits)
    assert result["failed"] == {"eager": "no kernel"}
    assert set(result["ms"]) == {"ours"}
    assert "-" in ops.line(result)
