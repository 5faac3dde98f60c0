"""Asks the kernel about the socket of a transport."""

from __future__ import annotations

import asyncio
import sys

try:
    import fcntl
    import termios
except ImportError:
    HAS_IOCTL = False
else:
    HAS_IOCTL = True

__all__ = ["unacked_bytes"]


def unacked_bytes(transport: asyncio.Transport) -> int:
    """Return the sent bytes that the kernel still holds for the peer; 0 if it cannot be asked."""
    connected = transport.get_extra_info("socket")
    if not HAS_IOCTL or connected is None:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):
        return 0
