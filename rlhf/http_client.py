"""One client of servers that answer JSON over HTTP: samplers, judges and reward servers are asked through it.

Whatever a server does (it may hang, drip, redirect, break off, flood or lie) ends within `timeout` seconds a try, in an
answer or in one sentence that names the server. A key goes to the origin it was meant for and into no sentence. Light:
httpx comes with the first client.
"""

from __future__ import annotations

import asyncio
import copy
import ipaddress
import json
import logging
import os
import random
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future, as_completed
from inspect import CORO_CREATED, getcoroutinestate
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from rlhf.errors import InputError

if TYPE_CHECKING:
    import httpx2

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before the first repetition, and before any
CONNECT_SECONDS = 10.0  # until a host that does not take the connection counts as away
WRONG_ANSWER_RETRIES = 2  # what is no right answer twice is seldom one later
WAY_OUT = "; see to it, then give the same command again"
MOST_BYTES = 64 << 20  # of an answer, unpacked
MOST_ERROR_BYTES = 64 << 10  # that are read of what comes with an error's status
MOST_REDIRECTS = 5
Result = TypeVar("Result")
Label = TypeVar("Label")


class WrongAnswer(Exception):
    """Raised by a `read` of `JsonClient.ask`: what is wrong with an answer, as "gives an answer without scores"."""


class RequestFailed(InputError):
    """A request that came to nothing.

    Args:
        message: the sentence.
        status: of HTTP; None where no valid answer came.
        said: the beginning of what came with the status.
        wait: seconds that the server asks to wait before a repetition.
        retries: repetitions that it is worth at most; None: as many as the client's.
        alive: whether the server answered other requests between the first try of this one and the last.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        said: str = "",
        wait: float = 0.0,
        retries: int | None = None,
        alive: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.said, self.wait, self.retries = status, said, wait, retries
        self.alive = alive

    @property
    def may_pass(self) -> bool:
        """Whether the same request may be answered later."""
        return self.status is None or self.status in (408, 429) or self.status >= 500


def check_url(field: str, url: str) -> None:
    """Whether a server can be asked at this address.

    Raises:
        InputError: naming the field: it is no http or https address of a host, or holds a user name, password, query
            or fragment (which would be shown and kept with the configuration).
    """
    try:
        parts = urlsplit(url)
        found = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        found = False
    if "@" in url:
        raise InputError(f"{field}: must hold no user name or password; the key goes into an environment variable")
    if not found or not url.isprintable() or " " in url:
        raise InputError(f"{field}: must begin with http:// or https:// and name a host, got {url!r}")
    if parts.query or parts.fragment:
        raise InputError(f"{field}: must end with a path, without ? and #, got {url.split('?')[0].split('#')[0]!r}…")


def key_from(variable: str, field: str = "api_key_env") -> str:
    """The key in an environment variable, without the white space around it.

    Raises:
        InputError: there is none, or no header can carry it. The key is not shown.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"{field}: the environment has no {variable}; export the server's key in it")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError(
            f"{field}: what {variable} holds is no key: it has a line break, a space or another character in it that "
            "no header can carry; export the key alone"
        )
    return key


