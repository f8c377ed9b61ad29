"""Every method on real tasks, at equal steps and data: python -m bench.quality --config FILE.yaml ... --data FOLDER

    --list                what there is to do, and what is done
    --only "*/rte/*"      these jobs alone, and what they start from
    --most_seconds 550    begin no job that would not fit; the same command goes on where it was stopped or killed
    --collect MACHINE     write what is done to bench/results/MACHINE/quality_NAME.json (then: python -m bench.table)

One file describes one experiment: teacher, tasks, students, budget, methods, tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.quality.config import read
from bench.quality.jobs import Job, all_jobs, chosen, with_needs
from bench.quality.work import Work
from bench.record import RESULTS


@dataclass
class Clock:
    """The time of a call.

    Args:
        most_seconds: that it may take.
    """

    most_seconds: float
    start: float = field(default_factory=time.monotonic)
    begun: bool = False

    def has(self, seconds: float) -> bool:
        """Whether a job that takes so long may begin; the first may anyway, for it goes on the next time."""
        fits = not self.begun or time.monotonic() - self.start + seconds <= self.most_seconds
        self.begun = True
        return fits


def do(jobs: list[Job], work: Work, data: Path, clock: Clock) -> tuple[list[str], bool]:
    """Do what of `jobs` is not done, one after the other.

    Returns the names of those that failed, or that lacked what failed, and whether there was time for all.
    """
    from bench.quality.perform import perform

    failed: dict[str, str] = {}  # names, by folder
    elsewhere: set[str] = set()
    diverged: set[str] = set()

    def first() -> Job | None:
        return next((job for job in work.todo(jobs) if job.folder not in failed.keys() | elsewhere), None)

    while job := first():
        expected = work.expected_seconds(job)
        needs = [need for need in job.needs if not work.done(need, with_model=job.kind != "run")]
        if job.kind in ("run", "teacher") and len(needs) < len(job.needs):
            needs = [need for need in needs if need.folder not in diverged]  # a rate that is too high is a result
        if any(need.folder in elsewhere for need in needs):
            print(f"left, for another process makes what it starts from: {job.name}")
            elsewhere.add(job.folder)
        elif needs:
            print(f"left out: {job.name}, for {', '.join(need.name for need in needs)} failed")
            failed[job.folder] = job.name
        elif not clock.has(expected):
            passed = time.monotonic() - clock.start
            print(f"stopped before {job.name}: {passed:.0f} s have passed, and it takes some {expected:.0f} s")
            return list(failed.values()), False
        else:
            with work.lock(job) as free:
                if not free:
                    print(f"left to the process that is at work on it: {job.name}")
                    elsewhere.add(job.folder)
                elif (now := first()) and now.folder == job.folder:  # no other process has done it meanwhile
                    print(f"\n{job.name}" + (f", some {expected:.0f} s" if expected else ""), flush=True)
                    try:
                        result = perform(job, work, data)
                    except Exception as error:  # whatever it is, the other jobs can do without this one
                        remedy = f"; to begin it anew, delete {work.run(job)}" if work.run(job).exists() else ""
                        if not isinstance(error, (ValueError, OSError, FloatingPointError)):
                            traceback.print_exc()
                        print(f"failed: {job.name}: {error}{remedy}", file=sys.stderr)
                        failed[job.folder] = job.name
                        if isinstance(error, FloatingPointError):
                            diverged.add(job.folder)
                        continue
                    scored = f", {result['metric']} {result['score']:.4f}" if "score" in result else ""
                    print(f"{job.name}: {result['seconds']:.0f} s{scored}", flush=True)
    return list(failed.values()), True


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, nargs="+", required=True, help="experiments, as YAML")
    parser.add_argument("--data", type=Path, help="folder that the paths of the experiments lie below")
    parser.add_argument("--work", type=Path, default=Path("out/quality"), help="folder of all that is done")
    parser.add_argument("--only", metavar="PATTERN", help="jobs whose names fit, such as '*/rte/*'")
    parser.add_argument("--most_seconds", type=float, default=float("inf"), help="begin no job that would take longer")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print the jobs and whether they are done")
    what.add_argument("--collect", metavar="MACHINE", help="write the results of what is done")
    options = parser.parse_args(argv)
    work = Work(options.work)
    try:
        experiments = {path.stem: read(path) for path in options.config}
        jobs = {name: all_jobs(experiment) for name, experiment in experiments.items()}
        if options.collect:
            for name, experiment in experiments.items():
                from bench.quality.collect import collect

                collected = collect(name, experiment, work)
                path = RESULTS / options.collect / f"quality_{name}.json"
                check_kept(path, collected)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(collected, indent=1) + "\n")
                print(f"{path}: {len(collected['runs'])} runs; python -m bench.table writes the page")
            return
        if not options.list:
            if not (options.data and options.data.is_dir()):
                raise ValueError(f"there is no data at {options.data}: pass --data FOLDER")
            work.check_data(options.data, with_needs(job for found in jobs.values() for job in found))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    failed = []
    clock = Clock(options.most_seconds)
    for name, found in jobs.items():
        asked = found if options.only is None else chosen(with_needs(found), options.only)
        if not asked:
            print(f"{name} has no job that fits {options.only!r}; --list without --only prints their names")
        if options.list:
            print("\n".join(f"{work.state(job):<6} {name}  {job.name}" for job in with_needs(asked)))
        elif experiments[name].common.get("device") == "cuda" and not has_gpu():
            print(f"left out: {name}, for it is made for a GPU, and there is none")
        else:
            more, in_time = do(asked, work, options.data, clock)
            failed += more
            if not in_time:
                break
    if failed:
        sys.exit(f"error: {len(failed)} jobs failed: {', '.join(failed)}")


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def check_kept(path: Path, collected: dict[str, Any]) -> None:
    """Refuse to write results that lack runs of those at `path`.

    Raises:
        ValueError: they do; names one.
    """

    def names(found: dict[str, Any]) -> set[str]:
        return {"/".join(str(run[part]) for part in ("row", "student", "task", "seed")) for run in found["runs"]}

    if path.exists() and (lost := names(json.loads(path.read_text())) - names(collected)):
        raise ValueError(
            f"{path} has {len(lost)} runs that are not done in the work folder, such as {min(lost)}: collect where "
            "they are, or delete the file if they are to be given up"
        )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")
