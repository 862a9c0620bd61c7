"""A real headless Chromium, and the server of `rlhf annotate` as a process that can be killed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


@contextmanager
def open_chromium() -> Iterator[Any]:
    """A browser of playwright's; the test is skipped, with the reason, where it cannot be had."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium; install it (Debian: apt-get install chromium), or set CHROMIUM to its path")
    for package in ("playwright", "fastapi", "uvicorn", "markdown_it"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Server:
    """`rlhf annotate` on a port of its own; started again it has the same address."""

    def __init__(self, what: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._command = [sys.executable, "-m", "rlhf.cli", "annotate", str(what), "--port", str(self.port), *options]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(r"http://\S+", line):
                self.address = found.group()
                return
        raise AssertionError(f"the server ended with code {self._process.wait()}")

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()


def open_page(chromium: Any, address: str, name: str) -> Any:
    """The page of an annotator, who has signed in by keyboard."""
    page = chromium.new_context().new_page()
    page.goto(address)
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-item], #done:not([hidden])", state="attached")
    return page


def item(page: Any) -> str:
    """Number of the pair that is shown."""
    return str(page.evaluate("document.body.dataset.item"))


def wait_for_next(page: Any, before: str) -> None:
    """Until another pair than `before` is shown, or none is left."""
    page.wait_for_selector(f"body:not([data-item='{before}']), #done:not([hidden])", state="attached")


@contextmanager
def served_here(app: Any) -> Iterator[str]:
    """The address of an application that this process serves, whose models cost nothing."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
