"""The general recipe from one YAML file, on a real teacher and task where they are at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_mrpc_with_a_twelve_layer_teacher_from_one_yaml_file(shared_data: Path, tmp_path: Path) -> None:
    config = tmp_path / "mrpc.yaml"
    small = "{steps: 2, tokens_per_batch: 512}"
    config.write_text(f"""
teacher: {{path: {shared_data}/teachers/e5-small-en}}
student: {{preset: null, num_hidden_layers: 4, hidden_size: 192}}
general: {{path: {tmp_path}/wikipedia.parquet, max_length: 64}}
task: {{path: {shared_data}/tasks/glue/mrpc, text: sentence1, pair: sentence2, metric: f1, validation_size: 50}}
finetune: {small}
gd: {small}
ged: {small}
tad: {small}
tsd: {small}
output_dir: {tmp_path}/out
cache_dir: {tmp_path}/cache
""")
    head_of_corpus(shared_data / "corpora" / "wikipedia-enwik8.parquet", tmp_path / "wikipedia.parquet")
    done = subprocess.run(
        [sys.executable, "-m", "recipes.ernie_tiny", "--config", str(config)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "kernels")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [s["name"] for s in report["stages"]] == ["gd", "ged", "tad", "tsd"]
    assert report["teacher"]["metric"] == "f1"
    assert [report["data"][name]["examples"] for name in ("train", "validation", "test")] == [3618, 50, 408]
    assert report["teacher"]["parameters"] > 33_000_000


def head_of_corpus(path: Path, to: Path) -> None:
    import pyarrow.parquet as parquet

    parquet.write_table(parquet.read_table(path).slice(0, 500), to)
