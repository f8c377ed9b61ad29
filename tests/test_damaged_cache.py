"""What lies in the folder of a cache and is not what the teacher said is refused, and made anew."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastdistill import teacher_cache
from fastdistill.data.packing import Sequences
from fastdistill.machine import Portion
from fastdistill.models.encoder import Encoder
from fastdistill.models.teacher import Live
from fastdistill.teacher_cache import ANSWER, Cached, cached
from tests.cached import TAPS, fill, put_wrong, text
from tests.tiny import make_teacher


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "TOKENS_PER_SHARD", 100)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    return Live(Encoder.load(make_teacher(tmp_path_factory.mktemp("teacher"), head=True), head="finetuned"))


def damage(path: Path, harm: str, stale: Path) -> None:
    with safe_open(path, framework="pt") as file:
        about, whole = file.metadata(), file.get_tensor(ANSWER).clone()
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    files = {"torn": content[:-5], "bit": flipped, "empty": b"", "stale": stale.read_bytes()}
    tensors = {"short": whole[:-1], "narrow": whole[:, :1], "integers": whole.int(), "scalar": torch.tensor(1.0)}
    changes = {
        "unscaled": {"scaling": "0.2x"},
        "rescaled": {"scaling": "0.6"},
    }
    path.unlink()
    if harm in files:
        path.write_bytes(files[harm])
    elif harm in tensors:
        save_file({ANSWER: tensors[harm].clone()}, path, about)
    elif harm in changes:
        save_file({ANSWER: whole}, path, about | changes[harm])
    elif harm == "untold":
        save_file({ANSWER: whole}, path, {name: value for name, value in about.items() if name != "scaling"})


HARMS = [
    "torn", "missing", "bit", "empty", "stale", "short", "narrow", "integers", "scalar", "fewer", "unscaled",
    "rescaled", "untold",
]  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_shard_is_made_anew(harm: str, live: Live, tmp_path: Path) -> None:
    """Alone, and as it was; another text's shard of as many tokens is damage too."""
    cache = fill(tmp_path, live)
    path = cache._path(2, "q.2")
    whole = load_file(path)[ANSWER].clone()
    other = text()
    other.input_ids[::3] = 7
    if harm == "fewer":
        put_wrong(cache, 2, "q.2", lambda answer: answer[:-1].clone())
    else:
        damage(path, harm, fill(tmp_path, live, data=other)._path(2, "q.2"))
    again = Cached(tmp_path, live, text())
    assert again.open(TAPS) == [(2, ["q.2"])]
    assert list(again.fill(live, [(2, ["q.2"])], Portion(64))) == [{"q.2": whole.nbytes}]
    assert again.open(TAPS) == []
    assert torch.equal(load_file(path)[ANSWER], whole)


def test_a_file_in_the_place_of_another_is_made_anew(live: Live, tmp_path: Path) -> None:
    """Of another tap, or of sequences as long."""
    data = Sequences(np.random.default_rng(0).integers(5, 20, 600), np.arange(0, 601, 10))
    expected = fill(tmp_path, live, data=data)
    at = expected._path
    answers = {place: answer.clone() for place, answer in expected.answers.items()}
    shutil.copy(at(2, "k.2"), at(2, "q.2"))
    shutil.copy(at(1, "k.2"), at(3, "k.2"))
    assert sorted(Cached(tmp_path, live, data).open(TAPS)) == [(2, ["q.2"]), (3, ["k.2"])]
    found = fill(tmp_path, live, data=data, verify=60)
    for place, answer in answers.items():
        torch.testing.assert_close(found.answers[place], answer)


def test_what_is_no_file_is_named_before_the_teacher_is_asked(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = fill(tmp_path, live)
    for name in ("q.2", "k.2"):
        cache._path(3, name).unlink()
    blocked = cache._path(3, "q.2")
    blocked.mkdir()
    monkeypatch.setattr(Cached, "_ask", lambda *_: pytest.fail("asked"))
    with pytest.raises(OSError, match=f"{re.escape(str(blocked))} is a folder where a file should be: delete it"):
        fill(tmp_path, live)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\x00", '{"format": 2, "teacher": "a", "text": "b"}', None])
def test_a_damaged_index_costs_nothing(content: str | None, live: Live, tmp_path: Path) -> None:
    cache = fill(tmp_path, live)
    index = cache.folder / "index.json"
    index.unlink() if content is None else index.write_text(content)
    again = Cached(tmp_path, live, text())
    assert again.open(TAPS) == []
    assert again.scaling == cache.scaling > 0


def test_what_lies_in_a_foreign_folder_is_refused_with_both_fingerprints_and_made_anew(
    live: Live, tmp_path: Path
) -> None:
    foreign, own = fill(tmp_path / "foreign", live, data=text(seed=1)), Cached(tmp_path, live, text())
    path = foreign._path(0, "k.2")
    save_file({ANSWER: load_file(path)[ANSWER]}, path, {"origin": "\x1b[2J" * 999, "scaling": "1", "sum": ""})
    foreign.folder.rename(own.folder)
    assert [shard for shard, _ in own.open(TAPS)] == list(range(len(own.bounds) - 1))
    said: list[str] = []
    cached(tmp_path, live, text(), TAPS, tokens_per_batch=64, epochs=3, verify=60, say=said.append)
    assert all(line.isprintable() and len(line) < 1000 for line in said)
    (told,) = (
        line for line in said if foreign.data.fingerprint() in line and "head" not in line.partition("not of")[0]
    )
    assert live.fingerprint() in told
    assert own.data.fingerprint() in told
    assert Cached(tmp_path, live, text()).open(TAPS) == []
