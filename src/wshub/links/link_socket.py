"""The socket of a link, as far as a transport lends it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

from wshub.links.transport_stream import TransportStream

__all__ = ["LinkSocket"]


class LinkSocket:
    """The result of ``get_extra_info("socket")``: it knows its addresses, and sets options. The link owns the socket.

    Args:
        stream: of the link.
    """

    def __init__(self, stream: TransportStream) -> None:
        self._stream = stream
        with self._borrowed() as borrowed:
            self.family = borrowed.family
            self.type = borrowed.type
            self.proto = borrowed.proto
            self._own_name = borrowed.getsockname()
            try:
                self._peer_name = borrowed.getpeername()
            except OSError:
                # The peer has gone already.
                self._peer_name = stream.peer

    def __repr__(self) -> str:
        return f"<LinkSocket fd={self.fileno()}, laddr={self._own_name}, raddr={self._peer_name}>"

    def fileno(self) -> int:
        """Return the descriptor; -1 if the link has ended."""
        return self._stream.fileno()

    def getsockname(self) -> Any:
        """Return the address of this side, also after the end."""
        return self._own_name

    def getpeername(self) -> Any:
        """Return the address of the peer, also after the end."""
        return self._peer_name

    def dup(self) -> socket.socket:
        """Return a socket with a duplicate of the descriptor."""
        with self._borrowed() as borrowed:
            return borrowed.dup()

    def getsockopt(self, *arguments: Any) -> int | bytes:
        """Return an option, as ``socket.getsockopt()`` does."""
        with self._borrowed() as borrowed:
            return borrowed.getsockopt(*arguments)

    def setsockopt(self, *arguments: Any) -> None:
        """Set an option, as ``socket.setsockopt()`` does."""
        with self._borrowed() as borrowed:
            borrowed.setsockopt(*arguments)

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[socket.socket]:
        descriptor = self._stream.fileno()
        if descriptor < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        borrowed = socket.socket(fileno=descriptor)
        try:
            yield borrowed
        finally:
            borrowed.detach()
