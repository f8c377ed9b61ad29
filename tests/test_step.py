"""A step's parts: precision, decay groups."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from fastdistill import step
from fastdistill.batch import Batch
from fastdistill.data.packing import Sequences, collate
from fastdistill.losses.objective import TERMS, Objective
from fastdistill.machine import bytes_kept
from fastdistill.models.encoder import Encoder
from fastdistill.models.teacher import Live
from fastdistill.recipe import Losses, Optim, Stage
from fastdistill.step import Runtime, make_optimizer
from fastdistill_kernels.soft_cross_entropy import chunked
from tests.peak import PeakBytes
from tests.steps import ALL, LACKING, give_out, text, whole_step
from tests.tiny import make_teacher, tiny_recipe


def test_weight_decay_spares_biases_and_norms() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    decayed, spared = make_optimizer(Optim(weight_decay=0.3), model).param_groups
    assert {tuple(p.shape) for p in decayed["params"]} == {(5, 4), (4, 4)}
    assert [p.ndim for p in spared["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)


def test_runtime_follows_the_recipe(world: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world, tmp_path)
    assert Runtime.of(replace(recipe, device="cpu", precision="bf16")).dtype == torch.bfloat16
    fp32 = Runtime.of(replace(recipe, device="cpu", precision="fp32"))
    assert fp32.dtype == torch.float32
    assert fp32.describe("fp32") == f"CPU, {torch.get_num_threads()} threads: float32"


def test_logits_are_walked_over_once_a_batch(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many batches a step has: the gradient that the forward pass makes is the one that is wanted."""
    walks, walk = [], chunked.SoftLabels._walk

    def watch(self: chunked.SoftLabels, *arguments: Any) -> Any:
        walks.append(self)
        return walk(self, *arguments)

    monkeypatch.setattr(chunked.SoftLabels, "_walk", watch)
    ours, _ = whole_step(world, Losses(soft=0.5, hard=2.0))
    batches = [collate(text(), range(n, n + 3)) for n in (0, 3, 6)]
    ours.backward(batches)
    assert len(walks) == len(batches)


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_precision_is_that_of_the_hardware(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(step, "_cpu_has_bf16", lambda: has)
    assert Runtime.of(replace(tiny_recipe(world, tmp_path), device="cpu", precision="auto")).dtype == dtype


@pytest.mark.parametrize("precision", ["auto", "bf16"])
@pytest.mark.parametrize("has", [True, False])
def test_a_gpu_that_only_emulates_bf16_has_a_teacher_in_fp16_and_says_so(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: bool, precision: Literal["auto", "bf16"]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    runtime = Runtime.of(replace(tiny_recipe(world, tmp_path), device="auto", precision=precision))
    assert runtime.device.type == "cuda"
    assert runtime.dtype == (torch.bfloat16 if has else torch.float32)
    assert runtime.teacher_dtype == (None if has else torch.float16)
    said = "bfloat16" if has else "fp32, for it has no bf16, the teacher in fp16"
    assert runtime.describe(precision) == f"GPU Tesla T4: {said}"
    assert Runtime.of(replace(tiny_recipe(world, tmp_path), device="auto", precision="fp32")).teacher_dtype is None


def test_autocast_multiplies_in_bf16_and_keeps_the_weights() -> None:
    layer = nn.Linear(4, 4)
    with Runtime(torch.device("cpu"), torch.bfloat16, 1, 1).autocast():
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    with Runtime(torch.device("cpu"), torch.float32, 1, 1).autocast():
        assert layer(torch.ones(1, 4)).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def embeddings(sparse: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 4, padding_idx=0), nn.Linear(4, 3))
    model[0].sparse = sparse
    return model


class Summed(nn.Module):
    """An objective and a student in one: the student's outputs, squared."""

    student_taps = teacher_taps = None

    def forward(self, output: torch.Tensor, *_: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return output.square().sum(), {}


def test_sparse_gradients_of_embeddings_move_the_weights_as_dense_ones_do() -> None:
    """Over several steps, each of two batches, with words that come twice, once or never; moments and decay too."""
    runtime = Runtime(torch.device("cpu"), torch.float32, 1, 1)
    optim = Optim(learning_rate=0.1, max_grad_norm=0.5)
    stage = Stage(losses=Losses(hard=1.0), optim=optim, gradient_accumulation_steps=2)
    sparse = embeddings(True)
    ours = step.Step(sparse, None, Summed(), stage, runtime)  # type: ignore[arg-type]
    dense = embeddings(False)
    optimizer = make_optimizer(optim, dense)
    for number in range(4):
        batches = [torch.randint(12 * number, 12 * number + 9, (20,)) for _ in range(2)]
        for ids in batches:
            (sparse(ids).square().sum() / 2).backward()
            (dense(ids).square().sum() / 2).backward()
        assert sparse[0].weight.grad.is_sparse
        expected = nn.utils.clip_grad_norm_(dense.parameters(), 0.5)
        assert ours.update(0.1) == pytest.approx(expected.item(), rel=1e-6)
        optimizer.step()
        optimizer.zero_grad()
        for mine, theirs in zip(sparse.parameters(), dense.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)
        assert not any(table.any() for table in ours.tables.values())
    assert sparse[0].weight.grad is None


def test_embeddings_are_made_sparse_on_cpus() -> None:
    model = embeddings(False)
    stage = Stage(losses=Losses(hard=1.0))
    step.Step(model, None, Summed(), stage, Runtime(torch.device("cpu"), torch.float32, 1, 1))  # type: ignore[arg-type]
    assert model[0].sparse


@pytest.mark.parametrize(
    "error", LACKING, ids=["gpu", "cpu", "onednn", "cublas", "numpy", "triton", "cublas handle", "capture"]
)
@pytest.mark.parametrize("normalize", ["tokens", "padded"])
def test_a_step_that_lacks_memory_has_the_same_outcome_in_pieces(
    world: Path, monkeypatch: pytest.MonkeyPatch, normalize: Literal["tokens", "padded"], error: RuntimeError
) -> None:
    batches = [collate(text(), np.arange(5)), collate(text(), np.arange(5, 10))]
    losses = replace(ALL, normalize=normalize)
    expected, _ = whole_step(world, losses)
    values = expected.backward(batches)
    ours, said = whole_step(world, losses)
    give_out(monkeypatch, ours, 15, error)
    pieced = ours.backward(batches)
    assert said == [
        "out of memory with 37 tokens at once: going on with 18",
        "out of memory with 16 tokens at once: going on with 8",
    ]
    assert set(values) == set(pieced) == {*TERMS, "loss"}
    assert all(value > 0 for value in values.values())
    for name, value in values.items():
        torch.testing.assert_close(pieced[name], value, msg=name)
    for mine, theirs in zip(ours.parameters, expected.parameters, strict=True):
        if theirs.grad is not None:
            assert mine.grad is not None
            torch.testing.assert_close(mine.grad.to_dense(), theirs.grad.to_dense(), rtol=1e-4, atol=1e-6)
    ours.backward(batches)  # it need not find out again
    assert len(said) == 2


def test_a_sequence_that_does_not_fit_alone_is_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, said = whole_step(world, ALL)
    give_out(monkeypatch, ours, 14, LACKING[0])
    with pytest.raises(ValueError, match="a single sequence of 15 tokens does not fit into memory: lower max_length"):
        ours.backward([collate(text(), np.arange(10))])
    assert all(p.grad is None for p in ours.parameters)
    assert said[-1] == "memory has no room for a single sequence: activations are not kept, but computed again"


def test_pieces_are_chosen_before_memory_runs_out(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate(text(), np.arange(10))
    ours, said = whole_step(world, ALL)
    states = 3 * sum(p.nbytes for p in ours.parameters)
    needed = states + step.ROOM * bytes_kept(lambda: ours.forward(batch), ours.parameters)
    monkeypatch.setattr(step, "free_bytes", lambda _: 1.01 * needed)
    ours.make_room(batch)
    assert ours.most_tokens == math.inf
    assert not said
    monkeypatch.setattr(step, "free_bytes", lambda _: states + 0.5 * (needed - states))
    ours.make_room(batch)
    assert ours.most_tokens == 36
    assert said == ["memory has room for some 36 tokens at once, batches have 72: going on with 36"]
    assert not ours.recomputes
    for known in (20, 10):  # as a checkpoint has it; a sequence has 15
        ours.most_tokens = known
        ours.make_room(batch)
        assert ours.most_tokens == known
    assert len(said) == 1
    assert ours.recompute()  # and is not forgotten where there is room for less than a sequence
    monkeypatch.setattr(step, "free_bytes", lambda _: states)
    ours.make_room(batch)
    assert ours.most_tokens == known


def test_moments_that_are_there_already_take_no_more_room(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate(text(), np.arange(10))
    ours, said = whole_step(world, ALL)
    needed = step.ROOM * bytes_kept(lambda: ours.forward(batch), ours.parameters)
    ours.backward([batch])
    ours.update(0.0)
    monkeypatch.setattr(step, "free_bytes", lambda _: 1.01 * needed + sum(p.nbytes for p in ours.parameters))
    ours.make_room(batch)
    assert said == []


def test_the_longest_sequences_are_measured(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = whole_step(world, ALL)
    seen: list[Batch] = []
    monkeypatch.setattr(step, "MEASURED", 20)
    monkeypatch.setattr(ours, "forward", lambda piece: piece)
    monkeypatch.setattr(step, "bytes_kept", lambda forward, _: seen.append(forward()) or 1)
    ours.make_room(collate(text(), np.arange(10)))
    assert [piece.cu_seqlens.tolist() for piece in seen] == [[0, 15]]


@pytest.mark.parametrize("shape", [(24, 8), (12, 512)], ids=["deep", "wide"])
@pytest.mark.parametrize("losses", [Losses(hard=1.0), Losses(hidden=1.0, attention=1.0)], ids=["hard", "latent"])
def test_what_is_computed_again_has_room_too(
    tmp_path: Path, losses: Losses, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is alive at once in a step fits into what it was judged by."""
    layers, width = shape
    folder = make_teacher(tmp_path, num_hidden_layers=layers, intermediate_size=width)
    models = [Encoder.load(folder, head="fresh", num_labels=2).train() for _ in range(2)]
    objective = Objective(losses, ((layers, layers),), *models)
    runtime = Runtime(torch.device("cpu"), torch.float32, 1, 1)
    ours = step.Step(models[0], Live(models[1]), objective, Stage(losses=losses), runtime, lambda _: None)
    ours.recompute()
    batch = collate(Sequences(np.full(4096, 7), np.arange(0, 4097, 64), labels=np.arange(64) % 2), np.arange(64))
    states = 3 * sum(p.nbytes for p in ours.parameters)
    room = 10_000_000
    monkeypatch.setattr(step, "free_bytes", lambda _: states + room)
    ours.make_room(batch)
    assert batch.max_seqlen < ours.most_tokens < batch.num_tokens
    assert ours.student.layers is not None
    assert len({layer.forward.func for layer in ours.student.layers}) == 1  # all are computed again
    with PeakBytes() as peak:
        ours.backward([batch])
    assert 0.2 * room < peak.most - sum(p.nbytes for p in ours.parameters) < room


def test_the_guard_sees_a_piece_with_words_to_predict(world: Path) -> None:
    ours, _ = whole_step(world, ALL)
    batch = replace(collate(text(), np.arange(10)), labelled=torch.tensor([40, 70, 71]))
    ours.most_tokens = 20
    sample = ours.sample(batch)
    assert len(ours.pieces(batch)) > 3
    assert sample.labelled is not None
    assert sample.labelled.tolist() == [13, 14]
    assert ours.sample(replace(batch, labelled=None)).num_tokens == ours.pieces(batch)[0].num_tokens


def test_memory_that_lacks_for_the_estimate_itself_is_said_as_it_is(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was tried, a piece of the batch."""
    ours, said = whole_step(world, ALL)
    monkeypatch.setattr(step, "MEASURED", 30)
    give_out(monkeypatch, ours, 16, LACKING[0])
    ours.make_room(collate(text(), np.arange(10)))
    assert said == ["out of memory with 30 tokens at once: going on with 15"]


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_room_is_made_for_what_a_padded_model_keeps_of_many_short_sequences(
    world: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """Here it keeps 10^9 bytes a place, and ten sequences of 72 tokens fill up to 15 tokens each."""
    ours, said = whole_step(world, ALL)
    encoder = ours.student if which == "student" else ours.teacher.encoder
    encoder.packs = False
    batch = collate(text(), np.arange(10))
    monkeypatch.setattr(step, "MEASURED", 40)
    monkeypatch.setattr(ours, "forward", lambda piece: piece)
    monkeypatch.setattr(step, "bytes_kept", lambda forward, _: 10**9 * forward().num_sequences * forward().max_seqlen)
    monkeypatch.setattr(step, "free_bytes", lambda _: 61 * step.ROOM * 1e9)
    ours.make_room(batch)
    assert ours.most_tokens == 60  # 61, but for gradients and moments
    assert said == ["memory has room for some 61 tokens at once, batches have 150: going on with 60"]
    assert [piece.num_sequences for piece in ours.pieces(batch)] == [4, 4, 2]


def test_activations_are_computed_again_where_a_single_sequence_would_not_fit(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = collate(text(), np.arange(10))
    expected, ours = whole_step(world, ALL)[0], whole_step(world, ALL)[0]
    for one in (expected, ours):
        one.student.train()
    kept = bytes_kept(lambda: ours.forward(batch), ours.parameters)
    monkeypatch.setattr(step, "free_bytes", lambda _: 0.0)
    ours.make_room(batch)
    assert ours.recomputes
    assert ours.most_tokens == 15
    assert bytes_kept(lambda: ours.forward(batch), ours.parameters) < 0.7 * kept
    ours.most_tokens = math.inf
    torch.manual_seed(0)  # of dropout
    values = expected.backward([batch])
    torch.manual_seed(0)
    for name, value in ours.backward([batch]).items():
        assert torch.equal(value, values[name]), name
    for mine, theirs in zip(ours.parameters, expected.parameters, strict=True):
        if theirs.grad is not None:
            assert torch.equal(mine.grad.to_dense(), theirs.grad.to_dense())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_teacher_in_half_precision_teaches_a_student_in_single(world: Path, dtype: torch.dtype) -> None:
    values, expected = (
        whole_step(world, ALL, each)[0].backward([collate(text(), np.arange(10))]) for each in (dtype, torch.float32)
    )
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value, rtol=3e-2, atol=1e-2, msg=name)


def test_other_errors_are_not_taken_for_a_lack_of_memory(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, said = whole_step(world, ALL)
    give_out(monkeypatch, ours, 1, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ours.backward([collate(text(), np.arange(10))])
    assert said == []


def test_pieces_are_whole_sequences_with_all_that_belongs_to_them() -> None:
    batch = collate(text(), np.arange(10))
    pieces = batch.split(16)
    assert batch.split(math.inf)[0].num_sequences == 10
    assert max(piece.num_tokens for piece in pieces) <= 16
    assert {piece.max_seqlen for piece in pieces} == {15}
    assert sum(int(piece.num_pairs) for piece in pieces) == int(batch.num_pairs)
    for name in ("input_ids", "position_ids", "token_type_ids", "labels", "indices"):
        parts = [torch.as_tensor(getattr(piece, name)) for piece in pieces]
        assert torch.equal(torch.cat(parts), torch.as_tensor(getattr(batch, name)))
    assert torch.equal(torch.cat([piece.cu_seqlens.diff() for piece in pieces]), batch.cu_seqlens.diff())
    assert all(piece.cu_seqlens[0] == 0 for piece in pieces)
    assert [piece.num_tokens for piece in batch.split(1)] == batch.cu_seqlens.diff().tolist()
