"""The benchmark measures what it says, on every op, without a GPU."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import figures, ops
from bench.opponents import EAGER
from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import SPECS

SMALL = Shape((4, 4, 4), heads=2, head_dim_s=8, head_dim_t=16, layers=1, classes=5)
LARGER = Shape((8, 8), heads=2, head_dim_s=8, head_dim_t=16, layers=1, classes=7)
LIMITS = {"copy_bytes_per_s": 1e9, "flops_per_s": 1e12}
BY_NAME = {spec.name: spec for spec in SPECS}
HIDDEN = BY_NAME["hidden_mse"]
each_spec = pytest.mark.parametrize("spec", BY_NAME.values(), ids=lambda spec: spec.name)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs over two small shapes, in which nothing is compiled."""
    monkeypatch.setattr(ops, "shapes", lambda *_: [SMALL, LARGER])
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(ops, "machine_limits", lambda *_: LIMITS)


def measure(spec: Spec, monkeypatch: pytest.MonkeyPatch, **functions: Any) -> figures.Result:
    """`spec` measured with these implementations."""
    monkeypatch.setattr(ops, "implementations", lambda *_: functions)
    return ops.measure(spec, SMALL, "cpu", torch.float32, 2)


def run(path: Path, *options: str) -> list[figures.Result]:
    """The results in `path` after a run."""
    ops.main(["--cpu", "--rounds", "2", "--out", str(path), *options])
    found: list[figures.Result] = json.loads(path.read_text())["results"]
    return found


@each_spec
def test_opponents_compute_what_the_ops_do(spec: Spec) -> None:
    inputs = spec.inputs(SMALL)
    output = spec.op(**inputs)
    ours = sum(output) if isinstance(output, tuple) else output
    torch.testing.assert_close(EAGER[spec.name](**inputs), ours, rtol=1e-4, atol=1e-6)


def test_a_run_writes_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(tmp_path / "new" / "ops.json")
    assert {r["op"] for r in results} == set(EAGER)
    assert len(results) == 2 * len(EAGER)
    for r in results:
        spec, shape = BY_NAME[r["op"]], SMALL if r["shape"]["sequences"] == 3 else LARGER
        assert not r["failed"]
        assert {"eager", "compile"} < r["ms"].keys() == r["peak_mib"].keys() == r["error"].keys()
        assert all(ms.keys() == {"forward", "backward", "both"} for ms in r["ms"].values())
        assert all(min(ms.values()) > 0 for ms in r["ms"].values())
        assert min(r["peak_mib"].values()) > 0
        for error in r["error"].values():
            assert error.keys() == {"loss", *spec.differentiable}
            assert max(error.values()) < 1e-4
        assert (r["bytes_moved"], r["flops"]) == (spec.bytes_moved(shape, torch.float32), spec.flops(shape))
        assert figures.floors(r, LIMITS) == pytest.approx({"bytes": r["bytes_moved"] / 1e6, "flops": r["flops"] / 1e9})
    assert len([text for text in capsys.readouterr().out.splitlines() if "x  eager" in text]) == len(results)


def broken(**_: object) -> Tensor:
    raise RuntimeError("no kernel\nimage")


def test_what_fails_is_named_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    result = measure(HIDDEN, monkeypatch, eager=broken, ours=HIDDEN.op)
    assert result["failed"] == {"eager, both": "RuntimeError: no kernel"}
    assert set(result["ms"]) == set(result["error"]) == set(result["peak_mib"]) == {"ours"}
    assert "      -  ours" in figures.line(result, LIMITS)
    assert "\n  eager, both: RuntimeError: no kernel" in figures.line(result, LIMITS)


def test_one_pass_may_fail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_training_only(**inputs: Any) -> Tensor:
        return HIDDEN.op(**inputs) if torch.is_grad_enabled() else broken()

    result = measure(HIDDEN, monkeypatch, ours=in_training_only)
    assert set(result["failed"]) == {"ours, forward"}
    assert set(result["ms"]["ours"]) == {"backward", "both"}


