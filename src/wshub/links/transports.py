"""Which transports carry the connections that the native reactor does not."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

try:
    import fcntl
    import termios
except ImportError:
    HAS_IOCTL = False
else:
    HAS_IOCTL = True

__all__ = ["create_server", "unacknowledged_octets"]


async def create_server(
    loop: asyncio.AbstractEventLoop,
    protocol_factory: Callable[[], Any],
    *address: Any,
    ssl: Any,
    original: Callable[..., Awaitable[Any]] | None = None,
    **options: Any,
) -> Any:
    """What ``loop.create_server`` does; TLS over aiofastnet's transports, where it is installed.

    ``original`` is the method of the loop, where something else has been put in its place.
    """
    if ssl is not None:
        try:
            import aiofastnet
        except ImportError:
            pass
        else:
            logging.getLogger("asyncio").addFilter(_has_no_class_for_an_error)
            return await aiofastnet.create_server(loop, protocol_factory, *address, ssl=ssl, **options)
    return await (original or loop.create_server)(protocol_factory, *address, ssl=ssl, **options)


def unacknowledged_octets(transport: asyncio.Transport) -> int:
    """How many octets of what was sent the kernel still holds for the peer; 0 where it cannot be asked."""
    socket = transport.get_extra_info("socket")
    if not HAS_IOCTL or socket is None:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):
        return 0


def _has_no_class_for_an_error(record: logging.LogRecord) -> bool:
    """Leave out of the log what logging cannot format.

    Of a client that leaves during the handshake of TLS, aiofastnet tells with a class where an exception should be.
    """
    return record.exc_info is None or not isinstance(record.exc_info[1], type)
