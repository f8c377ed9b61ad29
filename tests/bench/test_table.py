"""README.md holds what the committed results say."""

import json
from pathlib import Path

import pytest

from bench import table
from bench.figures import line
from bench.quality import page
from bench.table import render

README = Path(__file__).parents[2] / "README.md"


def test_readme_is_up_to_date() -> None:
    text = README.read_text()
    assert render(text) == text, "run python -m bench.table"


def test_page_of_speed_is_up_to_date() -> None:
    assert (table.ROOT / "docs" / "speed.md").read_text() == table.speed(), "run python -m bench.table"


def test_page_of_speed_has_all_machines_and_readme_one() -> None:
    devices = {json.loads(path.read_text())["machine"]["device"] for path in table._found("*", "ops")}
    assert len(devices) > 1
    assert all(table.speed().count(f"\n{device}, ") >= 3 for device in devices)
    assert table.ops(table.SHOWN).count(" threads, torch ") == 1


def test_page_of_results_is_up_to_date() -> None:
    assert page.PAGE.read_text() == page.render(), "run python -m bench.table"


def test_a_figure_typed_by_hand_is_found() -> None:
    text = README.read_text()
    row = next(line for line in text.splitlines() if line.startswith("| student |"))
    assert render(text.replace(row, row.replace("M |", "1M |"))) == text


def test_missing_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="one block <!-- quickstart -->"):
        render("# a readme without blocks\n")


RESULT = {
    "op": "attention_score_mse",
    "shape": {"sequences": 8, "length": 512, "heads": 12, "d_s": 26, "d_t": 64, "layers": 1, "classes": 2},
    "dtype": "bfloat16",
    "bytes_moved": 100,
    "flops": 2000,
    "ms": {
        "eager": {"both": 30.0, "forward": 1.0, "backward": 1.0},
        "compile": {"both": 16.0, "forward": 1.0, "backward": 1.0},
        "max-autotune": {"both": 4.0, "forward": 1.0, "backward": 1.0},
        "ours, tiled": {"both": 5.0, "forward": 0.5, "backward": 0.5},
        "ours, gram": {"both": 4.0, "forward": 1.0, "backward": 1.0},
    },
    "peak_mib": {"eager": 300.0, "compile": 4000.0, "ours, tiled": 1.0, "ours, gram": 2.5},
    "error": {"eager": {"loss": 1e-3, "q_s": 2e-3}, "ours, gram": {"loss": 1e-4, "q_s": float("nan")}},
    "failed": {},
}


REPLAYED = {
    **RESULT,
    "op": "hidden_cosine",
    "shape": {"sequences": 32, "length": 128, "heads": 12, "d_s": 26, "d_t": 64, "layers": 5, "classes": 2},
    "ms": {"eager": {"both": 4.0, "graph": 3.0}, "ours": {"both": 4.0, "graph": 2.0}},
    "failed": {"compile, both": "no memory"},
}


MACHINE = {"device": "GPU", "torch": "2", "copy_bytes_per_s": 2e5, "flops_per_s": 1e6}


