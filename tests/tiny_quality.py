"""The quality benchmark in miniature: its experiment, how it is started, what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.quality import __main__ as quality
from bench.quality.work import Work

CONFIG = """
teacher: {path: teacher, learning_rates: [5e-5, 5e-3], epochs: 3, tokens_per_batch: 96}
general: {path: general.txt, max_length: 16}
tasks:
  reviews: {path: tasks/reviews, max_length: 16, validation_size: 20}
  stars: {path: tasks/stars, kind: regression, max_length: 16, validation_size: 20}
students:
  2x12: {num_hidden_layers: 2, hidden_size: 12}
budget: {general_steps: 7, general_tokens: 96, task_steps: {reviews: 6, stars: 5}, task_tokens: 64}
learning_rates: [5e-5, 5e-3]
common: {device: cpu, precision: fp32, logging_steps: 3, save_steps: 2}
methods:
  control: {title: gold labels, recipe: recipes.finetune}
  tiny: {recipe: recipes.ernie_tiny, shares: {ged: 2}, overrides: {gd: {optim: {learning_rate: 5e-3}}}}
tables:
  methods: {rows: [control, tiny]}
"""


def start(folder: Path, data: Path, *options: str, config: str = CONFIG) -> Work:
    """Run the benchmark in `folder`."""
    path = folder / "tiny.yaml"
    path.write_text(config)
    quality.main([f"--config={path}", f"--data={data}", f"--work={folder / 'work'}", *options])
    return Work(folder / "work")


def results(folder: Path) -> dict[str, dict[str, Any]]:
    paths = (folder / "work" / "jobs").rglob("result.json")
    found = [json.loads(path.read_text()) | {"folder": path.parent} for path in paths]
    return {result["name"]: result for result in found}
