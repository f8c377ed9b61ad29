from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from on_device import DEVICE, KERNELS_RUN, arange, full, rand, randint, randn, tensor, zeros
from parity import HALF_AND_SINGLE, loss_and_gradients
from torch import Tensor

from fastdistill_kernels import soft_cross_entropy
from fastdistill_kernels.soft_cross_entropy.reference import soft_cross_entropy as reference

both = pytest.mark.parametrize("function", [soft_cross_entropy, reference], ids=["op", "reference"])


@both
def test_by_hand(function: Callable[..., Any]) -> None:
    """Teacher (1/4, 3/4) at temperature 2, student (1/2, 1/2)."""
    student, teacher = zeros(1, 2), tensor([[0.0, 2 * math.log(3)]])
    soft, hard = function(student, teacher, temperature=2.0)
    torch.testing.assert_close(soft, tensor(math.log(2)))
    assert hard == 0
    soft, _ = function(student, teacher, temperature=2.0, scale_by_temperature_squared=True)
    torch.testing.assert_close(soft, tensor(4 * math.log(2)))
    soft, hard = function(student, teacher, tensor([1]), temperature=2.0, scale_by_temperature_squared=True)
    torch.testing.assert_close(soft, tensor(4 * math.log(2)))
    torch.testing.assert_close(hard, tensor(math.log(2)))
    soft, _ = function(student, teacher, temperature=2.0, form="kl")
    torch.testing.assert_close(soft, tensor(0.25 * math.log(0.5) + 0.75 * math.log(1.5)))


@both
@pytest.mark.parametrize("form", ["ce", "kl"])
@pytest.mark.parametrize("squared", [True, False])
def test_is_torch_on_the_rows_that_count(function: Callable[..., Any], form: str, squared: bool) -> None:
    student, teacher = randn(2, 4, 5, 7)
    labels = randint(7, (4, 5))
    labels[1, 2:] = labels[3] = -1
    rows = student[labels != -1], teacher[labels != -1]
    log_p_s, log_p_t = ((z / 3).log_softmax(-1) for z in rows)
    if form == "ce":
        expected = F.cross_entropy(rows[0] / 3, log_p_t.exp())
    else:
        expected = F.kl_div(log_p_s, log_p_t, log_target=True, reduction="batchmean")
    options: dict[str, Any] = {"temperature": 3.0, "form": form, "scale_by_temperature_squared": squared}
    soft, hard = function(student, teacher, labels, **options, ignore_index=-1)
    torch.testing.assert_close(soft, expected * (9 if squared else 1))
    torch.testing.assert_close(hard, F.cross_entropy(rows[0], labels[labels != -1]))


def test_forms_have_one_gradient() -> None:
    inputs = {"student_logits": randn(6, 5), "teacher_logits": randn(6, 5)}
    ce, kl = (
        loss_and_gradients(
            lambda form=form, **logits: soft_cross_entropy(**logits, form=form), inputs, tuple(inputs)[:1]
        )
        for form in ("ce", "kl")
    )
    assert ce["loss"] > kl["loss"]
    torch.testing.assert_close(ce["student_logits"], kl["student_logits"])


@both
def test_no_row_that_counts_is_zero(function: Callable[..., Any]) -> None:
    student = randn(3, 4, requires_grad=True)
    soft, hard = function(student, randn(3, 4), full((3,), -100))
    (soft + hard).backward()
    assert soft == hard == 0
    assert not student.grad.any()


without_the_second = pytest.mark.parametrize(
    ("name", "values"), [("labels", [1, -100, 2]), ("row_weights", [0.5, 0.0, 2.0])], ids=["labels", "weights"]
)


@without_the_second
def test_ignored_rows_may_hold_anything(name: str, values: list[float]) -> None:
    student, teacher = randn(3, 4), randn(3, 4)
    expected = soft_cross_entropy(student, teacher, **{name: tensor(values)})
    student[1] = teacher[1] = math.nan
    torch.testing.assert_close(soft_cross_entropy(student, teacher, **{name: tensor(values)}), expected)


@without_the_second
def test_ignored_rows_have_no_gradient_whatever_they_hold(name: str, values: list[float]) -> None:
    student, teacher = randn(3, 4, requires_grad=True), randn(3, 4)
    teacher[1] = math.nan
    (gradient,) = torch.autograd.grad(sum(soft_cross_entropy(student, teacher, **{name: tensor(values)})), student)
    assert gradient[[0, 2]].isfinite().all()
    assert not gradient[1].any()


