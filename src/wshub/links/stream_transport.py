"""An asyncio transport over a link, for a protocol that needs one.

With it, uvicorn's HTTP protocol serves a TLS connection of the reactor.
"""

from __future__ import annotations

import asyncio
import contextvars
import ssl
from collections.abc import Callable, Iterable
from typing import Any

from wshub.links.failures import raise_from_loop
from wshub.links.link import Link
from wshub.links.link_socket import LinkSocket
from wshub.links.reactor_api import Reactor
from wshub.links.transport_stream import TransportStream

__all__ = ["CLOSE_TIMEOUT", "StreamTransport"]

HIGH_WATER = 64 * 1024
"""Bytes that may wait before the protocol is asked to pause, as in asyncio's transports."""

CLOSE_TIMEOUT = 10.0
"""Seconds without progress after which a closing connection is aborted."""


_SOCKET_INFO: dict[str, Callable[[LinkSocket], Any]] = {
    "socket": lambda lent: lent,
    "peername": LinkSocket.getpeername,
    "sockname": LinkSocket.getsockname,
}

_TLS_INFO: dict[str, Callable[[ssl.SSLObject], Any]] = {
    "ssl_object": lambda tls: tls,
    "sslcontext": lambda tls: tls.context,
    "peercert": lambda tls: tls.getpeercert(),
    "cipher": lambda tls: tls.cipher(),
    "compression": lambda tls: tls.compression(),
}


