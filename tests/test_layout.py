"""The rules of the house that a program can hold."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastdistill

ROOT = Path(__file__).parent.parent
SOURCES = [p for folder in ("fastdistill", "kernels", "recipes", "bench") for p in (ROOT / folder).rglob("*.py")]


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def in_folder(*folders: str) -> list[Path]:
    return [p for p in SOURCES if any(p.is_relative_to(ROOT / folder) for folder in folders)]


def test_kernels_is_no_package() -> None:
    """It would hide the PyPI package `kernels`, which transformers imports."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("path", in_folder("kernels"), ids=str)
def test_the_ops_import_torch_and_triton_only(path: Path) -> None:
    allowed = {"torch", "triton", "fastdistill_kernels"} | sys.stdlib_module_names
    assert imports(path) <= allowed
    assert "triton" not in imports(path) or path.name == "kernel.py"


@pytest.mark.parametrize("path", in_folder("recipes"), ids=str)
def test_recipes_import_fastdistill_and_no_other_recipe(path: Path) -> None:
    assert imports(path) <= {"fastdistill"} | sys.stdlib_module_names


@pytest.mark.parametrize("path", in_folder("fastdistill"), ids=str)
def test_directions(path: Path) -> None:
    assert not imports(path) & {"recipes", "bench", "tests"}
    if path.parent.name not in ("models", "data"):
        assert "transformers" not in imports(path)
    if path.parent.name == "losses":
        assert not imports(path) & {"datasets", "sklearn", "scipy", "triton"}


@pytest.mark.parametrize("path", [*SOURCES, *(ROOT / "tests").rglob("*.py")], ids=str)
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350
    assert path.stem not in ("utils", "common", "helpers", "misc")


def test_public_names_are_few_and_real() -> None:
    names = [n for n in vars(fastdistill) if n[0].isupper() or n in ("main", "run")]
    assert len({*names, "run", "Encoder"}) <= 20
    assert callable(fastdistill.run)
    assert isinstance(fastdistill.Encoder, type)
    with pytest.raises(AttributeError, match="no attribute 'distill'"):
        fastdistill.distill  # noqa: B018


def test_importing_the_package_loads_no_torch() -> None:
    program = "import sys, fastdistill; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_unsafe_loads_are_nowhere() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert "pickle" not in text
        assert "trust_remote_code=True" not in text
        assert "yaml.load(" not in text
        assert text.count("torch.load(") == text.count("weights_only=True")