def ops_table(result: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    path = tmp_path / "bench" / "results" / "machine" / "ops.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"machine": MACHINE, "results": [result]}))
    monkeypatch.setattr(table, "ROOT", tmp_path)
    return table.ops().splitlines()


def test_row_of_an_op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, _, names, rule, row, *_ = ops_table(RESULT, tmp_path, monkeypatch)
    assert machine == "GPU, torch 2:"
    assert names.count("|") == rule.count("|") == row.count("|")
    assert row == (
        "| `attention_score_mse` (gram) | 8 x 512, head sizes 26/64 | 30.0 ms | 4.00 ms | 4.00 ms | 1.0x | 2.5 / 300 | "
        "0.50 ms (bytes), 12 % |"
    )


def test_products_over_scores_are_a_floor_of_what_makes_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiled = {**RESULT, "ms": {name: ms for name, ms in RESULT["ms"].items() if name != "ours, gram"}}
    assert ops_table(tiled, tmp_path, monkeypatch)[4].endswith("| 5.00 ms | 0.8x | 1 / 300 | 2.00 ms (flops), 40 % |")


def test_row_of_an_op_that_was_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ops_table(REPLAYED, tmp_path, monkeypatch)[4]
    assert "| `hidden_cosine` | 5 x 4,096 rows, 312 -> 768 |" in row
    assert "| 4.00 ms | 1.0x (1.5x as CUDA graphs) |" in row


def test_row_of_an_op_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {**RESULT, "ms": {"eager": {"forward": 1.0}}, "peak_mib": {}}
    assert "| - | - | - | - | - / - | 2.00 ms (flops), - |" in ops_table(broken, tmp_path, monkeypatch)[4]


def steps_table(results: list[dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    path = tmp_path / "bench" / "results" / "machine" / "step_sst2.json"
    path.parent.mkdir(parents=True)
    work = {"teacher": "bert-base", "student": "tinybert4", "text": "sst2", "length": 64, "blocks": False}
    measured = {"machine": MACHINE, "workload": work | {"batch_size": 32}, "results": results}
    path.write_text(json.dumps(measured))
    monkeypatch.setattr(table, "ROOT", tmp_path)
    return table.steps().splitlines()


STEPS = {"loop": "ours", "tokens_per_s": 2000, "step_ms": 199.4, "peak_mib": 1566, "flops_per_s": 4.6e5}


def test_row_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, row = steps_table([STEPS | {"pairs_per_s": 9}], tmp_path, monkeypatch)
    assert row == "| sst2, 32 x own lengths up to 64 | fastdistill | 2,000 | 1.0x | 199 | 1,566 | 46 % |"


def test_row_of_a_loop_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: dict[str, object] = {"loop": "ours", "failed": "out of memory"}
    *_, row, second = steps_table([failed, STEPS | {"pairs_per_s": 9}], tmp_path, monkeypatch)
    assert second == "| sst2, 32 x own lengths up to 64 | fastdistill | 2,000 |  | 199 | 1,566 | 46 % |"
    assert row == "| sst2, 32 x own lengths up to 64 | fastdistill | failed | | | | |"


def test_each_pair_of_models_has_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever order their files have."""
    monkeypatch.setattr(table, "ROOT", tmp_path)
    folder = tmp_path / "bench" / "results" / "machine"
    folder.mkdir(parents=True)
    for name, student in (("a", "tinybert4"), ("b", "tinybert6"), ("c", "tinybert4")):
        work = {"teacher": "bert-base", "student": student, "text": name, "length": 64, "blocks": False}
        measured = {"machine": MACHINE, "workload": work | {"batch_size": 32}, "results": [STEPS | {"pairs_per_s": 9}]}
        (folder / f"step_{name}.json").write_text(json.dumps(measured))
    _, four, six = table.steps().split("\n\n| text")
    assert ("| a, 32" in four, "| c, 32" in four, "| b, 32" in six, "| c, 32" in six) == (True, True, True, False)


def test_row_of_a_step_that_was_counted_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, row, empty, note = steps_table([STEPS], tmp_path, monkeypatch)
    assert row.endswith("| 46 %* |")
    assert (empty, note) == ("", table.AS_COUNTED_BEFORE)


def test_what_is_said_of_the_cached_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = steps_table([STEPS | {"loop": "cached", "pairs_per_s": 9}], tmp_path, monkeypatch)
    assert "\n".join(lines).endswith(f"|\n\n{table.JUST_CACHED}")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "< 0.001 ms"), (0.002, "0.002 ms"), (0.5, "0.50 ms"), (1234.56, "1234.6 ms")],
)
def test_milliseconds(value: float | None, text: str) -> None:
    assert table._ms(value) == text


def test_line_of_a_measurement() -> None:
    assert line(RESULT, MACHINE).split("  ", 1)[1].strip() == (
        "8x512 26/64          1.0x  eager 30.000 (2e-03)  compile 16.000  max-autotune 4.000  ours, tiled 5.000  "
        "ours, gram 4.000 (nan)  floors 0.500 for bytes, 2.000 for flops: 12 %"
    )


def test_line_of_a_measurement_that_was_replayed() -> None:
    _, *rest = line(REPLAYED, MACHINE).splitlines()
    assert rest == ["  as CUDA graphs: 1.5x  eager 3.000  ours 2.000", "  compile, both: no memory"]
