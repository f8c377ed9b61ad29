"""Layer maps of the papers, written-out maps, and their errors."""

from __future__ import annotations

import pytest

from fastdistill.models.layermap import choose_layers, format_layer_map, parse_layer_map


@pytest.mark.parametrize(
    ("text", "student", "teacher", "layers"),
    [
        ("uniform", 4, 12, {1: 3, 2: 6, 3: 9, 4: 12}),  # TinyBERT4
        ("uniform", 6, 12, {1: 2, 2: 4, 3: 6, 4: 8, 5: 10, 6: 12}),  # TinyBERT6
        ("uniform", 4, 6, {1: 2, 2: 3, 3: 5, 4: 6}),
        ("uniform", 1, 6, {1: 6}),
        ("uniform", 3, 3, {1: 1, 2: 2, 3: 3}),
        ("skip", 6, 12, {1: 2, 2: 4, 3: 6, 4: 8, 5: 10}),  # PKD-Skip
        ("skip", 4, 12, {1: 3, 2: 6, 3: 9}),
        ("skip", 5, 12, {1: 2, 2: 4, 3: 6, 4: 8}),
        ("last", 6, 12, {1: 7, 2: 8, 3: 9, 4: 10, 5: 11}),  # PKD-Last
        ("top", 4, 12, {1: 9, 2: 10, 3: 11, 4: 12}),  # TinyBERT's ablation
        ("bottom", 4, 12, {1: 1, 2: 2, 3: 3, 4: 4}),
        ("1:3,2:6", 4, 12, {1: 3, 2: 6}),
        (" 1:12 , 4:1 ", 4, 12, {1: 12, 4: 1}),
    ],
)
def test_maps(text: str, student: int, teacher: int, layers: dict[int, int]) -> None:
    assert dict(parse_layer_map(text, student, teacher)) == layers


@pytest.mark.parametrize(
    ("text", "student", "teacher", "message"),
    [
        ("every", 4, 12, "'every' is not uniform, skip, last, top, bottom or pairs"),
        ("", 4, 12, "is not uniform"),
        ("1-3", 4, 12, "is not uniform"),
        ("1:2:3", 4, 12, "is not uniform"),
        ("1:a", 4, 12, "is not uniform"),
        ("5:1", 4, 12, "pairs 5:1, but the student has 4 layers and the teacher 12"),
        ("1:13", 4, 12, "pairs 1:13, but the student has 4 layers and the teacher 12"),
        ("0:1", 4, 12, "pairs 0:1"),
        ("1:0", 4, 12, "pairs 1:0"),
        ("skip", 12, 6, "pairs 1:0, but the student has 12 layers and the teacher 6"),
        ("last", 12, 6, "pairs 1:-5"),
        ("top", 12, 6, "pairs 1:-5"),
        ("bottom", 12, 6, "pairs 7:7"),
        ("skip", 1, 12, "maps no layer of a student with 1"),
        ("last", 1, 12, "maps no layer of a student with 1"),
        ("1:3,1:4", 4, 12, "names a student layer twice"),
    ],
)
def test_errors(text: str, student: int, teacher: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_layer_map(text, student, teacher)


def test_table() -> None:
    assert format_layer_map(((1, 3), (2, 6)), 3, 12).splitlines() == [
        "student layer (of 3) <- teacher layer (of 12)",
        "      1 <- 3",
        "      2 <- 6",
        "      3 <- -",
    ]


@pytest.mark.parametrize(
    ("text", "layers"), [("uniform", (2, 4, 6)), ("first", (1, 2, 3)), ("last", (4, 5, 6)), ("1, 3,6", (1, 3, 6))]
)
def test_chosen_layers(text: str, layers: tuple[int, ...]) -> None:
    assert choose_layers(text, 3, 6) == layers


@pytest.mark.parametrize("text", ["1,2", "1,2,3,4", "1,2,7", "0,1,2", "3,2,1", "1,1,2"])
def test_impossible_choices(text: str) -> None:
    with pytest.raises(ValueError, match="must name 3 of the teacher's 6 layers"):
        choose_layers(text, 3, 6)


def test_choice_syntax() -> None:
    with pytest.raises(ValueError, match="'odd' is not uniform, first, last or a list"):
        choose_layers("odd", 3, 6)
