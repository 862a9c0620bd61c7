"""One folder in which every call works, for all tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from forked import preload
from world import copy_world, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    preload()
    return make_world(tmp_path_factory.mktemp("bad_inputs") / "world")


@pytest.fixture
def place(world: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a copy of it."""
    return lambda name: copy_world(world, tmp_path / name)
