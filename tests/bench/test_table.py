"""README.md holds what the committed results say."""

from pathlib import Path

import pytest

from bench.table import render

README = Path(__file__).parents[2] / "README.md"


def test_readme_is_up_to_date() -> None:
    text = README.read_text()
    assert render(text) == text, "run python -m bench.table"


def test_a_figure_typed_by_hand_is_found() -> None:
    text = README.read_text()
    row = next(line for line in text.splitlines() if line.startswith("| student |"))
    assert render(text.replace(row, row.replace("M |", "1M |"))) == text


def test_missing_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="one block <!-- quickstart -->"):
        render("# a readme without blocks\n")
