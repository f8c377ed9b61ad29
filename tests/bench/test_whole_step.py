"""The whole-step benchmark: all loops learn the same, and what fails is named."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import loops, step, workload
from bench.workload import Workload
from fastdistill import graphs
from fastdistill.batch import Batch
from fastdistill.data.packing import Sequences, collate
from fastdistill.models.teacher import Live
from fastdistill.step import Runtime, Step
from tests.tiny import make_texts

FP32 = Runtime(torch.device("cpu"), torch.float32, 20, 200)


@pytest.fixture
def work(texts: Path, monkeypatch: pytest.MonkeyPatch) -> Workload:
    """Models of two and four layers, sentences of a few words."""
    monkeypatch.setattr(workload, "SHAPES", {"large": (4, 48, 96), "small": (2, 24, 48)})
    monkeypatch.setattr(step, "SHAPES", workload.SHAPES)
    return Workload("large", "small", "sst2", length=12, batch_size=4, data=texts)


def test_sequences_are_cut_and_whole(work: Workload) -> None:
    sequences = work.sequences(10)
    texts = [text.split() for text, _ in make_texts(40, 0)]
    assert len(sequences) == 10
    assert sequences.lengths.tolist() == [min(len(words), 10) + 2 for words in texts[:10]]
    starts, ends = sequences.input_ids[sequences.offsets[:-1]], sequences.input_ids[sequences.offsets[1:] - 1]
    assert set(starts) == {2}
    assert set(ends) == {3}


def test_blocks_are_full(work: Workload) -> None:
    blocks = Workload(**{**vars(work), "blocks": True}).sequences(9)
    assert blocks.lengths.tolist() == [12] * 9
    inner = blocks.input_ids.reshape(9, 12)[:, 1:-1].ravel()
    assert not np.isin(inner, (2, 3)).any()


def test_too_few_sequences_are_refused(work: Workload) -> None:
    with pytest.raises(ValueError, match="holds 40 sequences, 41 are needed: fewer --steps"):
        work.sequences(41)
    assert len(work.sequences(7, most=30)) == 30
    assert len(work.sequences(7, most=50)) == 40


def test_padded_batches_hold_the_sequences(work: Workload) -> None:
    sequences = work.sequences(8)
    for n, (ids, mask) in enumerate(loops.padded(work, sequences, 2, torch.device("cpu"))):
        assert ids.shape == mask.shape == (4, 12)
        bounds = sequences.offsets[4 * n : 4 * n + 5]
        assert ids[mask].tolist() == sequences.input_ids[bounds[0] : bounds[-1]].tolist()
        assert mask.sum(1).tolist() == np.diff(bounds).tolist()
        assert not ids[~mask].any()


def losses(work: Workload, sequences: Sequences, loop: loops.Loop, steps: int) -> list[dict[str, float]]:
    """Read at the end, when a GPU would have come there."""
    found: list[Mapping[str, float | Tensor]] = []
    loop(work, sequences, FP32, steps, lambda _, values: found.append(values))
    return [{name: float(value) for name, value in values.items()} for values in found]


@pytest.mark.parametrize("soft", [False, True])
def test_the_published_loop_and_ours_learn_the_same(
    work: Workload, monkeypatch: pytest.MonkeyPatch, soft: bool
) -> None:
    """On the same batches, in fp32: step after step the same losses."""
    work = replace(work, soft=soft)

    def batches(work: Workload, sequences: Sequences) -> object:
        return (collate(sequences, np.arange(4 * n, 4 * n + 4)) for n in range(10))

    monkeypatch.setattr(loops, "our_batches", batches)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    sequences = work.sequences(40)
    expected, ours = (losses(work, sequences, loop, 10) for loop in (loops.published, loops.ours))
    assert len(expected) == len(ours) == 10
    assert expected[0].keys() == ours[0].keys() == {"attention", "hidden", "embedding"} | ({"soft"} if soft else set())
    for theirs, mine in zip(expected, ours, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert sum(ours[-1].values()) < 0.97 * sum(ours[0].values())
    fused = losses(work, sequences, loops.ours_fused, 10)
    assert fused[-1] == pytest.approx(ours[-1], rel=1e-4)
    cached = losses(work, sequences, loops.ours_cached, 10)
    assert cached[-1] == pytest.approx(expected[-1], rel=1e-2)
    fast = losses(work, sequences, loops.compiled, 10)
    assert fast[-1] == pytest.approx(expected[-1], rel=3e-2)


@pytest.mark.parametrize("soft", [False, True])
def test_textbrewer_takes_as_many_steps(work: Workload, soft: bool) -> None:
    pytest.importorskip("textbrewer")
    found = losses(replace(work, soft=soft), work.sequences(40), loops.textbrewer, 5)
    assert len(found) == 5
    assert ("unweighted_kd_loss" in "".join(found[0])) == soft
    assert sum(found[-1].values()) < sum(found[0].values())


class Watched:
    """What a loop of ours does, in its order: the sizes of the batches whose gradients are taken, and ends of steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copied: list[Batch] = []
        self.events: list[int | str] = []
        ahead, backward = loops.ahead, Step.backward

        def copy_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
            for batch in ahead(batches, device):
                self.copied.append(batch)
                yield batch

        def watched(step: Step, batches: list[Batch]) -> dict[str, Tensor]:
            assert [id(batch) for batch in batches] == [id(self.copied[-1])]
            self.events.append(batches[0].num_tokens)
            return backward(step, batches)

        monkeypatch.setattr(loops, "ahead", copy_ahead)
        monkeypatch.setattr(Step, "backward", watched)

    def after(self, lengths: Tensor, values: Mapping[str, float | Tensor]) -> None:
        assert all(isinstance(value, Tensor) for value in values.values())  # nobody has waited for them
        assert lengths.tolist() == self.copied[-1].cu_seqlens.diff().tolist()
        self.events.append("end")


