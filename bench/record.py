"""Keep the report of a run as a committed result: python -m bench.record out/report.json MACHINE quickstart

Local paths in it are cut to their last part. Also what `--out` of the other programs may be.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def without_paths(value: Any) -> Any:
    """`value` with every absolute or home path cut to its last part."""
    if isinstance(value, dict):
        return {name: without_paths(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def writable(text: str) -> Path:
    """A file that `--out` names, refused before any work where it cannot be written; makes its folder."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        path.open("a").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be written ({error.strerror}): pass another file") from None
    return path


if __name__ == "__main__":
    report, machine, name = sys.argv[1:]
    path = RESULTS / machine / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(without_paths(json.loads(Path(report).read_text())), indent=1) + "\n")
