"""Keep the report of a run as a committed result: python -m bench.record out/report.json MACHINE quickstart

Local paths in it are cut to their last part. Also what `--out` of the other programs may be.
"""

from __future__ import annotations

import argparse
import json
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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.record", description=__doc__)
    parser.add_argument("report", type=Path, help="what the run left as report.json")
    parser.add_argument("machine", help="folder of bench/results")
    parser.add_argument("name", help="of the file there")
    options = parser.parse_args(argv)
    try:
        kept = without_paths(json.loads(options.report.read_text()))
        if not isinstance(kept, dict) or "student" not in kept:
            raise ValueError("it has no student")
        path = writable(str(RESULTS / options.machine / f"{options.name}.json"))
    except (OSError, ValueError) as error:
        parser.error(f"{options.report} is no report of a run ({error})")
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
