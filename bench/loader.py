"""Measure the way of general text into batches: tokenising it once, and drawing batches from the memory-mapped result.

    python -m bench.loader [--data FOLDER] [--length 128] [--tokens_per_batch 4096] [--seconds 10] [--out FILE.json]

Also what packing wastes: the share of the token budget that batches leave unused, over a whole epoch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoTokenizer

from bench.record import writable
from bench.timing import device_name
from bench.workload import DATA, TEXTS, Workload
from fastdistill.data.corpus import load_corpus
from fastdistill.data.packing import Loader
from fastdistill.recipe import Corpus


def measure(work: Workload, tokens_per_batch: int, seconds: float) -> dict[str, Any]:
    """Tokens per second of both, in this process."""
    work.check()
    if tokens_per_batch < work.length:
        raise ValueError(f"--tokens_per_batch {tokens_per_batch}: must be --length {work.length} or more")
    place, column = TEXTS[work.text]
    corpus = Corpus(path=str(work.data / place), text=column, max_length=work.length)
    with TemporaryDirectory() as cache:
        start = time.perf_counter()
        sequences = load_corpus(corpus, AutoTokenizer.from_pretrained(work.tokenizer), cache)
        tokenising = time.perf_counter() - start
        loader = Loader(sequences, tokens_per_batch, seed=0)
        start = time.perf_counter()
        batches = len(loader.plan(0))
        planning = time.perf_counter() - start
        tokens, drawn, start = 0, 0, time.perf_counter()
        for _, batch in loader.batches():
            tokens, drawn = tokens + batch.num_tokens, drawn + 1
            if time.perf_counter() - start > seconds and drawn >= batches:
                break
        loading = time.perf_counter() - start
    whole = int(sequences.offsets[-1])
    return {
        "sequences": len(sequences),
        "tokens": whole,
        "tokenised_tokens_per_s": whole / tokenising,
        "plan_s": planning,
        "loaded_tokens_per_s": tokens / loading,
        "wasted": 1 - whole / (batches * tokens_per_batch),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the texts and the tokenizer")
    parser.add_argument("--length", type=int, default=128, help="most tokens of a sequence")
    parser.add_argument("--tokens_per_batch", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=10, help="how long to draw batches, an epoch at least")
    parser.add_argument("--out", type=writable, help="write all figures there, as JSON")
    options = parser.parse_args(argv)
    work = Workload(text="wiki", length=options.length, data=options.data)
    try:
        found = measure(work, options.tokens_per_batch, options.seconds)
    except ValueError as error:
        sys.exit(f"error: {error}")
    plan = found["plan_s"]
    print(
        f"{found['tokens']:,} tokens in {found['sequences']:,} sequences\n"
        f"tokenised {found['tokenised_tokens_per_s'] / 1e6:6.2f} million tokens/s, once\n"
        f"loaded    {found['loaded_tokens_per_s'] / 1e6:6.2f} million tokens/s; an epoch planned in {plan:.2f} s\n"
        f"wasted    {100 * found['wasted']:6.2f} % of the token budget"
    )
    if options.out:
        facts = {"device": device_name("cpu"), "threads": torch.get_num_threads(), "torch": torch.__version__}
        shape = {"length": options.length, "tokens_per_batch": options.tokens_per_batch}
        options.out.write_text(json.dumps({"machine": facts, "workload": shape, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