class JsonClient:
    """Asks one server, several requests at a time; a context manager.

    Requests run on a thread of their own, so that leaving the context (Ctrl-C too) ends those in flight at once.
    Proxies of the environment are used, but not towards this machine.

    Args:
        url: what the paths of requests are added to.
        who: what the server is called in sentences.
        api_key_env: environment variable of the key that is sent as a bearer's; None: none is sent.
        timeout: seconds for a try as a whole, from connecting to the last byte.
        retries: repetitions of a try that may pass (no connection, no right answer, status 408, 429 or 5xx), after 1,
            2, 4 .. 60 seconds.
        concurrency: jobs of `start` at a time.
    """

    def __init__(
        self,
        url: str,
        *,
        who: str = "server",
        api_key_env: str | None = None,
        timeout: float = 600.0,
        retries: int = 8,
        concurrency: int = 16,
    ) -> None:
        self.url, self.who, self.timeout, self.retries = url.rstrip("/"), who, timeout, retries
        self._key = key_from(api_key_env) if api_key_env is not None else None
        self._http = _open_client(self.url, min(timeout, CONNECT_SECONDS))
        self._opened = [self._http]
        self._answered = 0  # requests
        self._slots = asyncio.Semaphore(concurrency)
        self._draining = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"{who} client", daemon=True)
        self._thread.start()

    def __enter__(self) -> JsonClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()  # until stopped
        left: set[Any] = asyncio.all_tasks(self._loop)
        while any(getcoroutinestate(task.get_coro()) == CORO_CREATED for task in left):
            self._loop.run_until_complete(asyncio.sleep(0))  # anyio's tasks would leave what they were to await
            left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        for http in self._opened:
            self._loop.run_until_complete(http.aclose())
        self._loop.close()

    def at(self, url: str) -> JsonClient:
        """The same for another address, on this one's thread, and closed with it."""
        other = copy.copy(self)
        other.url, other._answered = url.rstrip("/"), 0
        other._http = _open_client(other.url, min(self.timeout, CONNECT_SECONDS))
        self._opened.append(other._http)
        return other

    def start(self, job: Callable[[], Awaitable[Result]]) -> Future[Result]:
        """Run a coroutine function that calls `ask`; jobs begin in the order in which they were started."""

        async def in_turn() -> Result:
            async with self._slots:
                if self._draining:
                    raise asyncio.CancelledError
                return await job()

        return asyncio.run_coroutine_threadsafe(in_turn(), self._loop)

    def drain(self) -> None:
        """Let the jobs that run come to their end; those that have not begun are cancelled."""
        self._draining = True

    def ask_now(self, path: str, body: Any = None, **options: Any) -> Any:
        """`ask`, waited for."""
        return asyncio.run_coroutine_threadsafe(self.ask(path, body, **options), self._loop).result()

    async def ask(
        self,
        path: str,
        body: Any = None,
        *,
        read: Callable[[Any], Result] | None = None,
        about: str = "",
        retries: int | None = None,
        final: int = 0,
        is_json: bool = True,
    ) -> Any:
        """What `read` makes of the JSON that the server answers.

        Args:
            path: added to the url after a slash; "" for the url itself.
            body: POSTed as JSON; None: GET.
            read: takes the answer, raises `WrongAnswer`; None: the answer as it is.
            about: what was asked, for the sentence about an error's status, as " to the prompt 'Hello'".
            retries: None: the client's.
            final: a status that is not worth a repetition.
            is_json: what it answers; False: a text, taken as it is.

        Raises:
            RequestFailed: the server refuses, or failed once more than `retries` times.
        """
        most = self.retries if retries is None else retries
        attempt, before = 0, self._answered
        while True:
            try:
                answer = await self._try(path, body, about, is_json)
                try:
                    found = answer if read is None else read(answer)
                except WrongAnswer as error:
                    raise self._failed(str(error), retries=WRONG_ANSWER_RETRIES) from None
                self._answered += 1
                return found
            except RequestFailed as error:
                if not error.may_pass or error.status == final:
                    raise
                before = before if attempt else self._answered
                if attempt >= min(most, most if error.retries is None else error.retries):
                    times = f", {attempt + 1} times in a row" if attempt else ""
                    alive = self._answered > before
                    raise RequestFailed(f"{error}{times}{WAY_OUT}", error.status, error.said, alive=alive) from None
                wait = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
                await asyncio.sleep(max(wait, error.wait))
                attempt += 1

    async def _try(self, path: str, body: Any, about: str, is_json: bool) -> Any:
        """The JSON or text of one try; parsed here, so that a hostile one cannot take longer than reading it did."""
        try:
            status, content, wait = await asyncio.wait_for(self._fetch(path, body), self.timeout)
        except asyncio.TimeoutError:
            raise self._failed(f"does not answer within {self.timeout:g} seconds") from None
        if not 200 <= status < 300:
            said = self._clean(content.decode(errors="replace"))
            way_in = "name the environment variable of its key with api_key_env"
            if self._key is not None:
                way_in = "see whether the key in the variable that api_key_env names is its own"
            way_in = f"; {way_in}" * (status in (401, 403))
            raise self._failed(f"answers {status} ({said}){about}{way_in}", status, said, wait)
        if not is_json:
            return content.decode(errors="replace")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            streams = content.lstrip()[:5] == b"data:"
            what = "streams its answer, though it is asked not to" if streams else "gives an answer that is not JSON"
            raise self._failed(what, retries=WRONG_ANSWER_RETRIES) from None

    async def _fetch(self, path: str, body: Any) -> tuple[int, bytes, float]:
        """(status, content, seconds to wait) of one request, redirects within the origin followed."""
        import httpx2

        url = httpx2.URL(f"{self.url}/{path}" if path else self.url)
        origin = _origin(url)
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        method = "GET" if data is None else "POST"
        try:
            for _ in range(MOST_REDIRECTS + 1):
                async with self._http.stream(method, url, content=data, headers=headers) as response:
                    if response.status_code in (301, 302, 303, 307, 308):
                        if response.status_code == 303 and method == "POST":
                            raise self._failed("redirects a POST to a GET (303)", 303)
                        url = self._target(url, response, origin)
                        continue
                    return response.status_code, await self._content(response), _asked_wait(response)
            raise self._failed(f"redirects more than {MOST_REDIRECTS} times", response.status_code)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise self._failed(f"cannot be reached ({self._reason(error)})") from None
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise self._failed(f"breaks off its answer ({self._reason(error)})") from None

    def _target(self, url: httpx2.URL, response: httpx2.Response, origin: tuple[str, str, int | None]) -> httpx2.URL:
        import httpx2

        try:
            target = url.join(response.headers["location"])
        except (KeyError, ValueError, httpx2.InvalidURL):
            raise self._failed(f"redirects ({response.status_code}) to no address", response.status_code) from None
        if _origin(target) != origin:
            where = self._clean(f"{target.scheme}://{target.host}" + (f":{target.port}" if target.port else ""))
            raise self._failed(
                f"redirects to another origin ({where}), to which neither the key nor a prompt is sent; "
                "set url to the address that is meant",
                response.status_code,
            )
        return target

    async def _content(self, response: httpx2.Response) -> bytes:
        content = bytearray()
        failed = not response.is_success
        async for chunk in response.aiter_bytes():
            content += chunk
            if failed and len(content) > MOST_ERROR_BYTES:
                break
            if len(content) > MOST_BYTES:
                what = f"gives an answer of more than {MOST_BYTES >> 20} MiB"
                raise self._failed(what, retries=WRONG_ANSWER_RETRIES)
        return bytes(content)

    def _clean(self, text: str) -> str:
        """The beginning of what a server says, on one line, without the key and what a terminal would obey."""
        if self._key is not None:
            text = text.replace(self._key, "<key>")
        return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:200]

    def _reason(self, error: BaseException) -> str:
        """The operating system's reason for an error of httpx, where it has one."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno:
                return self._clean(os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror))
            cause = cause.__cause__ or cause.__context__
        return self._clean(str(error) or type(error).__name__)

    def _failed(
        self, what: str, status: int | None = None, said: str = "", wait: float = 0.0, retries: int | None = None
    ) -> RequestFailed:
        return RequestFailed(f"{self.who}: {self.url} {what}", status, said, wait, retries)


def completed(jobs: Mapping[Future[Result], Label], *clients: JsonClient) -> Iterator[tuple[Label, Result]]:
    """(label, result) of the clients' jobs, as they come.

    Once a job fails no other begins; those that run are waited for and given out, and then the failure is raised.
    """
    failure = None
    for future in as_completed(jobs):
        if future.cancelled():
            continue
        error = future.exception()
        if error is None:
            yield jobs[future], future.result()
        elif failure is None:
            failure = error
            for client in clients:
                client.drain()
    if failure is not None:
        raise failure


def _open_client(url: str, connect: float) -> httpx2.AsyncClient:
    import httpx2

    for name in ("httpx2", "httpcore2"):  # their debugging lines hold headers
        logging.getLogger(name).setLevel(logging.WARNING)
    host = urlsplit(url).hostname or ""
    near = _is_loopback(host)
    try:
        return httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=connect),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
            mounts={f"all://{f'[{host}]' if ':' in host else host}": None} if near else {},
            verify=not (near and url.startswith("http:")),  # where nothing is to be verified: no certificates are read
        )
    except (ImportError, ValueError, OSError, httpx2.InvalidURL):
        raise InputError(
            "environment: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY or SSL_CERT_FILE holds what no client can use "
            "(for SOCKS: pip install 'httpx2[socks]'); mend or unset it"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port  # httpx leaves a scheme's own port out


def _asked_wait(response: httpx2.Response) -> float:
    seconds = response.headers.get("retry-after", "")
    return min(LONGEST_WAIT, float(seconds)) if re.fullmatch(r"[0-9]{1,9}", seconds) else 0.0