@pytest.mark.parametrize("name", ["ours", "fused", "cached"])
def test_our_batches_are_copied_ahead_and_no_loss_is_waited_for(
    name: str, work: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a rehearsal with other batches, which moves nothing: the first losses are those of a model that is new."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    sequences = work.sequences(40)
    batches = [batch.num_tokens for batch in islice(loops.our_batches(work, sequences), 20)]
    watched = Watched(monkeypatch)
    loops.LOOPS[name](work, sequences, FP32, 5, watched.after)
    assert watched.events[:15] == batches[5:]
    assert watched.events[15::2] == batches[:5]
    assert watched.events[16::2] == ["end"] * 5


def test_losses_outlive_the_replay_of_a_graph(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which writes the next ones to where these were."""
    sequences = work.sequences(40)
    expected = losses(work, sequences, loops.ours, 5)
    our_step = loops.our_step

    def replayed(*given: Any) -> Step:
        step = our_step(*given)
        for module in step.student.modules():
            if isinstance(module, torch.nn.Embedding):
                module.sparse = False  # as on a GPU
        step.use_graphs(longest=64, most=40)
        return step

    monkeypatch.setattr(graphs, "capture", lambda run, place, warm_up=2: (run, place))
    monkeypatch.setattr(loops, "our_step", replayed)
    for mine, theirs in zip(losses(work, sequences, loops.ours, 5), expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_the_teacher_is_gone_when_memory_is_counted_with_a_cache(
    work: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[weakref.ref[Live]] = []
    gone: list[bool] = []

    class Watched(Live):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            teachers.append(weakref.ref(self))

    monkeypatch.setattr(loops, "Live", Watched)
    forget_peak = loops.forget_peak

    def forget(device: torch.device) -> None:
        forget_peak(device)
        gone.extend(teacher() is None for teacher in teachers)

    monkeypatch.setattr(loops, "forget_peak", forget)
    losses(work, work.sequences(40), loops.ours_cached, 1)
    assert gone == [True]


def test_our_batches_hold_as_many_tokens_as_theirs(work: Workload) -> None:
    sequences = work.sequences(40)
    batches = [batch for batch, _ in zip(loops.our_batches(work, sequences), range(10), strict=False)]
    assert 0.75 < sum(batch.num_tokens for batch in batches) / int(sequences.offsets[-1]) < 1.25


def test_a_measurement(work: Workload) -> None:
    result = step.measure("ours", work, 3, FP32)
    json.dumps(result)
    assert len(result["losses"]) == 3 + step.WARM_UP
    parts = result["parts_ms"]
    assert list(parts) == ["data", "teacher", "student forward", "losses", "backward", "update", "gaps"]
    assert min(ms for name, ms in parts.items() if name != "gaps") > 0
    assert sum(parts.values()) == pytest.approx(result["step_ms"])


def test_rates_are_of_the_steps_that_are_timed(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes half a second, and has a sequence of three tokens and one of five."""

    def loop(work: Workload, sequences: Sequences, runtime: Runtime, steps: int, after: loops.After) -> None:
        for n in range(steps):
            after(torch.tensor([3, 5] if n >= step.WARM_UP else [100], dtype=torch.int32), {"soft": torch.tensor(n)})

    class Marks:
        count = 0

        def __init__(self, device: torch.device) -> None: ...

        def set(self) -> None:
            self.count += 1

        def seconds(self) -> list[float]:
            return [9.0] * (step.WARM_UP - 1) + [0.5] * (self.count - step.WARM_UP)

    monkeypatch.setitem(loops.LOOPS, "cached", loop)
    monkeypatch.setattr(step, "Marks", Marks)
    result = step.measure("cached", work, 4, FP32)
    assert result["losses"] == [{"soft": float(n)} for n in range(4 + step.WARM_UP)]
    assert result["step_ms"] == 500
    assert result["tokens_per_s"] == 16
    assert result["sequences_per_s"] == 4
    assert result["pairs_per_s"] == 68
    assert result["flops_per_s"] == 2 * step.model_flops(work, torch.tensor([3, 5]), cached=True)


def test_flops_by_hand() -> None:
    """BERT-base: 12 layers of 4 x 768^2 + 2 x 768 x 3072 products a token, two operations each, and attention's two
    products of 768 for each pair of tokens of a sequence; three times TinyBERT4's."""
    lengths = torch.tensor([10, 30])
    teacher = 12 * (40 * 2 * 7077888 + (100 + 900) * 2 * 2 * 768)
    student = 4 * (40 * 2 * (4 * 312**2 + 2 * 312 * 1200) + (100 + 900) * 2 * 2 * 312)
    assert step.model_flops(Workload(), lengths) == teacher + 3 * student
    assert step.model_flops(Workload(), lengths, cached=True) == 3 * student


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--text=imdb", "--text imdb: choose one of sst2, wiki"),
        ("--student=tiny", "--student tiny: choose one of bert-base, tinybert4, tinybert6"),
        ("--loops=ours,theirs", "--loops theirs: choose from published, compiled, textbrewer, ours, fused, cached"),
        ("--data=/nowhere", "no data at /nowhere/tasks/glue/sst2: pass a --data FOLDER that holds tasks/glue/sst2"),
        ("--length=2", "--length 2: must be 3 or more"),
        ("--batch_size=0", "--batch_size 0: must be 1 or more"),
        ("--steps=0", "--steps 0: must be 1 or more"),
    ],
)
def test_errors_name_the_value(option: str, message: str, texts: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        step.main(["--cpu", f"--data={texts}", option])


def test_a_folder_without_a_tokenizer_is_named(texts: Path) -> None:
    shutil.rmtree(texts / workload.TOKENIZER)
    with pytest.raises(ValueError, match=f"no data at {texts / workload.TOKENIZER}: pass a --data FOLDER"):
        Workload(data=texts).check()


def test_a_loop_that_is_not_known_is_named_before_missing_data() -> None:
    with pytest.raises(SystemExit, match="--loops theirs: choose from"):
        step.main(["--cpu", "--data=/nowhere", "--loops=theirs"])


FACTS = {"device": "a machine", "torch": "2", "allow_tf32": False, "copy_bytes_per_s": 1e9, "flops_per_s": 1e12}
RESULT = {"tokens_per_s": 10.0, "step_ms": 1.0, "peak_mib": 1.0, "flops_per_s": 1e11, "losses": []}


def test_a_loop_that_fails_is_named(
    texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = step.in_a_process
    monkeypatch.setattr(step, "in_a_process", lambda job, given: FACTS if job == "machine" else real(job, given))
    with pytest.raises(SystemExit, match="no loop ran to its end"):
        step.main(["--cpu", f"--data={texts}", "--steps=99", "--loops=published"])
    assert "published   failed: ValueError: " in capsys.readouterr().out  # so few texts


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_first_process_leaves_the_device_to_others(
    device: str, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the loops that run by default have the one with graphs among them."""
    jobs: list[str] = []

    def run(job: str, _: object) -> dict[str, Any]:
        jobs.append(job)
        return FACTS if job == "machine" else RESULT | {"loop": job}

    def refused(*_: object) -> None:
        raise AssertionError("this belongs into a process of its own")

    monkeypatch.setattr(step, "in_a_process", run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("machine_limits", "device_name", "measure"):
        monkeypatch.setattr(step, name, refused)
    out = texts / "out.json"
    step.main([f"--{device}", f"--data={texts}", f"--out={out}"])
    names = ["published", "compiled", "textbrewer", "ours", "cached", *["fused"] * (device == "gpu")]
    assert jobs == ["machine", *names]
    written = json.loads(out.read_text())
    assert written["machine"] == FACTS
    assert [result["loop"] for result in written["results"]] == names


def test_what_a_process_says_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step, "machine_limits", lambda *_: {"copy_bytes_per_s": 1e9, "flops_per_s": 1e12})
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=allowed))
        step.main(["--cpu", f"--data={tmp_path}", "--child=machine"])
        said = json.loads(capsys.readouterr().out)
        assert said.keys() == FACTS.keys()
        assert said["allow_tf32"] is allowed


def test_a_machine_that_cannot_be_measured_ends_the_program(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "in_a_process", lambda job, _: {"loop": job, "failed": "no GPU"})
    with pytest.raises(SystemExit, match="error: no GPU"):
        step.main(["--cpu", f"--data={texts}"])
