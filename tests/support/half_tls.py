"""Clients that connect and do not finish the TLS handshake."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

STARTS = ["nothing", "a byte", "a hello"]


class HalfTls:
    """A connection whose client sends nothing, one byte of a ClientHello, or all of it. ``finish()`` goes on."""

    def __init__(self, port: int, context: ssl.SSLContext, start: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._socket = socket.create_connection(("127.0.0.1", port))
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        hello = self._outgoing.read()
        self._held = b""
        if start == "nothing":
            self._held = hello
        elif start == "a byte":
            self._socket.sendall(hello[:1])
            self._held = hello[1:]
        else:
            self._socket.sendall(hello)
        self._socket.setblocking(False)

    async def ended(self) -> None:
        """Wait until the server has ended the connection."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while await loop.sock_recv(self._socket, 1 << 16):
                pass
        self._socket.close()

    def is_open(self) -> bool:
        """Return whether the connection is still open."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except ConnectionError:
            return False

    async def finish(self) -> None:
        """Finish the handshake."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, self._held)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                data = await loop.sock_recv(self._socket, 1 << 16)
                if not data:
                    raise ConnectionError from None
                self._incoming.write(data)
            else:
                await loop.sock_sendall(self._socket, self._outgoing.read())
                return

    async def send(self, data: bytes) -> None:
        self._tls.write(data)
        await asyncio.get_running_loop().sock_sendall(self._socket, self._outgoing.read())

    async def receive(self) -> bytes:
        """Return data from the server, or no bytes at the end."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return self._tls.read(1 << 16)
            except ssl.SSLWantReadError:
                data = await loop.sock_recv(self._socket, 1 << 16)
                if not data:
                    return b""
                self._incoming.write(data)
            except ssl.SSLError:
                return b""

    def close(self) -> None:
        self._socket.close()
