"""What can be said of the kernels only where they run: outputs written whole, launches counted, ways that agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from parity import in_double, loss_and_gradients, relative_rms
from torch import Tensor

from fastdistill.batch import Batch
from fastdistill.losses.objective import Objective
from fastdistill.models.capture import Captured
from fastdistill.stages import LATENT
from fastdistill_kernels import attention_score_mse
from fastdistill_kernels.device import INTERPRETED
from fastdistill_kernels.hidden_mse.op import DISTANCES
from fastdistill_kernels.spec import Shape, Spec
from fastdistill_kernels.specs import ATTENTION_SCORE_MSE, SPECS

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are not interpreted")

RAGGED = Shape((1, 2, 5, 17, 33), heads=2, head_dim_s=26, head_dim_t=64, layers=2, classes=7)


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("shape", [RAGGED, Shape((0, 3, 0, 65)), Shape((64,) * 2)], ids=["ragged", "gaps", "full"])
def test_every_output_is_written_whole(spec: Spec, shape: Shape) -> None:
    inputs = spec.inputs(shape)
    expected = loss_and_gradients(spec.op, inputs, spec.differentiable)
    with poisoned():
        assert torch.empty(3).isnan().all()
        actual = loss_and_gradients(spec.op, inputs, spec.differentiable)
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name
        assert value.isfinite().all(), name


def gram(**values: Any) -> Tensor:
    return attention_score_mse(**values, algorithm="gram")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gram_agrees_with_the_definition(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a map has several stretches."""
    from fastdistill_kernels.attention_score_mse import kernel

    monkeypatch.setattr(kernel, "STRETCH", 64)
    inputs = ATTENTION_SCORE_MSE.inputs(Shape((3, 0, 64, 150), heads=2, head_dim_s=26, head_dim_t=32, layers=2), dtype)
    actual = loss_and_gradients(gram, inputs, ("q_s", "k_s"))
    truth = loss_and_gradients(ATTENTION_SCORE_MSE.reference, in_double(inputs), ("q_s", "k_s"))
    bound = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    assert {name: relative_rms(actual[name], truth[name]) < bound for name in truth} == dict.fromkeys(truth, True)


def test_gram_keeps_its_digits_where_student_and_teacher_all_but_agree() -> None:
    """At a mean squared error of 1e-3 large numbers cancel; what is left is good to a few parts in a thousand."""
    q, k = torch.randn(2, 128, 2, 32, generator=torch.Generator().manual_seed(0))
    noise = 0.02 * torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    cu_seqlens = torch.tensor([0, 128], dtype=torch.int32)
    inputs = {"q_s": q + noise, "k_s": k, "q_t": q, "k_t": k, "cu_seqlens": cu_seqlens, "max_seqlen": 128}
    truth = loss_and_gradients(ATTENTION_SCORE_MSE.reference, in_double(inputs), ("q_s", "k_s"))
    assert truth["loss"] < 1e-3
    actual = loss_and_gradients(gram, inputs, ("q_s", "k_s"))
    assert {name: relative_rms(actual[name], truth[name]) < 2e-3 for name in truth} == dict.fromkeys(truth, True)


FREE = set(
    "empty empty_strided empty_like new_empty view as_strided unbind select slice expand to detach unsqueeze squeeze "
    "alias transpose t resolve_conj lift_fresh".split()
)


def count(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """(result, launches of a call): kernels of ours, which do not run, and operations of PyTorch that are no views."""
    from fastdistill_kernels.attention import kernel as attention
    from fastdistill_kernels.hidden_mse import kernel as hidden
    from fastdistill_kernels.shared import kernel as shared

    launched: list[str] = []

    class Counted:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            return lambda *_, **__: launched.append(self.name)

    with monkeypatch.context() as patch, torch.profiler.profile() as profile:
        for module in (attention, hidden, shared):
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                patch.setattr(module, name, Counted(name))
        result = call()
    leaves = [event.name for event in profile.events() if event.name.startswith("aten::") and not event.cpu_children]
    return result, [*launched, *(name for name in leaves if name.removeprefix("aten::") not in FREE)]


class Model:
    def __init__(self, layers: int, size: int) -> None:
        self.num_hidden_layers, self.num_attention_heads, self.hidden_size = layers, 12, size

    def captured(self, layers: list[int], grad: bool) -> Captured:
        def states(*shape: int) -> Tensor:
            return torch.zeros(shape, requires_grad=grad)

        head = self.hidden_size // 12
        hidden = {n: states(8, self.hidden_size) for n in (0, *layers)}
        q, k = ({n: states(8, 12, head) for n in layers} for _ in range(2))
        return Captured(hidden=hidden, q=q, k=k, scaling=0.2)


def test_the_latent_loss_of_a_step_takes_few_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = Model(4, 312), Model(12, 768)
    objective = Objective(LATENT, ((1, 3), (2, 6), (3, 9), (4, 12)), student, teacher)
    ids = torch.zeros(8, dtype=torch.int64)
    batch = Batch(ids, ids, ids, torch.tensor([0, 3, 8], dtype=torch.int32), 5)
    small, large = student.captured([1, 2, 3, 4], True), teacher.captured([3, 6, 9, 12], False)
    (loss, _), forward = count(lambda: objective(small, large, batch), monkeypatch)
    leaves = [*small.hidden.values(), *small.q.values(), *small.k.values(), *objective.parameters()]
    _, backward = count(lambda: torch.autograd.grad(loss, leaves), monkeypatch)
    assert 6 <= len(forward) <= 12, " ".join(forward)
    assert 6 <= len(backward) <= 16, " ".join(backward)


def test_registration_of_the_other_ops() -> None:
    """Those of attention are checked in test_tiled.py."""
    ops = torch.ops.fastdistill
    states = [torch.randn(5, 8).requires_grad_() for _ in range(2)]
    weight, bias = torch.randn(16, 8).requires_grad_(), torch.randn(16).requires_grad_()
    targets = [torch.randn(5, 16) for _ in range(2)]
    for distance in DISTANCES:
        hidden = (states, targets, [weight], [bias], 80, distance, torch.float32, True)
        torch.library.opcheck(ops.hidden_mse.default, hidden)
    z_s, z_t = torch.randn(4, 7).requires_grad_(), torch.randn(4, 7)
    optional = (torch.tensor([1, -100, 3, 0]), torch.tensor([0, 1, 3]), torch.rand(4))
    for some in (optional, (None, None, None)):
        inputs = (*some, 7, -100, [2.0, 3.0, 6.0, 1.0, 0.5])
        torch.library.opcheck(ops.soft_cross_entropy.default, (z_s, z_t, *inputs, True, False))
        # the gradient that leaves here would be written to in the backward pass; the public function keeps it to itself
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(ops.soft_cross_entropy.default, (z_s, z_t, *inputs, True, True), test_utils=tests)
        logits = z_s.detach(), z_t
        _, _, gradient, *saved = ops.soft_cross_entropy(*logits, *inputs, True, True)
        incoming = (torch.ones(()), None, *logits, *some, *saved, *inputs[3:])
        torch.library.opcheck(ops.soft_cross_entropy_backward.default, incoming)
        torch.library.opcheck(ops.soft_cross_entropy_correct.default, (gradient, *incoming))
