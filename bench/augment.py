"""Measure how many words a second get their candidates: one forward pass each, as published, or packed, as here.

    python -m bench.augment [--data FOLDER] [--model bert-base] [--texts 64] [--rounds 3] [--device cpu] [--out FILE]

The model has random weights, which take as long as trained ones. The published loop reads one masked text, with the
text as it was behind it, and predicts every token of both; "alone" leaves that out. All loops take turns; of each the
best round counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from bench.record import writable
from bench.timing import device_name
from bench.workload import DATA, SHAPES, TEXTS, Workload
from fastdistill.data.candidates import MODEL, Candidates
from fastdistill.data.source import from_files
from fastdistill.data.words import replaceable
from fastdistill.models.masked_lm import MaskedLM
from fastdistill.models.pretrained import quiet
from fastdistill.recipe import Augment

MOST_WORDS = 64
AUGMENT = Augment()


def published(model: Any, tokenizer: Any, texts: list[str], *, pad_to: int = 0) -> int:
    """One forward pass for each word that is one token; returns how many there were."""
    asked = 0
    padding = {"padding": "max_length", "max_length": pad_to, "truncation": True} if pad_to else {}
    for text in texts:
        for word in replaceable(text, MOST_WORDS):
            if len(tokenizer.tokenize(word.text)) > 1:
                continue
            masked = f"{text[: word.start]}{tokenizer.mask_token}{text[word.end :]}"
            inputs = tokenizer(masked, text, return_tensors="pt", **padding).to(model.device)
            with torch.no_grad():
                logits = model(**inputs).logits[0]
            place = int((inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0])
            likely = logits[place].argsort(descending=True)[: AUGMENT.candidates]
            tokenizer.convert_ids_to_tokens(likely.tolist())
            asked += 1
    return asked


def packed(candidates: Candidates, texts: list[str]) -> int:
    """All words of all texts at once; returns how many there were."""
    return sum(place.source == MODEL for places in candidates(texts) for place in places)


def loops(folder: Path, device: torch.device) -> dict[str, Callable[[list[str]], int]]:
    """Every loop by name."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found: dict[str, Callable[[list[str]], int]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        plain = AutoModelForMaskedLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        found[f"published, {name}"] = partial(published, plain, tokenizer)
        if dtype == torch.float32:
            found[f"padded, {name}"] = partial(published, plain, tokenizer, pad_to=AUGMENT.max_length)
        model = MaskedLM(folder, device, dtype)
        found[f"packed, {name}"] = partial(packed, Candidates(model, None, AUGMENT, MOST_WORDS))
        masked_alone = replace(AUGMENT, show_original=False)
        found[f"alone, {name}"] = partial(packed, Candidates(model, None, masked_alone, MOST_WORDS))
    return found


def measure(work: Workload, model: str, texts: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Words per second of every loop, on the first `texts` texts; of the published ones on fewer."""
    _, column = TEXTS[work.text]
    source = from_files(work.files())
    lines = next(source.read(column, option="task"))[column][:texts]
    with TemporaryDirectory() as folder:
        torch.manual_seed(0)
        BertForMaskedLM(work.config(model)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(work.tokenizer).save_pretrained(folder)
        ways = loops(Path(folder), device)
        best = dict.fromkeys(ways, 0.0)
        asked = dict.fromkeys(ways, 0)
        for way in ways.values():
            way(lines[:2])  # warms up
        for _ in range(rounds):
            for name, way in ways.items():
                some = lines[: max(1, texts // 8)] if name.startswith(("published", "padded")) else lines
                start = time.perf_counter()
                asked[name] = way(some)
                best[name] = max(best[name], asked[name] / (time.perf_counter() - start))
    return [{"loop": name, "words": asked[name], "words_per_s": best[name]} for name in ways]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the texts and the tokenizer")
    parser.add_argument("--model", choices=SHAPES, default="bert-base", help="shape of the masked language model")
    parser.add_argument("--texts", type=int, default=64, help="sentences; the published loops take an eighth of them")
    parser.add_argument("--rounds", type=int, default=3, help="times that every loop runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=writable, help="write all figures there, as JSON")
    options = parser.parse_args(argv)
    quiet()
    work = Workload(text="sst2", data=options.data)
    try:
        work.check()
    except ValueError as error:
        sys.exit(f"error: {error}")
    results = measure(work, options.model, options.texts, options.rounds, torch.device(options.device))
    for result in results:
        times = result["words_per_s"] / results[0]["words_per_s"]
        print(f"{result['loop']:<18}{result['words_per_s']:10,.0f} words/s  {times:6.1f}x  ({result['words']:,} words)")
    if options.out:
        facts = {
            "device": device_name(options.device), "threads": torch.get_num_threads(), "torch": torch.__version__,
        }  # fmt: skip
        shape = {"model": options.model, "text": "sst2", "texts": options.texts, "candidates": AUGMENT.candidates}
        options.out.write_text(json.dumps({"machine": facts, "workload": shape, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
