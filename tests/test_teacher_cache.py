"""A teacher that answers from files says what the living one says, and the files are its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from filelock import FileLock

from fastdistill import teacher_cache
from fastdistill.data.packing import NO_LABEL, Loader, Sequences
from fastdistill.models.capture import Taps
from fastdistill.models.encoder import Encoder
from fastdistill.models.teacher import Live
from fastdistill.recipe import HeadKind
from fastdistill.teacher_cache import Cached, cached, get, names_of
from tests.cached import TAPS, fill, text
from tests.steps import room_for
from tests.tiny import make_teacher


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "TOKENS_PER_SHARD", 100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher"), head=True)


@pytest.fixture
def live(folder: Path) -> Live:
    return Live(Encoder.load(folder, head="finetuned"))


def dead(*_: object) -> NoReturn:
    raise AssertionError("the teacher was asked")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_answers_are_the_living_teachers_in_any_order(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    live = Live(Encoder.load(folder, head="finetuned"), dtype)
    cache = fill(tmp_path, live)
    assert len(cache.bounds) > 4
    loader, seen = Loader(cache.data, 64, seed=3), 0
    for (epoch, batch), _ in zip(loader.batches(), range(30), strict=False):
        said, kept = live(batch, TAPS), cache(batch, TAPS)
        assert kept.scaling == said.scaling
        for name in names_of(TAPS):
            torch.testing.assert_close(get(kept, name).float(), get(said, name).float(), rtol=0.02, atol=0.02)
        seen = epoch
    assert seen >= 1


def test_the_same_sequence_has_the_same_answer_to_the_bit_in_every_batch(live: Live, tmp_path: Path) -> None:
    cache = fill(tmp_path, live)
    found: dict[int, torch.Tensor] = {}
    for seed in range(2):
        for (_, batch), _ in zip(Loader(cache.data, 70, seed).batches(), range(12), strict=False):
            assert batch.indices is not None
            answers = cache(batch, TAPS).hidden[3].split(batch.cu_seqlens.diff().tolist())
            for index, answer in zip(batch.indices, answers, strict=True):
                assert torch.equal(found.setdefault(int(index), answer), answer)


def test_nothing_is_asked_twice(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, live, Taps(hidden=frozenset({3})))
    asked: list[Taps] = []
    forward = live.forward
    monkeypatch.setattr(live, "forward", lambda batch, taps: asked.append(taps) or forward(batch, taps))
    fill(tmp_path, live, Taps(hidden=frozenset({3}), logits=True))
    asked.remove(Taps(hidden=frozenset({3}), logits=True))  # once, to be timed
    assert set(asked) == {Taps(logits=True)}
    monkeypatch.setattr(live, "forward", dead)
    fill(tmp_path, live, Taps(hidden=frozenset({3}), logits=True))


def test_answers_do_not_depend_on_what_was_lacking(live: Live, folder: Path, tmp_path: Path) -> None:
    """One shard lacks shallow hidden states alone, another more; then a run asks for deeper ones."""
    whole = Cached(tmp_path, live, text())
    fill(tmp_path, live)
    for shard, name in ((0, "hidden.0"), (0, "hidden.3"), (0, "logits"), (2, "hidden.0"), (3, "hidden.3")):
        whole._path(shard, name).unlink()
    fill(tmp_path, Live(Encoder.load(folder, head="finetuned")), verify=60)
    fill(tmp_path, Live(Encoder.load(folder, head="finetuned")), TAPS | Taps(hidden=frozenset({1})), verify=60)


def test_another_head_has_other_logits_alone(live: Live, folder: Path, tmp_path: Path) -> None:
    """And none has what is below the head."""
    shards = range(len(fill(tmp_path, Live(Encoder.load(folder)), replace(TAPS, logits=False)).bounds) - 1)
    lacking = [(shard, ["logits"]) for shard in shards]
    assert Cached(tmp_path, live, text()).open(TAPS) == lacking
    fill(tmp_path, live)
    assert Cached(tmp_path, live, text()).open(TAPS) == []
    live.encoder.model.get_submodule("classifier").bias.add_(1.0)
    assert Cached(tmp_path, live, text()).open(TAPS) == lacking
    fill(tmp_path, live, verify=60)


def test_another_teacher_or_text_has_another_folder(live: Live, folder: Path, tmp_path: Path) -> None:
    first = Cached(tmp_path, live, text())
    other_text = Cached(tmp_path, live, text(seed=1))
    in_bf16 = Cached(tmp_path, Live(Encoder.load(folder, head="finetuned"), torch.bfloat16), text())
    moved = Encoder.load(folder, head="finetuned")
    with torch.no_grad():
        next(moved.parameters())[0, 0] += 1
    other_teacher = Cached(tmp_path, Live(moved), text())
    config = Encoder.load(folder, head="finetuned")
    config.model.config.layer_norm_eps = 0.1
    other_config = Cached(tmp_path, Live(config), text())
    same_lengths = text()
    same_lengths.input_ids[3] += 1
    other_tokens = Cached(tmp_path, live, same_lengths)
    typed = Cached(tmp_path, live, replace(text(), token_type_ids=np.ones(text().offsets[-1], np.int8)))
    cut = text()
    cut.offsets[1] += 1  # the same tokens, one of them in another sequence
    other_bounds = Cached(tmp_path, live, cut)
    caches = (first, other_text, in_bf16, other_teacher, other_config, other_tokens, typed, other_bounds)
    assert len({cache.folder for cache in caches}) == 8
    assert Cached(tmp_path, live, text()).folder == first.folder


def test_shards_that_lack_most_come_first(live: Live, tmp_path: Path) -> None:
    """Since the size of the others is judged by the first."""
    cache = fill(tmp_path, live)
    for shard, names in ((0, ["q.2"]), (1, ["q.2", "k.2"]), (2, ["k.2"])):
        for name in names:
            cache._path(shard, name).unlink()
    lacking = Cached(tmp_path, live, text()).open(TAPS)
    assert [(shard, len(names)) for shard, names in lacking] == [(1, 2), (0, 1), (2, 1)]


def test_a_teacher_that_lacks_memory_is_asked_about_less_at_once(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fill(tmp_path / "whole", live)
    room_for(20, Live, monkeypatch)
    said: list[str] = []
    found = cached(tmp_path, live, text(), TAPS, tokens_per_batch=64, epochs=3, verify=0, say=said.append)
    failed = [line for line in said if "out of memory" in line]
    assert failed[0] == "teacher cache: out of memory with 64 tokens at once: going on with 32"
    assert len(failed) == 2
    for place, answer in expected.answers.items():
        torch.testing.assert_close(found.answers[place], answer)


def test_one_who_waits_for_another_run_is_told(live: Live, tmp_path: Path) -> None:
    cache = Cached(tmp_path, live, text())
    lock = FileLock(tmp_path / f".{cache.folder.name}.lock")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        lock.release()

    lock.acquire()
    cached(tmp_path, live, text(), TAPS, tokens_per_batch=64, epochs=3, verify=0, say=say)
    assert said[0] == f"teacher cache: waiting for another run that makes {cache.folder}"


def test_estimate_is_said_before_the_rest_is_made(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    ask = Cached._ask

    def counted(self: Cached, live: Live, shard: int, *rest: Any) -> dict[str, torch.Tensor]:
        made.append(shard)
        return ask(self, live, shard, *rest)

    monkeypatch.setattr(Cached, "_ask", counted)
    said: list[tuple[int, str]] = []
    lengths = np.full(9000, 10)
    data = Sequences(np.full(90000, 7), np.concatenate(([0], lengths.cumsum())))
    monkeypatch.setattr(teacher_cache, "TOKENS_PER_SHARD", 15000)
    fill(tmp_path, live, Taps(hidden=frozenset({3})), data)
    (Cached(tmp_path, live, data).folder / "00002" / "hidden.3.safetensors").unlink()
    made.clear()
    said: list[tuple[int, str]] = []
    cached(
        tmp_path, live, data, TAPS,
        tokens_per_batch=500, epochs=3, verify=0, say=lambda words: said.append((len(made), words)),
    )  # fmt: skip
    ((when, what),) = said
    assert when == 1
    assert len(made) == 6
    assert "6 of 6 shards to make" in what
    size = 90000 * 2 * (24 + 3 * 24) + 9000 * 4 * 2 + 15000 * 2 * 24  # hidden.0, q, k, v; logits; what was lost
    assert float(what.split("about ")[1].split(" MiB")[0]) == pytest.approx(size / 2**20, abs=0.5)
    made_now = Cached(tmp_path, live, data)
    for shard, name in [(0, "q.2"), (0, "k.2"), *((shard, "hidden.0") for shard in range(1, 6))]:
        made_now._path(shard, name).unlink()
    said.clear()
    cached(
        tmp_path, live, data, TAPS,
        tokens_per_batch=500, epochs=3, verify=0, say=lambda words: said.append((len(made), words)),
    )  # fmt: skip
    assert "about 5 MiB" in said[0][1]  # 7 * 15,000 * 2 * 24 bytes, of a tap that the first does not lack too


@pytest.mark.parametrize(
    ("asking", "reading", "expected"), [(1.0, 0.0, "about 180 s shorter"), (0.1, 1.0, "no shorter, for to read takes")]
)
def test_the_gain_is_that_of_reading_over_asking(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asking: float, reading: float, expected: str
) -> None:
    clock, forward, sent = [0.0], live.forward, teacher_cache.sent

    def later(seconds: float, value: Any) -> Any:
        clock[0] += seconds
        return value

    monkeypatch.setattr(teacher_cache, "TOKENS_PER_SHARD", 15000)
    monkeypatch.setattr(teacher_cache.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(live, "forward", lambda *args: later(asking, forward(*args)))
    monkeypatch.setattr(teacher_cache, "sent", lambda *args: later(reading, sent(*args)))
    data = Sequences(np.full(90000, 7), np.arange(0, 90001, 10))
    said: list[str] = []
    taps = Taps(hidden=frozenset({3}))
    cached(tmp_path, live, data, taps, tokens_per_batch=500, epochs=3, verify=0, say=said.append)
    assert f"each of 3 epochs is {expected}" in said[0]


def test_a_long_text_has_larger_shards_and_not_more(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(Cached(tmp_path, live, text()).bounds) - 1 > 3
    monkeypatch.setattr(teacher_cache, "MOST_SHARDS", 3)
    assert len(Cached(tmp_path, live, text()).bounds) - 1 == 3


@pytest.mark.parametrize("factor", [1e6, 1e-7])
def test_numbers_beyond_float16_stay_float32(folder: Path, tmp_path: Path, factor: float) -> None:
    encoder = Encoder.load(folder, head="finetuned")
    with torch.no_grad():
        encoder.get_parameter("model.bert.encoder.layer.2.output.LayerNorm.weight").mul_(factor)
        encoder.get_parameter("model.bert.encoder.layer.1.attention.self.key.weight").mul_(factor**2)
        encoder.get_parameter("model.bert.encoder.layer.1.attention.self.key.bias").zero_()
    live = Live(encoder)
    cache, batch = fill(tmp_path, live), next(Loader(text(), 64, 0).batches())[1]
    assert cache.answers[0, "hidden.3"].dtype == torch.float32
    assert cache.answers[0, "q.2"].dtype == torch.float16
    assert cache.answers[0, "k.2"].dtype == torch.float32
    kept, said = cache(batch, TAPS), live(batch, TAPS)
    torch.testing.assert_close(kept.hidden[3] / factor, said.hidden[3] / factor)
    # losses compare them at once
    assert {x.dtype for x in (*kept.hidden.values(), kept.q[2], kept.k[2], kept.v[4])} == {torch.float32}


def test_shards_of_two_dtypes_are_read_in_the_wider(live: Live, tmp_path: Path) -> None:
    cache, taps = fill(tmp_path, live), Taps(hidden=frozenset({0, 3}))
    batch = next(Loader(text(), 2000, 0).batches())[1]
    halved = cache(batch, taps)
    cache.answers[1, "hidden.3"] = cache.answers[1, "hidden.3"].float()
    mixed = cache(batch, taps)
    for layer in (0, 3):
        assert (halved.hidden[layer].dtype, mixed.hidden[layer].dtype) == (torch.float16, torch.float32)
        assert torch.equal(halved.hidden[layer].float(), mixed.hidden[layer])


@pytest.mark.parametrize("kind", ["tagging", "span"])
@pytest.mark.parametrize("labelled", [True, False])
def test_logits_of_tokens_are_kept_for_those_that_have_them(
    folder: Path, kind: HeadKind, labelled: bool, tmp_path: Path
) -> None:
    """Every third token is labelled, so that sequences have none, one or several such tokens."""
    live = Live(Encoder.load(folder, head="fresh", kind=kind, num_labels=2))
    data = text()
    if labelled:
        labels = np.where(np.arange(len(data.input_ids)) % 3 == 0, 1, NO_LABEL)
        data = replace(data, token_labels=labels)
    cache, taps = fill(tmp_path, live, Taps(logits=True), data), Taps(hidden=frozenset(), logits=True)
    assert len(cache.bounds) > 4
    for _, (_, batch) in zip(range(20), Loader(data, 64, seed=3).batches(), strict=False):
        said, kept = live(batch, taps).logits, cache(batch, taps).logits
        assert said is not None
        assert kept is not None
        rows = batch.num_tokens if kind == "span" or not labelled else int((batch.input_ids > 0)[batch.labelled].sum())
        assert kept.shape == (rows, 2)
        torch.testing.assert_close(kept, said, rtol=1e-4, atol=1e-5)
    again = Cached(tmp_path, live, data)
    assert again.open(Taps(logits=True)) == []