@both
@pytest.mark.parametrize("form", ["ce", "kl"])
def test_temperatures_rows_weights_and_padding(function: Callable[..., Any], form: str) -> None:
    """Student and teacher padded to other widths, four of ten rows, each with a weight, one of them ignored."""
    z_s, z_t = randn(10, 9), randn(10, 12)
    labels, weights = randint(7, (10,)), rand(10)
    rows = tensor([7, 2, 3, 9])
    labels[3] = -100
    counted = tensor([7, 2, 9])
    options: dict[str, Any] = {"temperature": 2.0, "teacher_temperature": 3.0, "form": form, "num_classes": 7}
    student = z_s.clone().requires_grad_()
    soft, hard = function(student, z_t, labels, **options, rows=rows, row_weights=weights)
    s, t, w = z_s[counted, :7], z_t[counted, :7], weights[counted]
    p = (t / 3).softmax(-1)
    rowwise = -(p * (s / 2).log_softmax(-1)).sum(-1) + ((p * p.log()).sum(-1) if form == "kl" else 0)
    torch.testing.assert_close(soft, (w * rowwise).sum() / w.sum())
    gold = F.cross_entropy(s, labels[counted], reduction="none")
    torch.testing.assert_close(hard, (w * gold).sum() / w.sum())
    (2 * soft + 3 * hard).backward()
    expected = torch.zeros_like(z_s)
    onehot = F.one_hot(labels[counted], 7)
    expected[counted, :7] = (((s / 2).softmax(-1) - p) + 3 * (s.softmax(-1) - onehot)) * (w / w.sum())[:, None]
    torch.testing.assert_close(student.grad, expected)


EXPECTED = ((0.3, 7.0), (1.0, 1.0), (0.0, 0.0), (0.3, 1.0), (1.0, 7.0))  # the first are those that will arrive


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_what_was_expected_changes_nothing(dtype: torch.dtype) -> None:
    """To the bit: gradients are rounded once, whether they were made for what arrived or made again."""
    z_s, z_t = randn(2, 6, 9).to(dtype)
    for labels in (tensor([1, 2, -100, 3, 4, 5]), None):
        found = []
        for expected in EXPECTED:
            student = z_s.clone().requires_grad_()
            soft, hard = soft_cross_entropy(student, z_t, labels, temperature=3.0, expected_gradients=expected)
            (0.3 * soft + 7.0 * hard).backward()
            found.append(student.grad)
        assert all(torch.equal(found[0], x) for x in found[1:])


@pytest.mark.parametrize("expected", EXPECTED)
def test_a_graph_can_be_walked_again_with_other_weights(expected: tuple[float, float]) -> None:
    z_s, z_t, labels = randn(6, 9, requires_grad=True), randn(6, 9), arange(6)
    soft, hard = soft_cross_entropy(z_s, z_t, labels, expected_gradients=expected)
    both = 0.3 * soft + 7.0 * hard
    gradients = [torch.autograd.grad(x, z_s, retain_graph=True)[0] for x in (both, both, soft, hard)]
    first = gradients[0].clone()
    torch.testing.assert_close(gradients[1], first, rtol=0, atol=0)
    torch.testing.assert_close(0.3 * gradients[2] + 7.0 * gradients[3], first)
    gradients[1].zero_()  # none is another's memory
    assert torch.equal(gradients[0], first)


@pytest.mark.parametrize(("expected", "again"), [(x, x != EXPECTED[0]) for x in EXPECTED])
def test_the_gradient_is_made_with_the_loss_if_what_arrives_was_expected(
    expected: tuple[float, float], again: bool
) -> None:
    """Seen by changing the logits in between, behind autograd's back."""
    z_s, z_t, labels = randn(6, 9, requires_grad=True), randn(6, 9), arange(6)
    gradients = []
    for move in (0.0, 1.0):
        soft, hard = soft_cross_entropy(z_s, z_t, labels, expected_gradients=expected)
        z_s.data[:, 0] += move
        gradients.append(*torch.autograd.grad(0.3 * soft + 7.0 * hard, z_s))
    assert torch.equal(*gradients) is not again


