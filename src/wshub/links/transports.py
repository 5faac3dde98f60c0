"""The transports of connections that the native reactor does not carry."""

from __future__ import annotations

import asyncio
import socket
import ssl as ssl_module
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from wshub.links.tls import load_aiofastnet, suits_aiofastnet

try:
    import fcntl
    import termios
except ImportError:
    HAS_IOCTL = False
else:
    HAS_IOCTL = True

__all__ = ["connect_accepted_socket", "unacked_bytes"]


async def connect_accepted_socket(
    loop: asyncio.AbstractEventLoop,
    create_protocol: Callable[[], Any],
    connected: socket.socket,
    *,
    ssl: ssl_module.SSLContext | None,
    timeout: float,
) -> Any:
    """Connect a protocol to an accepted socket: with TLS over aiofastnet's transports, if these can carry it.

    Args:
        loop: the running loop.
        create_protocol: makes the protocol.
        connected: a non-blocking socket.
        ssl: an SSLContext, or None.
        timeout: seconds that the TLS handshake may take, and its shutdown too.
    """
    if ssl is None:
        return await loop.connect_accepted_socket(create_protocol, connected)
    connect = partial(loop.connect_accepted_socket, create_protocol, connected)
    aiofastnet = load_aiofastnet()
    if aiofastnet is not None and suits_aiofastnet(ssl):
        connect = partial(aiofastnet.connect_accepted_socket, loop, create_protocol, connected)
    return await connect(ssl=ssl, ssl_handshake_timeout=timeout, ssl_shutdown_timeout=timeout)


def unacked_bytes(transport: asyncio.Transport) -> int:
    """Return the sent bytes that the kernel still holds for the peer; 0 if it cannot be asked."""
    connected = transport.get_extra_info("socket")
    if not HAS_IOCTL or connected is None:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):
        return 0
