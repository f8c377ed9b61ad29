"""What holds for every loss over attention maps: layouts, tiles, memory, registration."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import RAGGED, cpu_path, each_algorithm, each_spec, operands
from on_device import DEVICE, tensor, zeros
from parity import HALF_AND_SINGLE, assert_parity, in_double, loss_and_gradients, relative_rms, sliced
from torch import Tensor

from fastdistill_kernels.attention import op, tiled
from fastdistill_kernels.attention_score_mse import joined
from fastdistill_kernels.attention_score_mse.op import _gram_pays_on_a_gpu
from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import ATTENTION_KL, ATTENTION_PROB_MSE, ATTENTION_SCORE_MSE, ATTENTION_SPECS


@each_spec
def test_order_of_sequences_does_not_matter(spec: Spec) -> None:
    inputs = spec.inputs(RAGGED, device=DEVICE)
    order = (3, 0, 4, 1, 2)
    parts = {k: v.split(RAGGED.lengths) for k, v in inputs.items() if k not in ("cu_seqlens", "max_seqlen")}
    shuffled = Shape(tuple(RAGGED.lengths[b] for b in order), RAGGED.heads).layout(torch.device(DEVICE))
    shuffled |= {k: torch.cat([v[b] for b in order]) for k, v in parts.items()}
    actual, expected = (loss_and_gradients(spec.op, i, spec.differentiable) for i in (shuffled, inputs))
    for name in spec.differentiable:
        expected[name] = torch.cat([expected[name].split(RAGGED.lengths)[b] for b in order])
    torch.testing.assert_close(actual, expected)


@each_spec
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("lengths", [(129, 3, 200), (300,)], ids=str)
def test_rows_of_several_blocks(spec: Spec, dtype: torch.dtype, lengths: tuple[int, ...]) -> None:
    """Rows that no tile holds whole."""
    assert_parity(spec, spec.inputs(Shape(lengths, heads=1, head_dim_s=26, head_dim_t=64), dtype, DEVICE))


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def spread(x: Tensor) -> Tensor:
    return torch.stack([x, x + 1], dim=-1)[..., 0]


def one_further(x: Tensor) -> Tensor:
    """Heads and tokens an odd number of elements apart."""
    return torch.cat([x[..., :1], x], dim=-1)[..., 1:]


@each_algorithm
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_views_of_any_stride(spec: Spec, dtype: torch.dtype) -> None:
    """q and k as slices of one (T, 3, heads, d) tensor, as (heads, T, d) seen through a transpose, or one of each; and
    one of them in rows that begin at odd places."""
    inputs = spec.inputs(RAGGED, dtype, DEVICE)
    expected = loss_and_gradients(spec.op, inputs, spec.differentiable)
    for ways in (
        (sliced, sliced, transposed, transposed),
        (sliced, transposed, transposed, sliced),
        (torch.clone, one_further, torch.clone, one_further),
        (one_further, torch.clone, one_further, torch.clone),
    ):
        views = inputs | {name: way(inputs[name]) for name, way in zip(inputs, ways, strict=False)}
        assert not all(x.is_contiguous() for x in operands(views))
        torch.testing.assert_close(loss_and_gradients(spec.op, views, spec.differentiable), expected)
        assert_parity(spec, views)


@each_algorithm
def test_layers_of_unlike_strides(spec: Spec) -> None:
    """One launch cannot take them as they are, nor heads whose elements lie apart."""
    inputs = spec.inputs(replace(RAGGED, layers=2), device=DEVICE)
    expected = loss_and_gradients(spec.op, inputs, spec.differentiable)
    for ways in ((sliced, transposed), (spread, spread)):
        views = {name: tuple(way(x) for way, x in zip(ways, inputs[name], strict=True)) for name in list(inputs)[:4]}
        actual = loss_and_gradients(spec.op, inputs | views, spec.differentiable)
        torch.testing.assert_close(actual, expected)


@each_spec
def test_gradients_reach_both_uses_of_one_tensor(spec: Spec) -> None:
    """The value relation passes v twice: its gradient is the sum of both."""
    inputs = spec.inputs(RAGGED, device=DEVICE)
    v_s, _, v_t, *_ = inputs

    def relation(function: Any, values: dict[str, Any]) -> dict[str, Tensor]:
        """The loss of v_s . v_s against v_t . v_t."""

        def loss(cu_seqlens: Tensor, max_seqlen: int, **v: Tensor) -> Tensor:
            return function(v[v_s], v[v_s], v[v_t], v[v_t], cu_seqlens, max_seqlen)

        return loss_and_gradients(loss, values, (v_s,))

    actual, expected = relation(spec.op, inputs), relation(spec.reference, in_double(inputs))
    torch.testing.assert_close(actual, expected, check_dtype=False, rtol=1e-4, atol=1e-7)


@each_spec
@pytest.mark.parametrize("only", [0, 1])
def test_gradient_of_one_operand_alone(spec: Spec, only: int) -> None:
    inputs, name = spec.inputs(RAGGED, device=DEVICE), spec.differentiable[only]
    both = loss_and_gradients(spec.op, inputs, spec.differentiable)
    alone = loss_and_gradients(spec.op, inputs, (name,))
    torch.testing.assert_close(alone, {"loss": both["loss"], name: both[name]}, rtol=0, atol=0)


@cpu_path
@each_spec
@pytest.mark.parametrize("elements", [1, 13, 24, 50, 3 * 49 + 1])
def test_tile_boundaries(spec: Spec, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one row per tile over ragged last blocks to several maps per tile: always the same loss."""
    inputs = in_double(spec.inputs(RAGGED))
    expected = loss_and_gradients(spec.op, inputs, spec.differentiable)
    shapes = []

    def watch(*arguments: Any) -> list[tuple[slice, slice]]:
        shapes.extend(cut := list(cut_into_tiles(*arguments)))
        return cut

    cut_into_tiles = tiled.tiles
    monkeypatch.setattr(tiled, "TILE_ELEMENTS", elements)
    for module in (tiled, joined):
        monkeypatch.setattr(module, "tiles", watch)
    actual = loss_and_gradients(spec.op, inputs, spec.differentiable)
    assert len(shapes) > 3  # one tile per run of equal lengths would be 3
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)