def test_second_derivative_is_refused() -> None:
    z_s, z_t = randn(6, 9, requires_grad=True), randn(6, 9)
    soft, _ = soft_cross_entropy(z_s, z_t)
    (gradient,) = torch.autograd.grad(soft.square(), z_s, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        gradient.sum().backward()


@both
def test_strided_and_expanded_labels_rows_and_weights(function: Callable[..., Any]) -> None:
    z_s, z_t = randn(2, 12, 5)
    table = randint(5, (12, 3))
    weights, rows = rand(12, 3), arange(12)[::3]
    one, same = tensor([3]).expand(12), tensor([0.5]).expand(12)
    for labels, row_weights in ((table[:, 1], weights[:, 2]), (one, same)):
        actual = function(z_s, z_t, labels, rows=rows, row_weights=row_weights)
        expected = reference(z_s, z_t, labels.clone(), rows=rows.clone(), row_weights=row_weights.clone())
        torch.testing.assert_close(actual, expected)


@both
def test_a_large_common_term_of_the_logits_changes_nothing(function: Callable[..., Any]) -> None:
    """Numbers that float32 still holds exactly, so that differences are all that counts."""
    inputs = {
        "student_logits": randint(-64, 64, (6, 40)) / 16,
        "teacher_logits": randint(-64, 64, (6, 40)) / 16,
        "labels": arange(6),
        "temperature": 2.0,
    }
    far = inputs | {name: inputs[name] + 2.0**17 for name in ("student_logits", "teacher_logits")}  # type: ignore[operator]
    actual, expected = (loss_and_gradients(function, x, ("student_logits",)) for x in (far, inputs))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("label", [-1, -100, 5, 7, 1000])
def test_a_label_that_is_no_class_is_noticed(label: int) -> None:
    """By an error where the host sees it, else by a loss and a gradient that are not finite."""
    z_s, z_t = randn(2, 3, 8)
    z_s.requires_grad_()
    labels = tensor([0, label, 1])
    if KERNELS_RUN:
        _, hard = soft_cross_entropy(z_s, z_t, labels, num_classes=5, ignore_index=-2)
        (gradient,) = torch.autograd.grad(hard, z_s)
        assert hard.isnan()
        assert gradient.isnan().any(1).tolist() == [False, True, False]
        return
    with pytest.raises(IndexError, match=f"{label}.*: pass classes from 0 to 4, or -2 for rows to leave out"):
        soft_cross_entropy(z_s, z_t, labels, num_classes=5, ignore_index=-2)


@pytest.mark.parametrize("row", [-1, 3, 10**9])
def test_a_row_that_there_is_not_is_noticed(row: int) -> None:
    memory = torch.full((5, 5), 7.0, device=DEVICE)
    z_s, z_t = memory[1:4].requires_grad_(), randn(3, 5)
    rows = tensor([0, row])
    if KERNELS_RUN:
        soft, hard = soft_cross_entropy(z_s, z_t, tensor([0, 1, 2]), rows=rows)
        (gradient,) = torch.autograd.grad(soft + hard, z_s)
        assert soft.isnan()
        assert hard.isnan()
        assert gradient[0].isnan().all()
        return
    with pytest.raises(
        ValueError, match=f"rows are from {min(0, row)} to {max(0, row)}: pass some of 0 to 2, each once"
    ):
        soft_cross_entropy(z_s, z_t, rows=rows)


@pytest.mark.skipif(KERNELS_RUN, reason="a GPU would have to be waited for")
def test_a_row_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="rows are from 0 to 1: pass some of 0 to 2, each once"):
        soft_cross_entropy(*randn(2, 3, 5), rows=tensor([0, 1, 0]))


@pytest.mark.parametrize("classes", [50, 1000])
@pytest.mark.parametrize("temperature", [10.0, 100.0])
def test_kl_keeps_its_digits_at_high_temperatures(temperature: float, classes: int) -> None:
    """Over many draws it errs about as much as eager PyTorch: one draw's error is a matter of luck."""

    def error(function: Callable[[Tensor, Tensor], Tensor]) -> float:
        relative = []
        for z_s, z_t in draws:
            truth = reference(z_s.double(), z_t.double(), temperature=temperature, form="kl")[0]
            relative.append((function(z_s, z_t).double() - truth) / truth)
        return float(torch.stack(relative).square().mean().sqrt())

    def eager(z_s: Tensor, z_t: Tensor) -> Tensor:
        log_p_s, log_p_t = ((z / temperature).log_softmax(-1) for z in (z_s, z_t))
        return F.kl_div(log_p_s, log_p_t, log_target=True, reduction="batchmean")

    draws = [randn(2, 1, classes) for _ in range(40)]
    ours = error(lambda z_s, z_t: soft_cross_entropy(z_s, z_t, temperature=temperature, form="kl")[0])
    assert ours <= 1.2 * error(eager)