class StreamTransport(asyncio.Transport):
    """Gives a protocol what it would have from a TLS transport of the event loop.

    Like that one it cannot be half closed. It keeps the reactor open until it ends. The protocol is called from the
    loop only, and ``pause_writing()`` from ``write()``.

    Args:
        loop: the running loop.
        reactor: that the link is one of.
        link: the connection. Its TLS handshake is over.
        protocol: gets what arrives from ``start()`` on.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, reactor: Reactor, link: Link, protocol: asyncio.BaseProtocol
    ) -> None:
        super().__init__()
        self._loop = loop
        self._reactor = reactor
        self._protocol = protocol
        # As with the loop's own transports, what one connection sets in its context is not seen by another.
        self._context = contextvars.copy_context()
        self._closing = False
        self._paused = False
        # Bytes that arrived while the protocol had paused reading, or before those were handed on.
        self._held: list[bytes] = []
        self._held_end = False
        self._high, self._low = HIGH_WATER, HIGH_WATER // 4
        self._writing_paused = False
        self._close_timer: asyncio.TimerHandle | None = None
        # The error for connection_lost(), if it is not that of the link.
        self._error: Exception | None = None
        self._lost_notified = False
        self._stream = TransportStream(link, self._received, self._ended, self._short_again, self._lost)
        try:
            self._socket = LinkSocket(self._stream)
        except BaseException:
            self._stream.abandon()
            raise
        self._ssl_object = link.get_ssl_object()
        reactor.retain()

    @property
    def reactor(self) -> Reactor:
        """The reactor that the link is one of."""
        return self._reactor

    @property
    def link(self) -> Link | None:
        """The link below; None once it has ended, or has been handed over."""
        return self._stream.link

    def start(self, data: bytes = b"") -> None:
        """Call ``connection_made()``, then ``data_received()`` with bytes that have been read already."""
        self._call("connection_made", self._protocol.connection_made, self)
        if data:
            self._received(data)

    def hand_over(self, take: Callable[[Link], None]) -> None:
        """Call ``take`` with the link, to which it gives another receiver. The transport ends without an error.

        If ``take`` raises before it has, the transport goes on.
        """
        try:
            self._stream.hand_over(take)
        finally:
            if self._stream.is_over:
                self._closing = True
                self._loop.call_soon(self._lost, None)

    # The interface of asyncio.Transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information about the connection: the names of asyncio's TLS transports are known."""
        if name in _SOCKET_INFO:
            return _SOCKET_INFO[name](self._socket)
        if name in _TLS_INFO and self._ssl_object is not None:
            return _TLS_INFO[name](self._ssl_object)
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another protocol called from now on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol

    def is_closing(self) -> bool:
        """Return whether the transport has been closed, or has ended."""
        return self._closing

    def close(self) -> None:
        """Send what waits, then close_notify. Nothing more is received.

        The protocol is told when all has left. The link ends when the peer has ended its side too.
        """
        if self._closing:
            return
        self._closing = True
        self._held.clear()
        self._stream.finish()
        self._stream.call_when_short(0)
        # The next call tells of progress from here on.
        self._stream.is_taken()
        self._close_timer = self._loop.call_later(CLOSE_TIMEOUT, self._check_close)

    def abort(self) -> None:
        """End the connection at once. What waits is dropped."""
        self._closing = True
        self._held.clear()
        self._stream.abort()

    def is_reading(self) -> bool:
        """Return whether the protocol is called with what arrives."""
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        """Call ``data_received()`` no more until ``resume_reading()``."""
        if not self._paused and not self._closing:
            self._paused = True
            self._stream.pause()

    def resume_reading(self) -> None:
        """Call ``data_received()`` again."""
        if not self._paused or self._closing:
            return
        self._paused = False
        if self._held or self._held_end:
            self._loop.call_soon(self._deliver_held)
        self._stream.resume()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send the bytes, in the current iteration of the loop or the next. A closing transport ignores them."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data: expected a bytes-like object, got {type(data).__name__}")
        if not self._closing:
            self._stream.write(bytes(data))
            self._pause_if_full()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        """Send the bytes of all."""
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        """Raise ``NotImplementedError``: TLS has no half-closed connections here."""
        raise NotImplementedError("this transport cannot be half closed: use close()")

    def can_write_eof(self) -> bool:
        """Return False."""
        return False

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait. A short write counts as 64 bytes."""
        return self._stream.pending_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low and the high limit."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when the protocol is asked to pause writing, and to resume it."""
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        self._pause_if_full()

    # The end of a closing transport

    def _check_close(self) -> None:
        if self._stream.is_taken():
            self._close_timer = self._loop.call_later(CLOSE_TIMEOUT, self._check_close)
            return
        if self._stream.pending_bytes:
            self._error = TimeoutError("the peer does not read what it is sent")
        self._stream.abort()

    # From the stream

    def _received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._paused or self._held:
            self._held.append(data)
        else:
            self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        protocol: Any = self._protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            self._call("buffer_updated", _fill_buffers, protocol, data)
        else:
            self._call("data_received", protocol.data_received, data)

    def _deliver_held(self) -> None:
        while self._held and not self._paused:
            self._deliver(self._held.pop(0))
        if self._held_end and not self._paused:
            self._held_end = False
            self._ended()

    def _ended(self) -> None:
        if self._closing:
            return
        if self._paused or self._held:
            self._held_end = True
            return
        protocol: Any = self._protocol
        self._call("eof_received", protocol.eof_received)
        # The result does not count: TLS has no half-closed connections here.
        self.close()

    def _lost(self, error: OSError | None) -> None:
        self._closing = True
        if self._close_timer is not None:
            self._close_timer.cancel()
        if not self._loop.is_closed():
            # Not at once: a run of the reactor may have made this call.
            self._loop.call_soon(self._reactor.release)
        self._notify_lost(self._error or error)

    def _notify_lost(self, error: Exception | None) -> None:
        if self._lost_notified:
            return
        self._lost_notified = True
        try:
            self._context.run(self._protocol.connection_lost, error)
        except BaseException as failure:
            self._report("connection_lost", failure)

    # Flow control

    def _pause_if_full(self) -> None:
        stream = self._stream
        if self._writing_paused or stream.pending_bytes <= self._high:
            return
        stream.flush()
        if stream.pending_bytes <= self._high:
            return
        self._writing_paused = True
        stream.call_when_short(self._low)
        try:
            self._protocol.pause_writing()
        except Exception as error:
            self._report("pause_writing", error)

    def _short_again(self) -> None:
        if self._writing_paused:
            self._writing_paused = False
            self._call("resume_writing", self._protocol.resume_writing)
        if self._closing and self._stream.pending_bytes:
            self._stream.call_when_short(0)
        elif self._closing:
            self._notify_lost(self._error)

    # Failures

    def _call(self, name: str, method: Callable[..., Any], *arguments: Any) -> None:
        """Call the protocol. If it raises, the connection ends with that error."""
        try:
            self._context.run(method, *arguments)
        except BaseException as error:
            self._report(name, error)
            self._error = error if isinstance(error, Exception) else None
            self.abort()

    def _report(self, name: str, error: BaseException) -> None:
        if not raise_from_loop(self._loop, error):
            self._loop.call_exception_handler(
                {
                    "message": f"protocol.{name}() has failed",
                    "exception": error,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )


def _fill_buffers(protocol: asyncio.BufferedProtocol, data: bytes) -> None:
    """Give a protocol the bytes in its own buffers."""
    left = memoryview(data)
    while left:
        with memoryview(protocol.get_buffer(len(left))).cast("B") as buffer:
            length = min(len(buffer), len(left))
            if length == 0:
                raise RuntimeError("get_buffer() returned an empty buffer")
            buffer[:length] = left[:length]
        protocol.buffer_updated(length)
        left = left[length:]
