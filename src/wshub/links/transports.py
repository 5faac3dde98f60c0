"""Asks about the connection of a transport: the kernel for its bytes, and TLS for its peer."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

try:
    import fcntl
    import termios
except ImportError:
    HAS_IOCTL = False
else:
    HAS_IOCTL = True

__all__ = ["TransportTls", "unacked_bytes"]


def unacked_bytes(transport: asyncio.Transport) -> int:
    """Return the sent bytes that the kernel still holds for the peer; 0 if it cannot be asked."""
    connected = transport.get_extra_info("socket")
    if not HAS_IOCTL or connected is None:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):
        return 0


class TransportTls:
    """The peer of a TLS transport of the event loop, as a link of its own has it."""

    __slots__ = ("_transport",)

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def getpeercert(self, binary_form: bool = False) -> Any:
        """Return what ``SSLObject.getpeercert()`` does; None once the transport is closing."""
        found = None if self._transport.is_closing() else self._transport.get_extra_info("ssl_object")
        return found.getpeercert(binary_form) if found is not None else None
