"""Students: shapes, exact copies, and requests that cannot be met."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from encoders import VOCAB, make_batch, tiny_encoder

from fastdistill.models.capture import Taps
from fastdistill.models.student import make_student
from fastdistill.recipe import Student

LAST = Taps(hidden=frozenset({2}))


def shape(spec: Student, family: str = "bert") -> tuple[int, int, int, int]:
    student = make_student(tiny_encoder(family), spec, seed=0)
    config = student.model.config
    ffn = config.hidden_dim if family == "distilbert" else config.intermediate_size
    return student.num_hidden_layers, student.hidden_size, ffn, student.num_attention_heads


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (Student(), (3, 48, 80, 4)),
        (Student(num_hidden_layers=2), (2, 48, 80, 4)),
        (Student(hidden_size=24), (3, 24, 40, 4)),
        (Student(hidden_size=24, intermediate_size=32, num_attention_heads=2), (3, 24, 32, 2)),
        (Student(preset="tinybert4", init="random"), (4, 312, 1200, 12)),
        (Student(preset="tinybert6", init="random"), (6, 768, 3072, 12)),
        (Student(preset="tinybert4", hidden_size=24, init="random"), (4, 24, 1200, 12)),
    ],
)
def test_shapes(spec: Student, expected: tuple[int, int, int, int]) -> None:
    assert shape(spec) == expected


def test_shape_in_every_family(any_family: str) -> None:
    spec = Student(num_hidden_layers=2, hidden_size=24, num_attention_heads=2, init="random")
    assert shape(spec, any_family) == (2, 24, 40, 2)


@pytest.mark.parametrize(("init_layers", "chosen"), [("uniform", (2, 3)), ("first", (1, 2)), ("last", (2, 3))])
def test_copies_are_exact(any_family: str, init_layers: str, chosen: tuple[int, int]) -> None:
    teacher = tiny_encoder(any_family, head=True)
    student = make_student(teacher, Student(num_hidden_layers=2, init_layers=init_layers), seed=0)
    assert student.kind is None
    theirs, ours = teacher.model.base_model.state_dict(), student.model.state_dict()
    assert ours
    for name, weight in ours.items():
        source = (
            name
            if any_family == "albert"
            else re.sub(r"^(.*?layers?\.)(\d+)\.", lambda m: f"{m[1]}{chosen[int(m[2])] - 1}.", name)
        )
        if source in theirs or not name.startswith("pooler."):
            assert torch.equal(weight, theirs[source]), name


def test_a_full_depth_copy_computes_the_same(any_family: str) -> None:
    batch, teacher = make_batch([9, 4]), tiny_encoder(any_family)
    student = make_student(teacher, Student(), seed=0)
    assert torch.equal(student(batch, LAST).hidden[2], teacher(batch, LAST).hidden[2])


def test_modernbert_layers_keep_their_attention_type() -> None:
    teacher = tiny_encoder("modernbert")
    assert teacher.model.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    student = make_student(teacher, Student(num_hidden_layers=2), seed=0)
    assert student.model.config.layer_types == ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(("dropout", "same"), [(0.0, True), (0.5, False)])
def test_dropout_is_the_students_own(any_family: str, dropout: float, same: bool) -> None:
    student = make_student(tiny_encoder(any_family), Student(dropout=dropout), seed=0).train()
    batch, taps = make_batch([9, 30]), Taps(hidden=frozenset({student.num_hidden_layers}))
    first, second = (student(batch, taps).hidden[student.num_hidden_layers] for _ in range(2))
    assert torch.equal(first, second) == same


def test_random_students_follow_the_seed_alone() -> None:
    teacher, spec = tiny_encoder("bert"), Student(init="random")
    first = make_student(teacher, spec, seed=1).model.state_dict()
    torch.manual_seed(5)
    after = torch.rand(1)
    torch.manual_seed(5)
    again = make_student(teacher, spec, seed=1).model.state_dict()
    assert torch.equal(after, torch.rand(1))  # the caller's generator is left alone
    other = make_student(teacher, spec, seed=2).model.state_dict()
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], teacher.model.state_dict()[name])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Student(hidden_size=26), "hidden_size 26 is not divisible by num_attention_heads 4"),
        (Student(num_hidden_layers=4), "num_hidden_layers 4 is larger than the teacher's 3: .* init=random"),
        (Student(hidden_size=96), "hidden_size 96 is larger than the teacher's 48"),
        (Student(intermediate_size=81), "intermediate_size 81 is larger than the teacher's 80"),
        (Student(num_attention_heads=8), "num_attention_heads 8 is larger than the teacher's 4"),
        (Student(num_hidden_layers=2, init_layers="1,5"), "must name 2 of the teacher's 3"),
        (Student(path="somewhere", hidden_size=24), "leave the other student options alone"),
    ],
)
def test_impossible_students(spec: Student, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_student(tiny_encoder("bert"), spec, seed=0)


def test_student_from_a_folder(tmp_path: Path) -> None:
    teacher, saved = tiny_encoder("bert"), tiny_encoder("distilbert")
    saved.model.save_pretrained(tmp_path)
    student = make_student(teacher, Student(path=str(tmp_path)), seed=0)
    batch = make_batch([9, 4])
    assert torch.equal(student(batch, LAST).hidden[2], saved(batch, LAST).hidden[2])


def test_vocabularies_must_agree(tmp_path: Path) -> None:
    tiny_encoder("bert", vocab_size=50).model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"vocabulary of 50, the teacher one of {VOCAB}"):
        make_student(tiny_encoder("bert"), Student(path=str(tmp_path)), seed=0)
