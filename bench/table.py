"""Print the committed results into README.md: python -m bench.table

Each block of the README between `<!-- NAME -->` and `<!-- end -->` is written from `bench/results/**/NAME.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

from fastdistill.report import table

ROOT = Path(__file__).parent.parent


def quickstart() -> str:
    """The quickstart's table and what it says in one line."""
    (path,) = (ROOT / "bench" / "results").glob("*/quickstart.json")
    report = json.loads(path.read_text())
    latency = report["latency"]
    seconds = sum(stage["seconds"] for stage in report["stages"])
    return (
        f"{table(report)}\n\nMovie reviews, {report['data']['test']['examples']:,} held-out sentences. "
        f"The student keeps {100 * report['retention']:.1f} % of its teacher's accuracy; the control is\n"
        f"the same student on gold labels alone. Latency: {latency['batch_size']} sequences of {latency['length']} "
        f"tokens, fp32, {latency['threads']} threads of {latency['cpu']}.\nThe four stages took "
        f"{seconds / 60:.1f} minutes there."
    )


def render(readme: str) -> str:
    """`readme` with every block written anew."""
    for name, write in {"quickstart": quickstart}.items():
        start, end = f"<!-- {name} -->", "<!-- end -->"
        if readme.count(start) != 1:
            raise ValueError(f"README.md must hold one block {start} ... {end}, it holds {readme.count(start)}")
        before, _, rest = readme.partition(start)
        readme = f"{before}{start}\n{write()}\n{end}{rest.partition(end)[2]}"
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(render(path.read_text()))
