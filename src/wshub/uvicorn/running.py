"""Serves an ASGI application with uvicorn. wshub serves the WebSockets."""

from __future__ import annotations

import os
from typing import Any

import uvicorn

from wshub.protocol.validation import check_integer, check_port
from wshub.uvicorn.shared_directory import shared_directory

__all__ = ["LOOPS", "PROTOCOL_CLASS", "check_address", "run"]

PROTOCOL_CLASS = "wshub.uvicorn.protocol:WebSocketProtocol"

LOOPS = {
    "auto": "wshub.uvicorn.event_loop:new_event_loop",
    "asyncio": "wshub.uvicorn.event_loop:new_asyncio_loop",
    "uvloop": "wshub.uvicorn.event_loop:new_uvloop_loop",
}

GRACEFUL_SHUTDOWN = 60
"""Default of ``timeout_graceful_shutdown``: seconds that connections and requests have to end at shutdown."""


def check_address(options: dict[str, Any]) -> None:
    """Raise ``ConfigurationError`` for an invalid port or backlog among the options."""
    if options.get("port") is not None:
        options["port"] = check_port(options["port"])
    if options.get("backlog") is not None:
        options["backlog"] = check_integer("backlog", options["backlog"], 0, 2**31 - 1)


def count_workers(options: dict[str, Any]) -> int:
    """Return how many processes uvicorn will serve with."""
    workers = options.get("workers")
    if workers is None:
        workers = os.environ.get("WEB_CONCURRENCY", "1")
    try:
        return 1 if options.get("reload") else int(workers)
    except ValueError:
        # uvicorn refuses it.
        return 1


def run(app: Any, *, loop: str = "auto", **options: Any) -> None:
    """Serve an application until SIGINT or SIGTERM, which closes every connection of its hubs with 1001.

    With several ``workers``, hubs without a broker are joined: what one sends to a room reaches members in all workers.

    Args:
        app: an ASGI application. ``workers`` and ``reload`` need an import string instead: ``"main:app"``.
        loop: ``"auto"``, ``"asyncio"``, ``"uvloop"``, or the import string of a function that creates a loop.
        options: all others of ``uvicorn.run()``, such as ``host``, ``port``, ``uds``, ``workers``, ``ssl_certfile``.

    Raises:
        ConfigurationError: the port or the backlog is invalid.
    """
    check_address(options)
    options.setdefault("ws", PROTOCOL_CLASS)
    options.setdefault("timeout_graceful_shutdown", GRACEFUL_SHUTDOWN)
    with shared_directory(count_workers(options)):
        uvicorn.run(app, loop=LOOPS.get(loop, loop), **options)
