"""Who may ask the page's server: the same machine, the same page, with the secret of the address."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

HOSTS = ("127.0.0.1", "localhost", "[::1]")
LONGEST_BODY = 64 * 1024
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


class Guard:
    """An ASGI application around another: refuses what does not come from the page itself, before it is looked at.

    Each secret opens an application of its own: that of those who judge, and that of their owner.

    Refused are another host's name (a rebound name of another site), another origin, a request that another site made
    the browser send, a path with dots or escapes, a wrong token, a body that is not JSON or is too long. Every answer
    carries `HEADERS` and `POLICY`: no script, style or address but the page's own, in no frame, and never cached.
    """

    def __init__(self, apps: Mapping[str, App], *, styles: str = "'self'", scripts: str = "'self'") -> None:
        """Serve `apps`: secret -> application.

        Args:
            styles, scripts: where the page's may come from, as a browser's policy names it.
        """
        self._apps = {token.encode(): app for token, app in apps.items()}
        self._headers = HEADERS | {"Content-Security-Policy": POLICY.format(styles=styles, scripts=scripts)}

    async def __call__(self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Any]) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await next(iter(self._apps.values()))(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in self._headers.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            path = "/" + scope["path"].split("/", 2)[2]
            app = self._app_of(scope["path"])
            assert app is not None  # or it was refused
            await app({**scope, "path": path, "raw_path": path.encode()}, receive, send_with_headers)
            return
        status, text = refusal
        plain = [(b"content-type", b"text/plain; charset=utf-8")]
        await send_with_headers({"type": "http.response.start", "status": status, "headers": plain})
        await send({"type": "http.response.body", "body": (text + "\n").encode()})

    def _app_of(self, path: str) -> App | None:
        """The application that the path's first part opens; every secret is compared, in the same time."""
        given, separator, _ = path.removeprefix("/").partition("/")
        found = [app for token, app in self._apps.items() if hmac.compare_digest(given.encode(), token)]
        return found[0] if found and separator else None

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if name not in HOSTS:
            return 403, "this server answers to its own machine's names only"
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            return 403, "requests of other sites are refused"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "requests of other sites are refused"
        path, raw = scope["path"], scope.get("raw_path") or scope["path"].encode()
        if ".." in path or "/." in path or "\\" in path or b"%" in raw.partition(b"?")[0]:
            return 400, "this path is refused"
        if self._app_of(path) is None:
            return 403, "this address is not valid; take the one that was printed in the terminal"
        if scope["method"] not in ("GET", "POST"):
            return 405, "only GET and POST are answered"
        if scope["method"] == "POST":
            if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return 415, "a request must be JSON"
            length = headers.get("content-length", "")
            if not length.isdecimal() or int(length) > LONGEST_BODY:
                return 413, f"a request must say its length, at most {LONGEST_BODY} bytes"
        return None