def test_what_fails_later_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def tires(**inputs: Any) -> Tensor:  # after 9 calls to warm up, one for its errors, one for its memory
        return HIDDEN.op(**inputs) if next(calls) < 12 else broken()

    result = measure(HIDDEN, monkeypatch, eager=tires, ours=HIDDEN.op)
    assert set(result["failed"]) == {"eager, both", "eager, forward", "eager, backward"}
    assert set(result["ms"]) == {"ours"}


def test_without_a_truth_there_are_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "truth", broken)
    result = measure(HIDDEN, monkeypatch, ours=HIDDEN.op)
    assert set(result["failed"]) == {"float64"}
    assert set(result["ms"]) == {"ours"}
    assert result["error"] == {}
    assert "ours" in figures.line(result, LIMITS)


def test_a_wrong_implementation_shows_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    result = measure(HIDDEN, monkeypatch, ours=HIDDEN.op, eager=lambda **inputs: 1.02 * HIDDEN.op(**inputs))
    assert list(result["error"]["eager"].values()) == pytest.approx([0.02] * 4, rel=1e-3)
    assert "(2e-02)" in figures.line(result, LIMITS)


def test_memory_of_what_failed_is_free_again() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def fails() -> None:
        x = torch.zeros(1)
        alive.append(weakref.ref(x))
        raise torch.OutOfMemoryError("no memory")

    failed: dict[str, str] = {}
    seen: list[Tensor | None] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "release", lambda: seen.append(alive[0]()))
        assert ops.attempt(failed, "it", fails) is None
    assert seen == [None]
    assert failed == {"it": "OutOfMemoryError: no memory"}


def test_a_file_is_filled_by_several_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ops.json"
    run(path, "--op", "hidden_mse")
    before = run(path, "--op", "attention_kl")
    assert [r["op"] for r in before] == ["hidden_mse"] * 2 + ["attention_kl"] * 2
    monkeypatch.setattr(ops, "shapes", lambda *_: [SMALL])
    after = run(path, "--op", "hidden_mse")
    assert [a != b for a, b in zip(after, before, strict=True)] == [True, False, False, False]
    assert [figures.key(r) for r in after] == [figures.key(r) for r in before]


def test_the_best_rates_that_a_machine_has_shown_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rates = tmp_path / "ops.json", {}
    for copy, products in ((1e9, 1e12), (5e8, 3e12)):
        monkeypatch.setattr(
            ops, "machine_limits", lambda *_, c=copy, p=products: dict(zip(LIMITS, (c, p), strict=True))
        )
        run(path, "--op", "hidden_mse")
        machine = json.loads(path.read_text())["machine"]
        rates[copy] = [machine[name] for name in LIMITS]
    assert rates == {1e9: [1e9, 1e12], 5e8: [1e9, 3e12]}


