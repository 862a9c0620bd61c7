"""One folder of files in order and damaged ones, in which every example runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from junk import write_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import transformers  # noqa: F401  # no example is to pay for it

    made = tmp_path_factory.mktemp("fuzz")
    write_files(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        yield made
