"""`rlhf report … --serve`: the page of a run while it goes, for a browser of this machine."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from rlhf.annotation.page.guard import Guard
from rlhf.annotation.page.local import address_of, listen, serve_app
from rlhf.errors import InputError
from rlhf.imports import require_packages
from rlhf.report.run.search import script_source

EVERY = 30.0
"""Seconds after which an open page asks again, and before which no page is built anew."""


def serve_report(build: Callable[[], Path], port: int = 0) -> None:
    """Serve a page until it is interrupted; the address, with a secret of its own each time, is printed first.

    Args:
        build: writes the page and returns its path, e.g. `rlhf.report.build_report` of a run; called first now.
        port: on the loopback address; 0 is any free one.

    Raises:
        InputError: there is nothing to show, the port is taken, or the extra `annotate` is not installed.
    """
    require_packages("report: --serve needs", "uvicorn")
    page = LivePage(build)
    listener, token = listen(port), secrets.token_urlsafe(24)
    print(f"open {address_of(listener, token)} in a browser of this machine; it is read again every {EVERY:g} s while")
    print("it is open; Ctrl-C ends", flush=True)
    serve_app(Guard({token: page}, styles="'unsafe-inline'", scripts=script_source()), listener)


class LivePage:
    """An ASGI application of one page, which is built anew where the last one is older than EVERY.

    A run may be in the middle of writing what a page is built from: then the last page stands, and why is said.
    """

    def __init__(self, build: Callable[[], Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._build, self._clock = build, clock
        self._path, self._built = build(), clock()

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Any]
    ) -> None:
        there = scope["path"] == "/"
        body = self.page() if there else b"there is one page here\n"
        kind = b"text/html; charset=utf-8" if there else b"text/plain; charset=utf-8"
        status = 200 if there else 404
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": body})

    def page(self) -> bytes:
        """The page as it is now, which asks for itself again."""
        if self._clock() - self._built >= EVERY:
            self._built = self._clock()
            try:
                self._path = self._build()
            except (InputError, OSError, ValueError, KeyError) as error:
                print(f"report: the page is the last one ({error})", file=sys.stderr)
        text = self._path.read_text(encoding="utf-8")
        return text.replace("<head>", f'<head>\n<meta http-equiv="refresh" content="{EVERY:g}">', 1).encode()
