"""Tests run offline, with one thread, as a user without a GPU or a model hub would."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest

from tests.tiny import make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the miniature job."""
    return make_world(tmp_path_factory.mktemp("world"))