def test_what_a_file_lacks_is_measured_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = BY_NAME
    run(tmp_path / "ops.json", "--op", first)
    order: list[str] = []

    def measure(spec: Spec, shape: Shape, device: str, dtype: torch.dtype, *_: Any) -> figures.Result:
        order.append(spec.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(ops, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "ops.json")
    assert order == [second]


def test_a_killed_run_leaves_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, path = ops.measure, tmp_path / "ops.json"

    def killed(spec: Spec, shape: Shape, *rest: Any) -> figures.Result:
        if shape == LARGER:
            raise KeyboardInterrupt
        return measure(spec, shape, *rest)

    monkeypatch.setattr(ops, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        run(path, "--op", "hidden_mse")
    (result,) = json.loads(path.read_text())["results"]
    assert result["shape"]["sequences"] == 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fact", ["device", "torch"])
def test_results_of_another_machine_are_left_alone(fact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ops.json"
    run(path, "--op", "hidden_mse")
    kept = json.loads(path.read_text())
    kept["machine"][fact] = "another"
    path.write_text(json.dumps(kept))
    monkeypatch.setattr(ops, "machine_limits", broken)  # it is refused before anything is measured
    with pytest.raises(SystemExit, match=f"ops.json: holds results of {fact} another, this is .*: pass another --out"):
        run(path)
    assert json.loads(path.read_text()) == kept


def test_no_shape_is_begun_after_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ops.main(["--cpu", "--rounds", "2", "--op", "hidden_mse", "--limit_s", "0", "--out", str(tmp_path / "ops.json")])
    assert "left out after 0 s: hidden_mse 3x4 8/16, hidden_mse 2x8 8/16\n" in capsys.readouterr().out
    assert not (tmp_path / "ops.json").exists()


def full_grid(name: str, monkeypatch: pytest.MonkeyPatch) -> list[Shape]:
    """All shapes of an op on a GPU."""
    monkeypatch.undo()
    return ops.shapes(BY_NAME[name], "cuda", False)


def test_shapes_that_matter_most_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("attention_score_mse", "attention_prob_mse", "attention_kl"):
        first = [(s.lengths, s.head_dim_s, s.head_dim_t) for s in full_grid(name, monkeypatch)[:4]]
        assert first == [((n,) * b, 26, 64) for b, n in ((32, 512), (32, 128), (4, 8192), (1, 32768))]
    for name in ("hidden_mse", "hidden_normalized", "hidden_cosine"):
        grid = full_grid(name, monkeypatch)
        rows = [(s.tokens, s.hidden_size_s, s.hidden_size_t, s.layers) for s in grid]
        assert rows == [(n, d, 768, 5) for d in (312, 384, 768) for n in (32768, 4096)]
    first, *rest = full_grid("soft_cross_entropy", monkeypatch)
    assert (len(first.lengths), first.classes) == (8192, 30522)
    assert {s.classes for s in rest} == {2, 77, 128256}


@each_spec
def test_quick_shapes_are_small(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = full_grid(spec.name, monkeypatch)
    quick = ops.shapes(spec, "cuda", True)
    assert len(quick) == 2
    assert all(shape in grid and (shape.tokens == 4096 or shape.classes <= 77) for shape in quick)


@each_spec
def test_max_autotune_is_tried_where_it_matters(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, modes = full_grid(spec.name, monkeypatch), set()

    def compiled(function: Any, dynamic: bool, mode: str | None = None) -> Any:
        modes.add(mode)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    tuned = ["max-autotune" in ops.implementations(spec, shape, "cuda") for shape in grid]
    if spec.name.startswith("attention"):  # the maps of the longest sequence fit nowhere
        assert tuned == [*[True] * 3, False, *[True] * 2] + 2 * [*[True] * 2, *[False] * 4]
    else:
        assert all(tuned)
    (mode,) = modes - {None}
    options = torch._inductor.list_mode_options(mode)
    assert options["max_autotune"]
    assert not options.get("triton.cudagraphs"), "inputs would be copied in every call"


def test_both_passes_of_all_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "captured", lambda call: call)
    names = ("eager", "compile", "max-autotune", "ours, tiled", "ours, gram", "liger")
    calls: Any = {(name, what): lambda: print for name in names for what in ("both", "forward", "backward")}
    assert ops.graphs(calls, {}) == {(name, "graph"): print for name in names}
    replayed = {s.lengths for s in full_grid("attention_score_mse", monkeypatch) if s.pairs <= ops.LAUNCH_BOUND}
    assert replayed == {(128,) * 32, (128,) * 256, (512,) * 32}


def test_the_loss_of_liger_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    result = measure(HIDDEN, monkeypatch, liger=lambda **inputs: 1 + HIDDEN.op(**inputs), ours=HIDDEN.op)
    assert result["error"]["liger"].keys() == set(HIDDEN.differentiable)
    assert result["error"]["ours"].keys() == {"loss", *HIDDEN.differentiable}
    assert max(result["error"]["liger"].values()) < 1e-4


def test_memory_of_all_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("eager", "compile", "max-autotune", "ours")
    result = measure(HIDDEN, monkeypatch, **dict.fromkeys(names, HIDDEN.op))
    assert result["peak_mib"].keys() == set(names)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["attention_score_mse", "soft_cross_entropy"])
def test_on_a_gpu_small_shapes_are_replayed_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    result = ops.measure(BY_NAME[name], SMALL, "cuda", torch.bfloat16, 2)
    assert result["failed"] == {}
    assert all(ms.keys() == {"forward", "backward", "both", "graph"} for ms in result["ms"].values())
    assert result["error"].keys() == result["ms"].keys()
