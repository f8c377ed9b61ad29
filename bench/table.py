"""Print the committed results into README.md, docs/speed.md and docs/results.md: python -m bench.table

Each block of the README between `<!-- NAME -->` and `<!-- end -->` is written from what one machine measured,
docs/speed.md from what all did, the page of results from all `quality_*.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.figures import Result, fastest, floor, least, share, speedup, times
from bench.quality import page
from fastdistill.report import table

ROOT = Path(__file__).parent.parent
SHOWN = "epyc-zen4-2core"  # in the README: the machine that was measured last
QUALITY = ("epyc-zen4-2core/quality_small", "epyc-zen5-2core/quality_narrow")  # in the README, of docs/results.md
NOTE = """\
The floor is the higher of two: the bytes that must move at the bandwidth of a copy, and the products over all scores
(or states) at the rate of a large matrix product, both measured beside the ops. For the Gram form, which makes no
scores, the bytes alone count."""


def _found(folder: str, name: str) -> list[Path]:
    """The results of that name of a machine, or of all machines (`*`)."""
    return sorted((ROOT / "bench" / "results").glob(f"{folder}/{name}.json"))


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


def ops(folder: str = "*") -> str:
    """One row for each op and shape: a forward and backward pass, eager, compiled and ours."""
    lines = []
    for path in _found(folder, "ops"):
        measured = json.loads(path.read_text())
        machine = measured["machine"]
        lines += [
            f"{machine['device']}, torch {machine['torch']}:\n",
            "| op | shape | eager | torch.compile | ours | best of the others / ours | MiB, ours / least of the others "
            "| floor, part of ours |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
            *(_op_row(result, machine) for result in measured["results"]),
            "",
        ]
    return "\n".join([*lines, NOTE])


LOOPS = {
    "published": "padded, fp32, maps written out",
    "compiled": "the same, bf16 and torch.compile",
    "textbrewer": "TextBrewer",
    "ours": "fastdistill",
    "fused": "fastdistill, torch.compile (on a GPU CUDA graphs too)",
    "cached": "fastdistill, teacher from the cache",
}
AS_COUNTED_BEFORE = """\
\\* Counted without attention's own products, and the memory of the cached loop with the teacher that made the cache."""

JUST_CACHED = """\
The cache had just been written and lay in memory: a disk may be slower. On a CPU the peak counts its files, which the
system may take back."""


def steps(folder: str = "*") -> str:
    """A table for each machine and pair of models, a row for each text and loop: real tokens per second of whole steps.

    Older files do not give pairs of tokens that attend to each other: they have a note on what they counted.
    """
    tables: dict[str, list[str]] = {}
    counted: list[str] = []
    cached: list[str] = []
    for path in _found(folder, "step_*"):
        measured = json.loads(path.read_text())
        work, machine = measured["workload"], measured["machine"]
        title = f"{machine['device']}, torch {machine['torch']}, {work['teacher']} to {work['student']}:\n"
        rows = tables.setdefault(
            title,
            [
                "| text | loop | tokens/s | times the first | ms a step | peak MiB | of the matrix rate |",
                "|---|---|---:|---:|---:|---:|---:|",
            ],
        )
        how = "blocks of" if work["blocks"] else "own lengths up to"
        text = (
            f"{work['text']}, {work['batch_size']} x {how} {work['length']}{', soft labels' * work.get('soft', False)}"
        )
        done = [r for r in measured["results"] if "failed" not in r]
        first = measured["results"][0].get("tokens_per_s")
        percent = "%"
        if not all("pairs_per_s" in r for r in done):
            percent, counted = "%*", ["", AS_COUNTED_BEFORE]
        if any(r["loop"] == "cached" for r in done):
            cached = ["", JUST_CACHED]
        rows += [
            f"| {text} | {LOOPS[r['loop']]} | {r['tokens_per_s']:,.0f} | {_times(r['tokens_per_s'], first)} "
            f"| {r['step_ms']:,.0f} | {r['peak_mib']:,.0f} "
            f"| {100 * r['flops_per_s'] / machine['flops_per_s']:.0f} {percent} |"
            if "failed" not in r
            else f"| {text} | {LOOPS[r['loop']]} | failed | | | | |"
            for r in measured["results"]
        ]
    return "\n".join(["\n\n".join("\n".join([title, *rows]) for title, rows in tables.items()), *counted, *cached])


def inference(folder: str = "*") -> str:
    """One row for each batch size and length."""
    lines: list[str] = []
    for path in _found(folder, "inference"):
        measured = json.loads(path.read_text())
        machine, models = measured["machine"], measured["models"]
        lines += [
            *[""] * bool(lines),
            f"{machine['device']}, torch {machine['torch']}, {machine['dtype'].removeprefix('torch.')}:\n",
            f"| batch x length | {models['teacher']}, p50 (p95) | {models['student']}, p50 (p95) | faster |",
            "|---|---:|---:|---:|",
        ]
        for r in measured["results"]:
            both = (f"{_ms(r[side]['p50_ms'])} ({_ms(r[side]['p95_ms'])})" for side in ("teacher", "student"))
            lines.append(f"| {r['batch_size']} x {r['length']} | {' | '.join(both)} | {r['faster']:.1f}x |")
    return "\n".join(lines)


