"""The engine's whole latent loss of a step: its launches are few, and one CUDA graph holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import assert_replays
from launches import count
from torch import Tensor

pytest.importorskip("transformers")
from fastdistill.batch import Batch
from fastdistill.losses.objective import Objective
from fastdistill.models.capture import Captured
from fastdistill.stages import LATENT
from fastdistill_kernels.device import INTERPRETED


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


@pytest.mark.parametrize(
    ("name", "launches"),
    [("square", 1), ("t", 0), ("norm", 1), ("cumsum", 1), ("argmax", 1), ("matmul", 1), ("take", 1), ("unbind", 0)],
)
def test_every_launch_counts(name: str, launches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(4, 4)
    calls: dict[str, Callable[[], Any]] = {
        "square": x.square, "t": x.t, "norm": x.norm, "cumsum": lambda: x.cumsum(0), "argmax": x.argmax,
        "matmul": lambda: x @ x, "take": lambda: x[torch.tensor([1, 2])], "unbind": x.unbind,
    }  # fmt: skip
    _, found = count(calls[name], monkeypatch)
    assert len(found) >= launches if launches else not found, found


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
