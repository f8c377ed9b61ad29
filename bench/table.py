"""Print the committed results into README.md: python -m bench.table

Each block of the README between `<!-- NAME -->` and `<!-- end -->` is written from `bench/results/**/NAME.json`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from fastdistill.report import table

ROOT = Path(__file__).parent.parent


def quickstart() -> str:
    """The quickstart's table and what it says in one line."""
    (path,) = (ROOT / "bench" / "results").glob("*/quickstart.json")
    report = json.loads(path.read_text())
    seconds = sum(stage["seconds"] for stage in report["stages"])
    return (
        f"{table(report)}\n\nMovie reviews, {report['rows']['test']:,} held-out sentences. The student keeps "
        f"{100 * report['retention']:.1f} % of its teacher's accuracy; the control is the same student on gold labels alone. "
        f"Latency: 8 sequences of 64 tokens, fp32, {path.parent.name}. The four stages took {seconds / 60:.1f} minutes there."
    )


def render(readme: str) -> str:
    """`readme` with every block written anew."""
    blocks = {"quickstart": quickstart}
    for name, write in blocks.items():
        block = f"<!-- {name} -->\n{write()}\n<!-- end -->"
        readme, count = re.subn(
            rf"<!-- {name} -->.*?<!-- end -->", lambda _, block=block: block, readme, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(
                f"README.md must hold exactly one block <!-- {name} --> ... <!-- end -->, it holds {count}"
            )
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(render(path.read_text()))
