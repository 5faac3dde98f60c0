"""Clients that speak TLS through memory, so that a test has every record in its hands."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from types import TracebackType

from tests.support.raw_peers import REQUEST, masked
from wshub import Frame, Opcode

__all__ = ["TlsPeer", "records_of"]


def records_of(data: bytes) -> list[bytes]:
    """Return the records in a stream of whole records."""
    records = []
    while data:
        size = 5 + int.from_bytes(data[3:5], "big")
        records.append(data[:size])
        data = data[size:]
    return records


class TlsPeer:
    """A client, whose records the test sends as they are, or damaged."""

    def __init__(self, port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost", session=session)
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._rest = b""

    async def __aenter__(self) -> TlsPeer:
        try:
            await self.shake_hands()
        except BaseException:
            self.socket.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    async def shake_hands(self) -> None:
        """Complete the TLS handshake."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send_raw(self.outgoing.read())
                await self._receive_more()
            else:
                await self.send_raw(self.outgoing.read())
                return

    async def _receive_more(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16)
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()

    async def open(self) -> None:
        """Make the connection a WebSocket."""
        await self.send(REQUEST)
        while b"\r\n\r\n" not in self._rest:
            self._rest += await self.receive()
        assert b" 101 " in self._rest
        self._rest = self._rest.partition(b"\r\n\r\n")[2]

    def seal(self, data: bytes) -> bytes:
        """Return the records for the data."""
        self.tls.write(data)
        return self.outgoing.read()

    async def send(self, data: bytes) -> None:
        await self.send_raw(self.seal(data))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive(self) -> bytes:
        """Return decrypted bytes, or none if the server has sent close_notify. Raises at any other end."""
        while True:
            try:
                return self.tls.read(1 << 16)
            except ssl.SSLWantReadError:
                await self.send_raw(self.outgoing.read())
                await self._receive_more()
            except ssl.SSLZeroReturnError:
                return b""

    async def message(self) -> bytes:
        """Return the payload of the next frame that is no ping."""
        while True:
            while (decoded := Frame.decode(self._rest)) is None:
                data = await self.receive()
                if not data:
                    raise ConnectionError("the server has sent close_notify")
                self._rest += data
            frame, length = decoded
            self._rest = self._rest[length:]
            if frame.opcode is not Opcode.PING:
                return frame.payload
            await self.send(masked(Frame.pong(frame.payload)))

    async def echo(self, payload: bytes = b"hello") -> None:
        """Have a message echoed."""
        await self.send(masked(Frame.binary(payload)))
        assert await self.message() == payload

    async def is_ended(self) -> ssl.SSLError | OSError | None:
        """Wait until the server has ended the connection. Return how, if it was no close_notify."""
        try:
            while await self.receive():
                pass
        except (ssl.SSLError, OSError) as error:
            return error
        return None

    async def reads_to_end(self) -> bytes:
        """Return the bytes up to the end of the TCP stream, as they are."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16):
                received += data
        return received
