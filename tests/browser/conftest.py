"""One Chromium for the session; the servers of a test end with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Server, open_chromium


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def start(what: Path, *options: str) -> Server:
        servers.append(Server(what, *options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
