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
from pathlib import Path

from bench.quality.config import read
from bench.quality.jobs import Job, all_jobs, chosen
from bench.quality.work import Work
from bench.record import RESULTS


def do(jobs: list[Job], work: Work, data: Path, most_seconds: float) -> list[str]:
    """Do what of `jobs` is not done, one after the other; returns those that failed, or whose needs did."""
    from bench.quality.perform import perform

    start, failed = time.monotonic(), dict[str, str]()  # names, by folder
    todo = work.todo(jobs)
    for number, job in enumerate(todo, start=1):
        expected, passed = work.expected_seconds(job), time.monotonic() - start
        if passed + expected > most_seconds and number > 1:  # the first is begun anyway: it goes on the next time
            print(f"stopped before {job.name}: {passed:.0f} s have passed, and it takes some {expected:.0f} s")
            break
        if lacking := [need.name for need in job.needs if need.folder in failed]:
            print(f"left out: {job.name}, for {', '.join(lacking)} failed")
            failed[job.folder] = job.name
            continue
        print(f"\n[{number}/{len(todo)}] {job.name}" + (f", some {expected:.0f} s" if expected else ""), flush=True)
        try:
            result = perform(job, work, data)
        except (ValueError, OSError, FloatingPointError) as error:
            print(f"failed: {job.name}: {error}", file=sys.stderr)
            failed[job.folder] = job.name
            continue
        scored = f", {result['metric']} {result['score']:.4f}" if "score" in result else ""
        print(f"{job.name}: {result['seconds']:.0f} s{scored}", flush=True)
    return list(failed.values())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, nargs="+", required=True, help="experiments, as YAML")
    parser.add_argument("--data", type=Path, help="folder that the paths of the experiments lie below")
    parser.add_argument("--work", type=Path, default=Path("out/quality"), help="a folder in it for each experiment")
    parser.add_argument("--only", metavar="PATTERN", help="jobs whose names fit, such as '*/rte/*'")
    parser.add_argument("--most_seconds", type=float, default=float("inf"), help="begin no job that would take longer")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print the jobs and whether they are done")
    what.add_argument("--collect", metavar="MACHINE", help="write the results of what is done")
    options = parser.parse_args(argv)
    try:
        experiments = {path.stem: read(path) for path in options.config}
        jobs = {name: all_jobs(experiment) for name, experiment in experiments.items()}
        if options.collect:
            for name, experiment in experiments.items():
                from bench.quality.collect import collect

                collected = collect(name, experiment, Work(options.work / name))
                path = RESULTS / options.collect / f"quality_{name}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(collected, indent=1) + "\n")
                print(f"{path}: {len(collected['runs'])} runs; python -m bench.table writes the page")
            return
        if not options.list and not (options.data and options.data.is_dir()):
            raise ValueError(f"there is no data at {options.data}: pass --data FOLDER")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    failed = []
    start = time.monotonic()
    for name, found in jobs.items():
        work = Work(options.work / name)
        asked = found if options.only is None else chosen(with_needs(found), options.only)
        if options.list:
            print("\n".join(f"{work.state(job):<6} {name}  {job.name}" for job in with_needs(asked)))
        else:
            failed += do(asked, work, options.data, options.most_seconds - (time.monotonic() - start))
    if failed:
        sys.exit(f"error: {len(failed)} jobs failed: {', '.join(failed)}")


def with_needs(jobs: list[Job]) -> list[Job]:
    """`jobs` and all that they start from, each once, needs first."""
    found: dict[str, Job] = {}
    for job in jobs:
        found |= {need.folder: need for need in with_needs(list(job.needs))} | {job.folder: job}
    return list(found.values())


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")
