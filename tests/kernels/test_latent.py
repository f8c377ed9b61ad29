"""The engine's whole latent loss of a step: its launches are few, and one CUDA graph holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import assert_replays
from torch import Tensor

pytest.importorskip("transformers")
from fastdistill.batch import Batch
from fastdistill.losses.objective import Objective
from fastdistill.models.capture import Captured
from fastdistill.stages import LATENT
from fastdistill_kernels.device import INTERPRETED

FREE = set(
    "empty empty_strided empty_like new_empty view as_strided unbind select slice expand to detach unsqueeze squeeze "
    "alias transpose t resolve_conj lift_fresh".split()
)


def count(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """(result, launches of a call): kernels of ours, which do not run, and operations of PyTorch that are no views."""
    from fastdistill_kernels.attention import kernel as attention
    from fastdistill_kernels.attention_score_mse import kernel as gram
    from fastdistill_kernels.hidden_mse import kernel as hidden
    from fastdistill_kernels.shared import kernel as shared

    launched: list[str] = []

    class Counted:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            return lambda *_, **__: launched.append(self.name)

    with monkeypatch.context() as patch, torch.profiler.profile() as profile:
        for module in (attention, gram, hidden, shared):
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                patch.setattr(module, name, Counted(name))
        result = call()
    leaves = [event.name for event in profile.events() if event.name.startswith("aten::") and not event.cpu_children]
    return result, [*launched, *(name for name in leaves if name.removeprefix("aten::") not in FREE)]


class Model:
    def __init__(self, layers: int, size: int) -> None:
        self.num_hidden_layers, self.num_attention_heads, self.hidden_size = layers, 12, size

    def captured(self, layers: list[int], tokens: int, device: str, grad: bool) -> Captured:
        def states(*shape: int) -> Tensor:
            return torch.randn(tokens, *shape, device=device, dtype=torch.bfloat16).requires_grad_(grad)

        hidden = {n: states(self.hidden_size) for n in (0, *layers)}
        q, k = ({n: states(12, self.hidden_size // 12) for n in layers} for _ in range(2))
        return Captured(hidden=hidden, q=q, k=k, scaling=0.2)


def latent(lengths: tuple[int, ...], device: str) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """What computes the loss, and what it is differentiated by: TinyBERT4 against BERT-base."""
    student, teacher = Model(4, 312), Model(12, 768)
    objective = Objective(LATENT, ((1, 3), (2, 6), (3, 9), (4, 12)), student, teacher).to(device)
    bounds, tokens = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).to(device), sum(lengths)
    ids = torch.zeros(tokens, dtype=torch.int64, device=device)
    batch = Batch(ids, ids, ids, bounds, max(lengths))
    small = student.captured([1, 2, 3, 4], tokens, device, grad=True)
    large = teacher.captured([3, 6, 9, 12], tokens, device, grad=False)
    leaves = [*small.hidden.values(), *small.q.values(), *small.k.values(), *objective.parameters()]
    return lambda: objective(small, large, batch)[0], leaves


@pytest.mark.skipif(not INTERPRETED, reason="kernels are not interpreted")
@pytest.mark.parametrize("lengths", [(3, 5), (300, 9), (2000, 100)], ids=["tiled", "gram", "stretches"])
def test_few_launches(lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    loss, leaves = latent(lengths, "cpu")
    value, forward = count(loss, monkeypatch)
    _, backward = count(lambda: torch.autograd.grad(value, leaves), monkeypatch)
    assert ("gram_kernel" in forward, "multiply_kernel" in forward) == (max(lengths) > 200, max(lengths) > 1024)
    assert 6 <= len(forward) <= 12, " ".join(forward)
    assert 6 <= len(backward) <= 16, " ".join(backward)


@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("lengths", [(3, 128, 50), (300, 9), (2000, 100)], ids=["tiled", "gram", "stretches"])
def test_one_graph_holds_a_step(lengths: tuple[int, ...]) -> None:
    """Captured, then replayed with other student states: forward, backward, nothing waits for the host."""
    loss, leaves = latent(lengths, "cuda")

    def passes() -> tuple[Tensor, ...]:
        value = loss()
        return value.detach(), *torch.autograd.grad(value, leaves)

    def change() -> None:
        for leaf in leaves:
            leaf.mul_(0.5)

    assert_replays(passes, change)