AUGMENT_LOOPS = {
    "published": "one forward pass for each word",
    "padded": "the same, padded to 128 tokens",
    "packed": "fastdistill: all words of many sentences, packed",
    "alone": "the same, of the masked text alone (`show_original: false`)",
}


def augment(folder: str = "*") -> str:
    """One row for each loop: words a second that get their candidates from the masked language model."""
    lines = []
    for path in _found(folder, "augment"):
        measured = json.loads(path.read_text())
        work, machine = measured["workload"], measured["machine"]
        first = measured["results"][0]["words_per_s"]
        lines += [
            f"{machine['device']}, torch {machine['torch']}, {work['model']}, sentences of {work['text']}:\n",
            "| candidates of words | dtype | words/s | times the first |",
            "|---|---|---:|---:|",
            *(_augment_row(result, first) for result in measured["results"]),
            "",
        ]
    return "\n".join(lines).rstrip() or "Not measured yet."


def _augment_row(result: Result, first: float) -> str:
    loop, dtype = result["loop"].split(", ")
    per_second = result["words_per_s"]
    return f"| {AUGMENT_LOOPS[loop]} | {dtype} | {per_second:,.0f} | {per_second / first:.1f}x |"


def _op_row(result: Result, machine: dict[str, Any]) -> str:
    ms, mib = times(result), result["peak_mib"]
    ours = least(ms, ours=True)
    ours_name = fastest(result)
    compiled = min((ms[name] for name in ("compile", "max-autotune") if name in ms), default=None)
    shape = result["shape"]
    what = f"{shape['sequences']} x {shape['length']}, head sizes {shape['d_s']}/{shape['d_t']}"
    if result["op"].startswith("hidden"):
        rows = shape["sequences"] * shape["length"]
        what = f"{shape['layers']} x {rows:,} rows, {12 * shape['d_s']} -> {12 * shape['d_t']}"
    if result["op"] == "soft_cross_entropy":
        what = f"{shape['sequences']:,} rows, {shape['classes']:,} classes"
    way = ours_name.partition(", ")[2]
    name, floor_ms = floor(result, machine)
    in_graphs = f" ({speedup(result, 'graph')} as CUDA graphs)" if times(result, "graph") else ""
    cells = [
        f"`{result['op']}`{f' ({way})' if way else ''}",
        what,
        _ms(ms.get("eager")),
        _ms(compiled),
        _ms(ours),
        speedup(result) + in_graphs,
        f"{_mib(mib.get(ours_name))} / {_mib(least(mib, ours=False))}",
        f"{_ms(floor_ms)} ({name}), {share(result, machine)}",
    ]
    return f"| {' | '.join(cells)} |"


def _times(value: float, first: float | None) -> str:
    return f"{value / first:.1f}x" if first else ""


def _ms(value: float | None) -> str:
    if value is None or value < 0.001:
        return "-" if value is None else "< 0.001 ms"
    return f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms" if value >= 0.1 else f"{value:.3f} ms"


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def quality() -> str:
    """The scores of all methods, in the experiments that the README shows."""
    paths = [ROOT / "bench" / "results" / f"{name}.json" for name in QUALITY]
    return "\n\n".join(page.methods(json.loads(path.read_text())) for path in paths)


BLOCKS = {"augment": augment, "steps": steps, "inference": inference, "ops": ops}
SPEED = """\
# Measured speed

All machines that have been measured, each figure beside what it is compared with, in one run; the README shows one
of them. Reasons and missed targets are in [bench/NOTES.md](../bench/NOTES.md).

## Whole training steps

Attention scores, hidden states and embeddings, each loop in a process of its own on the same models and the same text;
tokens are real ones, padding does not count (`python -m bench.step`).

{steps}

## Loss ops

A forward and backward pass, all ways taking turns (`python -m bench.ops`).

{ops}

## Teacher and student, as one serves them

Plain PyTorch (`python -m bench.inference`).

{inference}

## Augmentation

Words that get their candidates, each loop on the same text (`python -m bench.augment`).

{augment}
"""


def render(readme: str) -> str:
    """`readme` with every block written anew."""
    blocks = {"quickstart": quickstart(), "quality": quality()} | {name: write(SHOWN) for name, write in BLOCKS.items()}
    for name, written in blocks.items():
        start, end = f"<!-- {name} -->", "<!-- end -->"
        if readme.count(start) != 1:
            raise ValueError(f"README.md must hold one block {start} ... {end}, it holds {readme.count(start)}")
        before, _, rest = readme.partition(start)
        readme = f"{before}{start}\n{written}\n{end}{rest.partition(end)[2]}"
    return readme


def speed() -> str:
    """The page of what all machines measured."""
    return SPEED.format(**{name: write() for name, write in BLOCKS.items()})


if __name__ == "__main__":
    for path, text in (
        (ROOT / "README.md", render((ROOT / "README.md").read_text())),
        (ROOT / "docs" / "speed.md", speed()),
        (page.PAGE, page.render()),
    ):
        path.write_text(text)
