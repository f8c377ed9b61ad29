"""Tests run offline, as a user without a model hub would; those of the kernels need torch and Triton alone."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the miniature job."""
    from tests.tiny import make_world

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def done(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of a finished run; tests leave it as it is."""
    from fastdistill import run
    from tests.tiny import tiny_recipe

    out = tmp_path_factory.mktemp("done") / "out"
    run(tiny_recipe(world, out))
    return out


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; tests that read it are skipped, by name, without it."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder
