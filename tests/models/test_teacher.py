"""A live teacher neither learns nor drops out."""

from __future__ import annotations

import torch
from encoders import make_batch, tiny_encoder

from fastdistill.models.capture import Taps
from fastdistill.models.teacher import Live

TAPS = Taps(hidden=frozenset({3}), q=frozenset({1}), logits=True)


def test_always_in_eval_mode() -> None:
    batch = make_batch([9, 4])
    teacher = Live(tiny_encoder("bert", head=True).train())
    first, second = teacher(batch, TAPS), teacher.train()(batch, TAPS)
    assert torch.equal(first.hidden[3], second.hidden[3])
    assert not any(module.training for module in teacher.modules())


def test_frozen_but_usable_in_backward() -> None:
    got = Live(tiny_encoder("bert", head=True))(make_batch([9, 4]), TAPS)
    assert got.logits is not None
    assert [x.requires_grad for x in (got.logits, got.hidden[3], got.q[1])] == [False, False, False]
    scale = torch.ones((), requires_grad=True)
    (scale * got.hidden[3]).square().sum().backward()  # saves the teacher's tensor, as a loss does
    assert scale.grad is not None


def test_cast_once_as_autocast_would_every_time() -> None:
    batch = make_batch([9, 4])
    with torch.autocast("cpu", torch.bfloat16):
        expected = Live(tiny_encoder("bert", head=True))(batch, TAPS)
        got = Live(tiny_encoder("bert", head=True), torch.bfloat16)(batch, TAPS)
    assert got.logits is not None
    assert expected.logits is not None
    assert got.logits.dtype == torch.bfloat16
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(got.hidden[3], expected.hidden[3])
