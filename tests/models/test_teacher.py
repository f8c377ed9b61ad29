"""A live teacher neither learns nor drops out."""

from __future__ import annotations

import copy

import pytest
import torch
from encoders import CAPTURED, make_batch, tiny_encoder, tiny_model

from fastdistill.models.capture import Recorder, Taps
from fastdistill.models.encoder import Encoder
from fastdistill.models.heads import output_layer
from fastdistill.models.teacher import Ensemble, Live, Packed, Together, can_pack

TAPS = Taps(hidden=frozenset({3}), q=frozenset({1}), logits=True)
packs = pytest.mark.skipif(not can_pack(), reason="oneDNN has no bf16 on this CPU")


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


def test_speaks_in_its_dtype_inside_and_outside_of_autocast() -> None:
    batch = make_batch([9, 4])
    expected = Live(tiny_encoder("bert", head=True))(batch, TAPS)
    teacher = Live(tiny_encoder("bert", head=True), torch.bfloat16)
    got = teacher(batch, TAPS)
    with torch.autocast("cpu", torch.float16):
        again = teacher(batch, TAPS)
    for one, other, exact in (
        (got.logits, again.logits, expected.logits),
        (got.hidden[3], again.hidden[3], expected.hidden[3]),
        (got.q[1], again.q[1], expected.q[1]),
    ):
        assert one is not None
        assert other is not None
        assert exact is not None
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, other)
        assert (one - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("family", CAPTURED)
def test_packed_weights_multiply_as_plain_ones(family: str) -> None:
    """And leave the names of the weights as they were."""
    batch = make_batch([9, 4])
    plain = tiny_encoder(family, head=True).to(torch.bfloat16).eval()
    teacher = Live(tiny_encoder(family, head=True), torch.bfloat16)
    assert list(teacher.encoder.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        exact, rounded, got = tiny_encoder(family, head=True)(batch, TAPS), plain(batch, TAPS), teacher(batch, TAPS)
    for e, r, g in ((exact.hidden[3], rounded.hidden[3], got.hidden[3]), (exact.logits, rounded.logits, got.logits)):
        assert e is not None
        assert r is not None
        assert g is not None
        assert (g - e).norm() < 1.5 * (r - e).norm()


@packs
@pytest.mark.parametrize(
    ("family", "linear", "activated"), [("bert", 20, 3), ("distilbert", 20, 3), ("albert", 9, 0), ("modernbert", 14, 0)]
)
def test_every_linear_layer_is_packed_and_the_exact_gelu_of_an_ffn_taken_with_it(
    family: str, linear: int, activated: int
) -> None:
    before = list(tiny_encoder(family, head=True).modules())
    after = list(Live(tiny_encoder(family, head=True), torch.bfloat16).modules())
    (plain, none, idle), (left, packed, taken) = (
        [sum(type(m) is kind for m in modules) for kind in (torch.nn.Linear, Packed, torch.nn.Identity)]
        for modules in (before, after)
    )
    assert (plain, none) == (packed, left) == (linear, 0)
    assert taken - idle == activated


def test_nothing_is_packed_where_onednn_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    teacher = Live(tiny_encoder("bert", head=True), torch.bfloat16)
    assert not any(isinstance(module, Packed) for module in teacher.modules())
    assert teacher(make_batch([9, 4]), TAPS).hidden[3].isfinite().all()


@packs
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_of_the_same_states_are_multiplied_together(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever order and however often they are asked."""
    linears = [torch.nn.Linear(8, size, bias).bfloat16().requires_grad_(False) for size in (8, 16, 24)]
    x, y = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    together, multiplied = Together(linears), []
    multiply = together.multiply
    monkeypatch.setattr(together, "multiply", lambda states: multiplied.append(states) or multiply(states))
    for states, number in ((x, 0), (x, 1), (x, 2), (x, 2), (x, 0), (y, 0), (y, 0), (x.clone(), 1), (y, 2)):
        torch.testing.assert_close(together.part(number, states), linears[number](states), rtol=0.02, atol=0.02)
    assert len(multiplied) == 6
    for number in (0, 1):
        together.part(number, y)
    assert together.states is None, "nothing is held when all have been asked"
    assert not together.waiting


@packs
def test_a_teacher_multiplies_query_key_and_value_together(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Together] = []
    part = Together.part
    monkeypatch.setattr(Together, "part", lambda self, n, x: made.append(self) or part(self, n, x))
    live = Live(tiny_encoder("bert", head=True), torch.bfloat16)
    live(make_batch([9, 4]), TAPS)
    assert [made.count(one) for one in dict.fromkeys(made)] == [3, 3, 3]
    assert not any(one.waiting for one in made)


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert", "modernbert"])
def test_layers_that_nobody_asks_for_do_not_run(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, teacher, seen = make_batch([9, 4]), Live(tiny_encoder(family)), []
    expected = teacher.encoder(batch, Taps(hidden=frozenset({0, 2, 3}), q=frozenset({1, 3})))
    record = Recorder.record
    monkeypatch.setattr(Recorder, "record", lambda self, *x: seen.append(self) or record(self, *x))
    for taps, layers in (
        (Taps(hidden=frozenset({0, 2}), q=frozenset({1})), 2),
        (Taps(hidden=frozenset({0})), 1),
        (Taps(q=frozenset({1})), 1),
        (Taps(hidden=frozenset({0, 3}), q=frozenset({1, 3})), 3),
    ):
        seen.clear()
        got = teacher(batch, taps)
        assert len(seen) == (layers if family in ("bert", "distilbert") else 3)
        assert (got.hidden.keys(), got.q.keys()) == (taps.hidden, taps.q)
        for found, known in ((got.hidden, expected.hidden), (got.q, expected.q)):
            for layer in found:
                assert torch.equal(found[layer], known[layer])
    with pytest.raises(ValueError, match="layer 4 is asked for"):
        teacher(batch, Taps(hidden=frozenset({4})))
    seen.clear()
    teacher.encoder(batch, Taps())
    assert len(seen) == 3


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("shallow", [Taps(hidden=frozenset({0})), Taps(hidden=frozenset({2})), Taps(q=frozenset({2}))])
def test_what_was_asked_before_changes_nothing(family: str, shallow: Taps) -> None:
    """Nor does a copy forget what lies deeper."""
    batch, teacher, fresh = make_batch([9, 4]), Live(tiny_encoder(family, head=True)), tiny_encoder(family, head=True)
    teacher(batch, shallow)
    for taps in (
        Taps(hidden=frozenset({1})),
        Taps(hidden=frozenset({0, 2}), q=frozenset({3})),
        Taps(hidden=frozenset({0, 1, 2}), logits=True),
        Taps(hidden=frozenset({0, 1, 2, 3})),
    ):
        expected = fresh(batch, taps)
        for one in (teacher, copy.deepcopy(teacher)):
            got = one(batch, taps)
            assert got.hidden.keys() == taps.hidden
            for layer in taps.hidden:
                assert torch.equal(got.hidden[layer], expected.hidden[layer])


def test_hidden_states_that_are_not_those_of_the_layers_are_refused() -> None:
    teacher = Live(tiny_encoder("bert"))
    assert teacher.encoder.layers is not None
    teacher.encoder.layers[1]._forward_hooks.clear()
    with pytest.raises(RuntimeError, match="bert gave 3 hidden states of 3 layers"):
        teacher(make_batch([9, 4]), Taps(hidden=frozenset({3})))


def test_rotary_frequencies_keep_their_digits() -> None:
    teacher = Live(tiny_encoder("modernbert"), torch.bfloat16)
    frequencies = [b for name, b in teacher.named_buffers() if "inv_freq" in name]
    assert frequencies
    assert {b.dtype for b in frequencies} == {torch.float32}
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}


def other_encoder() -> Encoder:
    """One of the same shape that says other things."""
    encoder = tiny_encoder("bert", head=True)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(0.9)
    return encoder


def test_teachers_that_speak_as_one() -> None:
    batch = make_batch([9, 4])
    one, two = (Live(encoder)(batch, TAPS) for encoder in (tiny_encoder("bert", head=True), other_encoder()))
    got = Ensemble([tiny_encoder("bert", head=True), other_encoder()], [3.0, 1.0])(batch, TAPS)
    assert one.logits is not None
    assert two.logits is not None
    torch.testing.assert_close(got.logits, 0.75 * one.logits + 0.25 * two.logits)
    torch.testing.assert_close(got.hidden[3], 0.75 * one.hidden[3] + 0.25 * two.hidden[3])
    assert torch.equal(got.q[1], one.q[1])
    assert not torch.allclose(one.logits, two.logits)


def test_teachers_pack_if_all_of_them_do() -> None:
    encoders = tiny_encoder("bert", head=True), other_encoder()
    assert Ensemble(encoders, [1.0, 1.0]).packs
    encoders[1].packs = False
    assert not Ensemble(encoders, [1.0, 1.0]).packs


def test_fingerprint_tells_teachers_and_weights_apart() -> None:
    def fingerprint(*weights: float) -> str:
        return Ensemble([tiny_encoder("bert", head=True), other_encoder()], weights).fingerprint()

    assert fingerprint(1, 1) == fingerprint(2, 2)
    assert len({fingerprint(1, 1), fingerprint(1, 2), Live(tiny_encoder("bert", head=True)).fingerprint()}) == 3


@pytest.mark.parametrize("family", CAPTURED)
def test_what_is_below_the_head_has_a_fingerprint_of_its_own(family: str) -> None:
    headed = tiny_encoder(family, head=True)
    below, whole = (Live(headed).fingerprint(head) for head in (False, True))
    bare = tiny_model(family, head=False)
    bare.load_state_dict(headed.model.base_model.state_dict(), strict=False)
    assert Live(Encoder(bare)).fingerprint(head=False) == below
    next(output_layer(headed.model, 3).parameters()).data += 1
    assert Live(headed).fingerprint(head=False) == below
    assert Live(headed).fingerprint() != whole
    next(headed.model.base_model.parameters()).data += 1
    assert Live(headed).fingerprint(head=False) != below


def test_dropout_may_be_left_on() -> None:
    batch, encoder = make_batch([9, 4]), tiny_encoder("bert", head=True)
    noisy = Live(encoder, dropout=True).eval()
    torch.manual_seed(0)
    first = noisy(batch, TAPS)
    again = noisy(batch, TAPS)
    torch.manual_seed(0)
    assert not torch.equal(first.hidden[3], again.hidden[3])
    assert torch.equal(first.hidden[3], noisy(batch, TAPS).hidden[3])
