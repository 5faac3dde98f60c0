"""Serves an ASGI application with uvicorn. wshub serves the WebSockets."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import ssl
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from wshub.brokers.workers_directory import DIRECTORY_VARIABLE, SocketDirectory
from wshub.errors import ConfigurationError
from wshub.links.tls import mark_as_own
from wshub.protocol.validation import check_integer, check_port

__all__ = ["LOOPS", "PROTOCOL_CLASS", "check_address", "run"]

logger = logging.getLogger("wshub.broker")

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


def create_own_ssl_context(_config: Any, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """Return the context that uvicorn creates for its certificate, marked as one that no application has."""
    return mark_as_own(default())


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


@contextlib.contextmanager
def shared_directory(workers: int) -> Iterator[None]:
    """Make a directory in which the hubs of several workers find one another, and name it in the environment.

    A single worker has none. If a worker of another server has started this one, it leaves that server's directory.
    """
    former = os.environ.pop(DIRECTORY_VARIABLE, None)
    directory = make_directory() if workers > 1 else None
    if directory is not None:
        os.environ[DIRECTORY_VARIABLE] = directory
    try:
        yield
    finally:
        os.environ.pop(DIRECTORY_VARIABLE, None)
        if former is not None:
            os.environ[DIRECTORY_VARIABLE] = former
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def make_directory() -> str | None:
    """Return the path of a new directory for this user alone; None if there can be none."""
    # systemd removes its directory with the service, also if this process is killed. It may name several.
    from_systemd = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    problem: Exception | None = None
    for parent in dict.fromkeys((from_systemd or None, None, "/tmp")):
        try:
            directory = tempfile.mkdtemp(prefix="wshub-", dir=parent)
        except OSError as error:
            problem = error
            continue
        try:
            SocketDirectory.check(directory)
            return directory
        except ConfigurationError as error:
            problem = error
            os.rmdir(directory)
    logger.warning("no directory can be made for the workers: the rooms of each are its own: %s", problem)
    return None


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
    if options.get("ssl_certfile"):
        options.setdefault("ssl_context_factory", create_own_ssl_context)
    with shared_directory(count_workers(options)):
        uvicorn.run(app, loop=LOOPS.get(loop, loop), **options)