@pytest.mark.parametrize("form", ["ce", "kl"])
def test_autocast_does_not_lower_the_loss(form: str) -> None:
    z_s, z_t = randn(2, 40, 30)
    labels = arange(40) % 30
    expected = soft_cross_entropy(z_s, z_t, labels, form=form)
    with torch.autocast(DEVICE, torch.bfloat16):
        torch.testing.assert_close(soft_cross_entropy(z_s, z_t, labels, form=form), expected)


def test_more_rows_than_are_weighed_at_once() -> None:
    z_s, z_t = randn(2, 3000, 3)
    rows, weights = arange(2999, 499, -1), rand(3000)
    soft, _ = soft_cross_entropy(z_s, z_t, rows=rows, row_weights=weights)
    torch.testing.assert_close(soft, reference(z_s[500:], z_t[500:], row_weights=weights[500:])[0])


def test_the_teacher_is_a_constant() -> None:
    z_s, z_t = randn(2, 3, 8)
    assert not any(x.requires_grad for x in soft_cross_entropy(z_s, z_t.requires_grad_()))


def test_row_weights_are_constants() -> None:
    z_s, z_t = randn(2, 3, 8, requires_grad=True)
    weights = rand(3, requires_grad=True)
    soft, _ = soft_cross_entropy(z_s, z_t, row_weights=weights)
    soft.backward()
    assert weights.grad is None


@both
def test_weights_may_add_up_to_less_than_nothing(function: Callable[..., Any]) -> None:
    z_s, z_t = randn(2, 2, 8)
    soft, _ = function(z_s, z_t, row_weights=tensor([1.0, -3.0]))
    (first, _), (second, _) = (function(z_s[n : n + 1], z_t[n : n + 1]) for n in range(2))
    torch.testing.assert_close(soft, (first - 3 * second) / -2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_logits": torch.zeros(3, 5)}, r"\(3, 4\) and \(3, 5\).*same classes"),
        ({"student_logits": torch.zeros(4), "teacher_logits": torch.zeros(4)}, r"\(4,\)"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"labels are \(4,\): must be \(3,\)"),
        ({"form": "mse"}, "form='mse'"),
        ({"row_weights": torch.zeros(4)}, r"row_weights are \(4,\)"),
        ({"num_classes": 5}, "num_classes=5: must be from 1 to the narrower width, 4"),
        ({"teacher_temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("inf")}, "temperature=inf: must be from 1e-06 to 1e"),
        ({"rows": torch.tensor([True, False, True])}, r"rows are torch.bool: pass int64, with mask.*nonzero"),
        ({"labels": torch.zeros(3, dtype=torch.int32)}, r"labels are torch.int32: pass int64, with .long\(\)"),
        ({"rows": torch.zeros(4, dtype=torch.int64)}, r"rows are \(4,\).*each of the 3 rows at most once"),
        ({"teacher_logits": torch.zeros(3, 4, device="meta")}, "teacher_logits is on meta.*move it there"),
        ({"labels": torch.zeros(3, dtype=torch.int64, device="meta")}, "labels is on meta"),
        ({"student_logits": torch.zeros(3, 4, dtype=torch.int64)}, "logits: torch.int64 is given"),
        ({"teacher_logits": None}, "logits: NoneType is given, pass tensors"),
        ({"rows": [0, 1]}, "rows: list is given, pass a tensor"),
        ({"row_weights": torch.zeros(3, dtype=torch.complex64)}, "row_weights are torch.complex64: pass real numbers"),
        ({"num_classes": 4.0}, "num_classes=4.0: must be a whole number"),
        ({"expected_gradients": 1.0}, "expected_gradients=1.0: pass two"),
        ({"expected_gradients": (1.0, float("nan"))}, r"expected_gradients\[1\]=nan: must be finite"),
        ({"expected_gradients": (1.0,)}, r"expected_gradients=\(1.0,\): pass two"),
        (dict.fromkeys(("student_logits", "teacher_logits"), torch.zeros(3, 0)), "there must be classes"),
    ],
)
def test_errors_name_the_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        soft_cross_entropy(**{"student_logits": torch.zeros(3, 4), "teacher_logits": torch.zeros(3, 4), **change})