@cpu_path
@pytest.mark.parametrize("elements", [1, 90, 1 << 18])
def test_differences_of_scores_that_all_but_agree(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, where a score rounded by itself would be off by more than the difference."""
    monkeypatch.setattr(tiled, "TILE_ELEMENTS", elements)
    maps, n, d, scale_s, scale_t = 3, 9, 48, 0.2, 0.3  # a ratio that bfloat16 cannot hold
    generator = torch.Generator().manual_seed(0)
    q_t, k_t, noise = (torch.randn(maps, n, d, generator=generator).bfloat16() for _ in range(3))
    q_s, k_s = (scale_t / scale_s * q_t).bfloat16(), (k_t + 2**-7 * noise).bfloat16()
    operands = q_s, k_s, q_t, k_t
    exact_s, exact_t = (scale * q.double() @ k.double().mT for q, k, scale in ((q_s, k_s, 0.2), (q_t, k_t, 0.3)))
    E = exact_s - exact_t
    assert E.norm() < 0.01 * exact_t.norm()
    loss, dq, dk = joined.differences(tiled.Maps(*operands), scale_s, scale_t, True)
    assert abs(loss - E.square().sum()) < 1e-3 * E.square().sum()
    for got, expected in ((dq, 0.4 * E @ k_s.double()), (dk, 0.4 * E.mT @ q_s.double())):
        assert (got - expected).norm() < 0.004 * expected.norm()
    assert loss == joined.differences(tiled.Maps(*operands), scale_s, scale_t, False)[0]


@cpu_path
@pytest.mark.parametrize("spec", [ATTENTION_PROB_MSE, ATTENTION_KL], ids=lambda spec: spec.name)
def test_scores_as_large_as_they_may_be_are_above_an_idle_keys(spec: Spec) -> None:
    """One sequence is filled up to the length of the other."""
    inputs = spec.inputs(Shape((3, 5), heads=2, head_dim_s=8, head_dim_t=8))
    sharp = [partial(function, scale_s=1e33, scale_t=1e33) for function in (spec.op, spec.reference)]
    actual, expected = (loss_and_gradients(function, inputs, spec.differentiable) for function in sharp)
    assert expected["loss"] > 0
    for name, value in expected.items():
        assert relative_rms(actual[name], value.double()) < 1e-5, name


@pytest.mark.parametrize("spec", [ATTENTION_PROB_MSE, ATTENTION_KL], ids=lambda spec: spec.name)
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("lengths", [(16, 3), (20,), (20, 20, 3), (70, 33)], ids=str)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_key_of_a_row_can_be_seen(spec: Spec, side: str, lengths: tuple[int, ...]) -> None:
    """Its scores are all -inf, and its probabilities none, whatever places lie behind its sequence."""
    inputs = spec.inputs(Shape(lengths, heads=2, head_dim_s=8, head_dim_t=8), device=DEVICE)
    a, b = operands(inputs)[:2] if side == "student" else operands(inputs)[2:]
    b[..., 0] = 1.0
    a[3, 0, 0] = -torch.inf
    for name, value in loss_and_gradients(spec.op, inputs, spec.differentiable).items():
        assert not value.isfinite().all(), name


@cpu_path
def test_memory_grows_with_tokens_not_with_maps() -> None:
    """A process's own high-water mark, in a process of its own: 8192 tokens, whose map takes 256 MiB."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(Path(__file__).with_name("peak_memory.py")), "8192", "2048"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    of_op, of_reference = (int(line) for line in result.stdout.split())
    assert of_op < 8192 * 8192 * 4 / 8
    assert of_reference > 2 * 2048 * 2048 * 4  # the measurement does see maps where there are some


@pytest.mark.parametrize(
    ("spec", "algorithm"),
    [*((spec, "tiled") for spec in ATTENTION_SPECS), (ATTENTION_SCORE_MSE, "gram")],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
@pytest.mark.parametrize("with_grads", [True, False])
def test_registration(spec: Spec, algorithm: str, with_grads: bool) -> None:
    """In bfloat16, where a result of another dtype than it should have is seen."""
    layers = [list(x) for x in operands(spec.inputs(replace(RAGGED, layers=2), torch.bfloat16, DEVICE))]
    for x in (*layers[0], *layers[1]):
        x.requires_grad_(with_grads)
    cu_seqlens, max_seqlen = RAGGED.layout(torch.device(DEVICE)).values()
    op = getattr(torch.ops.fastdistill, spec.name).default
    arguments = (*layers, cu_seqlens, max_seqlen, 0.3, 0.2, "tokens", algorithm, with_grads)
    torch.library.opcheck(op, arguments)
    outputs = op(*arguments)
    assert [output.requires_grad for output in outputs] == [with_grads, False, False]
    if with_grads:
        detached = [[x.detach() for x in layer] for layer in layers]
        backward = getattr(torch.ops.fastdistill, f"{spec.name}_backward").default
        torch.library.opcheck(backward, (tensor(2.0), *detached, *arguments[4:8], algorithm, *outputs[1:]))


@cpu_path
@each_spec
def test_no_gradient_is_made_when_none_is_wanted(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = spec.inputs(RAGGED)
    wanted = []

    def watch(x: Tensor, num_layers: int, with_grads: bool) -> Tensor:
        wanted.append(with_grads)
        return empty_gradients(x, num_layers, with_grads)

    empty_gradients = op.empty_gradients
    monkeypatch.setattr(op, "empty_gradients", watch)
    spec.op(**inputs)
    operands(inputs)[1].requires_grad_()
    spec.op(**inputs)
    with torch.no_grad():
        spec.op(**inputs)
    assert wanted == [False, False, True, True, False, False]


@each_spec
def test_autocast_does_not_lower_the_arithmetic(spec: Spec) -> None:
    inputs = spec.inputs(RAGGED, device=DEVICE)
    expected, definition = loss_and_gradients(spec.op, inputs, spec.differentiable), spec.reference(**inputs)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        actual = loss_and_gradients(spec.op, inputs, spec.differentiable)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        torch.testing.assert_close(spec.reference(**inputs), definition, rtol=0, atol=0)


@each_spec
def test_second_derivative_is_refused(spec: Spec) -> None:
    """The saved gradients are constants to autograd, so a second derivative would silently lack a term."""
    inputs = spec.inputs(RAGGED, device=DEVICE)
    leaf = operands(inputs)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(spec.op(**inputs).square(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        gradient.sum().backward()


@each_algorithm
def test_a_teacher_that_requires_grad_is_a_constant(spec: Spec) -> None:
    inputs = spec.inputs(RAGGED, device=DEVICE)
    a_s, _, *teacher = operands(inputs)
    for x in teacher:
        x.requires_grad_()
    assert not spec.op(**inputs).requires_grad
    a_s.requires_grad_()
    spec.op(**inputs).backward()
    assert a_s.grad is not None
    assert all(x.grad is None for x in teacher)


@each_spec
def test_layers_from_generators(spec: Spec) -> None:
    inputs = spec.inputs(replace(RAGGED, layers=2), device=DEVICE)
    once = {name: iter(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
    torch.testing.assert_close(spec.op(**once), spec.op(**inputs))


@each_spec
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cu_seqlens": [0, 35]}, r"cu_seqlens=\[0, 35\]: pass cumulative lengths as a tensor"),
        ({"cu_seqlens": torch.zeros(2, dtype=torch.int32, device="meta")}, f"cu_seqlens is on meta.* on {DEVICE}"),
        (dict.fromkeys((2, 3), torch.zeros(35, 3, 16, device="meta")), f"a teacher's operand is on meta.* on {DEVICE}"),
        ({1: torch.zeros(35, 3, 8, device="meta")}, f"a student's operand is on meta.* on {DEVICE}"),
        (dict.fromkeys((0, 1), torch.zeros(35, 3, 0, device=DEVICE)), r"student operands are \(35, 3, 0\): give"),
        (dict.fromkeys(range(4), torch.zeros(35, 0, 8, device=DEVICE)), r"student operands are \(35, 0, 8\): give"),
    ],
)
def test_operands_that_cannot_be_compared_are_refused(spec: Spec, change: dict[Any, Any], message: str) -> None:
    inputs = spec.inputs(RAGGED, device=DEVICE)
    names = list(inputs)
    with pytest.raises(ValueError, match=message):
        spec.op(**{**inputs, **{names[k] if isinstance(k, int) else k: v for k, v in change.items()}})


def test_gram_is_chosen_where_it_pays_and_is_exact_enough() -> None:
    def chosen(lengths: tuple[int, ...], *dtypes: torch.dtype) -> bool:
        q_s, q_t = (zeros(sum(lengths), 1, d, dtype=dtype) for d, dtype in zip((26, 64), dtypes, strict=True))
        bounds = zeros(len(lengths) + 1, dtype=torch.int32)
        return _gram_pays_on_a_gpu([q_s], [q_t], bounds, max(lengths))

    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    assert chosen((512,) * 4, bf16, bf16)
    assert chosen((512, 100, 100), bf16, bf16)
    assert not chosen((100,) * 4, bf16, bf16)
    assert not chosen((512,) * 4, fp16, fp16)
    assert not chosen((512,) * 4, fp16, bf16)
    assert not chosen((512,) * 4, fp32, bf16)
    assert not chosen((512,) * 4, bf16, fp32)
    assert not chosen((512, *(10,) * 40), bf16, bf16)  # room is made for 41 maps of 512
