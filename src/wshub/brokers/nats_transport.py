"""The transport for nats-py: a TCP connection that counts its bytes, and that can end at once."""

from __future__ import annotations

import asyncio
import contextlib
import ssl as ssl_module
from collections.abc import Callable, Sequence
from urllib.parse import ParseResult

from nats.aio.transport import TcpTransport

__all__ = ["CountingTransport"]

# Seconds in which a socket must be closed. It is aborted before, so nothing waits to be sent.
CLOSING_SECONDS = 0.1


class CountingTransport(TcpTransport):
    """A connection to a server.

    Args:
        needs_tls: refuse to send anything to a server that does not ask for TLS. nats-py would send the password.
        ended: called with the reason when the connection has ended, or when nats-py has ended it. It may be called
            several times.
    """

    def __init__(self, needs_tls: bool, ended: Callable[[str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes_received = 0
        """Bytes that have arrived."""
        self._needs_tls = needs_tls
        self._ended = ended
        self._bytes_written = 0
        self._stream: asyncio.StreamWriter | None = None

    @property
    def pending_bytes(self) -> int:
        """Bytes that were written and have not left."""
        return self._stream.transport.get_write_buffer_size() if self._stream is not None else 0

    @property
    def bytes_sent(self) -> int:
        """Bytes that have left."""
        return self._bytes_written - self.pending_bytes

    def abort(self) -> None:
        """End the connection at once."""
        if self._stream is not None:
            self._stream.transport.abort()

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        await super().connect(uri, buffer_size, connect_timeout)
        self._stream = self._io_writer

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl_module.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        self._stream = self._io_writer
        self._needs_tls = False

    def write(self, payload: bytes) -> None:
        if self._needs_tls:
            raise ConnectionError("the server does not ask for TLS, and the URL begins with tls://")
        # At the end of a connection nats-py writes what waited, and uvloop's transport raises an error for that.
        if self._stream is not None and not self._stream.transport.is_closing():
            self._bytes_written += len(payload)
            self._stream.write(payload)

    def writelines(self, payload: Sequence[bytes]) -> None:
        # The writelines() of some transports makes a system call for each piece.
        self.write(b"".join(payload))

    async def drain(self) -> None:
        try:
            await super().drain()  # type: ignore[no-untyped-call]
        except OSError as error:
            # A task of nats-py would end with a second error at its attempt to close, which asyncio would log.
            self._ended(str(error) or type(error).__name__)

    async def read(self, buffer_size: int) -> bytes:
        try:
            data: bytes = await super().read(buffer_size)
        except OSError as error:
            self._ended(str(error) or type(error).__name__)
            raise
        if not data:
            self._ended("the engine has ended the connection")
        self.bytes_received += len(data)
        return data

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._ended("")

    async def wait_closed(self) -> None:
        # After a TLS handshake that has failed, the stream never learns that it has ended.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_SECONDS):
                await super().wait_closed()  # type: ignore[no-untyped-call]

    def __bool__(self) -> bool:
        # nats-py makes a transport of its own otherwise.
        return True
