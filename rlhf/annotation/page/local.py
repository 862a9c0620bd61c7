"""A page for this machine alone: the loopback address and a port, until it is interrupted."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from rlhf.errors import InputError

HOST = "127.0.0.1"


def listen(port: int) -> socket.socket:
    """A socket that listens there: who comes before the server answers waits for it. 0 is any port that is free.

    Raises:
        InputError: the port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise InputError(f"port: {port} cannot be had ({error.strerror}); name another with --port") from error
    return listener


def address_of(listener: socket.socket, token: str) -> str:
    """What to open in a browser."""
    return f"http://{HOST}:{listener.getsockname()[1]}/{token}/"


def serve_app(app: Callable[..., Any], listener: socket.socket) -> None:
    """Answer until interrupted."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])
