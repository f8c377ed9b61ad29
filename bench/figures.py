"""Results as they are kept, one file per machine, a newer result in place of an older one; and what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def key(result: Result) -> str:
    """What a result is of: op, shape and dtype."""
    return json.dumps([result["op"], result["shape"], result["dtype"]])


def load(path: Path, machine: dict[str, Any]) -> tuple[dict[str, Result], dict[str, Any]]:
    """The results that `path` holds, by key, and what it says of the machine; nothing if there is no such file.

    Raises:
        ValueError: they are of another device or another torch.
    """
    if not path.exists():
        return {}, {}
    kept = json.loads(path.read_text())
    for name in ("device", "torch"):
        if kept["machine"][name] != machine[name]:
            raise ValueError(
                f"holds results of {name} {kept['machine'][name]}, this is {machine[name]}: "
                "pass another --out, or remove the file"
            )
    return {key(result): result for result in kept["results"]}, kept["machine"]


def save(path: Path, machine: dict[str, Any], results: dict[str, Result]) -> None:
    """Write all results; whoever is killed here leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps({"machine": machine, "results": list(results.values())}, indent=1) + "\n")
    unfinished.replace(path)


def times(result: Result, what: str = "both") -> dict[str, float]:
    """By implementation, milliseconds of a forward and backward pass; or of what else was timed."""
    return {name: ms[what] for name, ms in result["ms"].items() if what in ms}


def least(values: dict[str, float], ours: bool) -> float | None:
    """The best of ours, or of the others."""
    return min((value for name, value in values.items() if name.startswith("ours") == ours), default=None)


def fastest(result: Result) -> str:
    """The name of the fastest of ours; empty where all failed."""
    ms = {name: ms for name, ms in times(result).items() if name.startswith("ours")}
    return min(ms, key=lambda name: ms[name], default="")


def floors(result: Result, machine: dict[str, Any]) -> dict[str, float]:
    """Milliseconds below which the machine's copy bandwidth and its matrix rate let no two passes come."""
    return {
        "bytes": 1000 * result["bytes_moved"] / machine["copy_bytes_per_s"],
        "flops": 1000 * result["flops"] / machine["flops_per_s"],
    }


def floor(result: Result, machine: dict[str, Any]) -> tuple[str, float]:
    """The higher of the two floors and its milliseconds; that of the bytes where the fastest makes no scores."""
    found = floors(result, machine)
    if fastest(result) == "ours, gram":
        del found["flops"]
    return max(found.items(), key=lambda item: item[1])


def share(result: Result, machine: dict[str, Any]) -> str:
    """The floor as a part of the fastest of ours, in percent."""
    ours = least(times(result), ours=True)
    return f"{100 * floor(result, machine)[1] / ours:.0f} %" if ours else "-"


def speedup(result: Result, what: str = "both") -> str:
    """How many times faster the fastest of ours is than the fastest of the others."""
    ours, other = (least(times(result, what), mine) for mine in (True, False))
    return f"{other / ours:.1f}x" if ours and other else "-"


def label(result: Result) -> str:
    """The shape in short."""
    shape = result["shape"]
    if result["op"] == "soft_cross_entropy":
        return f"{shape['sequences']}x{shape['classes']}"
    return f"{shape['sequences']}x{shape['length']} {shape['d_s']}/{shape['d_t']}"


def line(result: Result, machine: dict[str, Any]) -> str:
    """A measurement in one line, one more if it was replayed as a CUDA graph, and one for each failure."""
    listed = "  ".join(f"{name} {ms:.3f}{_worst_error(result, name)}" for name, ms in times(result).items())
    replayed = "  ".join(f"{name} {ms:.3f}" for name, ms in times(result, "graph").items())
    graphs = [f"  as CUDA graphs: {speedup(result, 'graph')}  {replayed}"] if replayed else []
    least_ms = ", ".join(f"{ms:.3f} for {name}" for name, ms in floors(result, machine).items())
    measured = (
        f"{result['op']:<22}{label(result):<18}{speedup(result):>7}  {listed}  "
        f"floors {least_ms}: {share(result, machine)}"
    )
    return "\n".join([measured, *graphs, *(f"  {name}: {why}" for name, why in result["failed"].items())])


def _worst_error(result: Result, name: str) -> str:
    found = result["error"].get(name)
    return f" ({max(found.values(), key=lambda e: (e != e, e)):.0e})" if found else ""  # NaN is the worst
