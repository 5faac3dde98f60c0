"""The sockets that a server listens on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from typing import Any

from wshub.core.connection_log import address_text
from wshub.protocol.validation import check_port

__all__ = ["UnixAddress", "bind_address", "log_listening", "log_stopped"]

PORT_ATTEMPTS = 10


logger = logging.getLogger("wshub.server")


def log_listening(sockets: Iterable[socket.socket]) -> None:
    """Log the addresses that a server listens on."""
    addresses = _addresses(sockets)
    logger.info("listening on %s", ", ".join(addresses), extra={"event": "listening", "addresses": addresses})


def log_stopped(sockets: Iterable[socket.socket]) -> None:
    """Log that a server is about to close those of its sockets that are open."""
    addresses = _addresses(sockets)
    if addresses:
        logger.info(
            "no longer listening on %s", ", ".join(addresses), extra={"event": "stopped", "addresses": addresses}
        )


def _addresses(sockets: Iterable[socket.socket]) -> list[str]:
    names = [listening.getsockname() for listening in sockets if listening.fileno() >= 0]
    return [address_text(name) if isinstance(name, tuple) else os.fsdecode(name) for name in names]


async def bind_address(host: str | None, port: int) -> list[socket.socket]:
    """Sockets bound to each address of a host; None is all interfaces, and port 0 one port that the system chooses.

    Raises ``OSError`` where one cannot be bound, and ``ConfigurationError`` for a port that cannot be.
    """
    loop = asyncio.get_running_loop()
    # getaddrinfo() would take 70000 for 4464.
    port = check_port(port)
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    attempts = PORT_ATTEMPTS if port == 0 else 1
    while True:
        attempts -= 1
        try:
            return _bind_each(found, port)
        except OSError as error:
            # The port that the system has chosen for one address may be in use at another.
            if not attempts or error.errno != errno.EADDRINUSE:
                raise


def _bind_each(found: Sequence[Any], port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            bound = socket.socket(family, kind, protocol)
            sockets.append(bound)
            bound.setblocking(False)
            if os.name == "posix":
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Connections inherit these from the socket that accepts them.
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if port == 0 and len(sockets) > 1:
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            bound.bind(address)
    except BaseException:
        for bound in sockets:
            bound.close()
        raise
    return sockets


class UnixAddress:
    """A path in the file system to listen on."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._inode: int | None = None

    def bind(self) -> socket.socket:
        """A socket bound to the path, from where one that an earlier process has left is removed.

        Raises ``OSError`` where it cannot be bound.
        """
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(self._path).st_mode):
                os.unlink(self._path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.setblocking(False)
            bound.bind(self._path)
            self._inode = os.stat(self._path).st_ino
        except BaseException:
            bound.close()
            raise
        return bound

    def remove(self) -> None:
        """Remove the path, unless another process has bound it since."""
        with contextlib.suppress(OSError):
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
