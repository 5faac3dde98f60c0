"""A TCP proxy that can lose or add bytes on single connections. It has threads of its own, whatever the test's loop."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator

__all__ = ["ProxiedConnection", "TcpProxy", "proxy_to"]

SEEN_BYTES = 4096


class Direction:
    """One direction of a connection: passes on what arrives at a socket to another one."""

    def __init__(
        self, source: socket.socket, target: socket.socket, passable: threading.Event, proxy: TcpProxy
    ) -> None:
        self.seen = b""
        """The first bytes that have passed, or have vanished."""
        self.bytes_seen = 0
        """Bytes that have passed, or have vanished."""
        self.is_black_hole = False
        """Whether bytes vanish, as behind a firewall that has forgotten the connection. A test sets it at any time."""
        self.swallowed: re.Pattern[bytes] | None = None
        """Bytes that vanish the next time that they pass in one piece."""
        self.vanish_after: int | None = None
        """The number of further bytes that pass before this becomes a black hole. None if it does not."""
        self._source = source
        self._target = target
        self._passable = passable
        self._proxy = proxy

    def pass_on(self) -> None:
        """Pass bytes on until the source has ended."""
        with contextlib.suppress(OSError):
            while data := self._source.recv(65536):
                self.bytes_seen += len(data)
                self.seen += data[: max(SEEN_BYTES - len(self.seen), 0)]
                if self.swallowed is not None and self.swallowed.search(data):
                    data = self.swallowed.sub(b"", data, count=1)
                    self.swallowed = None
                self._passable.wait()
                if self._proxy.delay_seconds:
                    time.sleep(self._proxy.delay_seconds)
                if self.is_black_hole:
                    continue
                if self.vanish_after is not None:
                    data = data[: self.vanish_after]
                    self.vanish_after -= len(data)
                    self.is_black_hole = not self.vanish_after
                size = self._proxy.piece_bytes
                for start in range(0, len(data), size):
                    self._target.sendall(data[start : start + size])

    def add(self, data: bytes) -> None:
        """Send bytes that have not arrived."""
        self._target.sendall(data)


class ProxiedConnection:
    """A connection of a client through the proxy."""

    def __init__(self, proxy: TcpProxy, client: socket.socket, server: socket.socket) -> None:
        self.to_server = Direction(client, server, proxy.to_server, proxy)
        self.to_client = Direction(server, client, proxy.to_client, proxy)
        self.is_open = True
        self._client = client
        self._server = server
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lock = threading.Lock()
        self._running = 2
        self._threads = [
            threading.Thread(target=self._run, args=(direction,), daemon=True)
            for direction in (self.to_server, self.to_client)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, direction: Direction) -> None:
        direction.pass_on()
        if self.is_open:
            self.end()
        with self._lock:
            self._running -= 1
            if self._running == 0:
                self._client.close()
                self._server.close()

    def send_to_server(self, data: bytes) -> None:
        """Send bytes to the server that the client knows nothing of."""
        self.to_server.add(data)

    def send_to_client(self, data: bytes) -> None:
        """Send bytes to the client that the server knows nothing of."""
        self.to_client.add(data)

    def end(self) -> None:
        """End both sides."""
        self.is_open = False
        for each in (self._client, self._server):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Reset the connection to the client, and end the other side."""
        # The threads may have ended by now, and have closed the sockets.
        with contextlib.suppress(OSError):
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.is_open = False
        # A shutdown of the whole socket would end it in good order.
        for each, how in ((self._server, socket.SHUT_RDWR), (self._client, socket.SHUT_RD)):
            with contextlib.suppress(OSError):
                each.shutdown(how)
        self.join()

    def join(self) -> None:
        """Return when the connection has ended."""
        for thread in self._threads:
            thread.join(10)


class TcpProxy:
    """Listens on a free port of the loopback, and connects to a server for each client."""

    def __init__(self, host: str, port: int) -> None:
        self.refuses = False
        """Whether new connections are ended at once."""
        self.refused = 0
        """New connections that were ended at once."""
        self.delay_seconds = 0.0
        """Seconds that bytes wait in each direction, those that follow meanwhile too."""
        self.piece_bytes = 65536
        """Bytes that are passed on at a time."""
        self.connections: list[ProxiedConnection] = []
        """All connections, in the order of their beginning."""
        self.to_server = threading.Event()
        """While it is clear, bytes to the server are held back."""
        self.to_client = threading.Event()
        """While it is clear, bytes to clients are held back."""
        self.heal()
        self._target = (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def heal(self) -> None:
        """Accept connections, and pass on what was held back."""
        self.refuses = False
        self.to_server.set()
        self.to_client.set()

    def retarget(self, port: int) -> None:
        """Connect new clients to another port of the server's machine. Open connections stay where they are."""
        self._target = (self._target[0], port)

    def open_connections(self, contains: bytes = b"") -> Iterator[ProxiedConnection]:
        """Yield the open connections whose client has sent these bytes near its beginning."""
        for connection in list(self.connections):
            if connection.is_open and contains in connection.to_server.seen:
                yield connection

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                try:
                    if self.refuses:
                        self.refused += 1
                        raise ConnectionRefusedError
                    server = socket.create_connection(self._target)
                except OSError:
                    client.close()
                else:
                    self.connections.append(ProxiedConnection(self, client, server))

    def close(self) -> None:
        """End everything."""
        self.heal()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listening.close()
        for connection in self.connections:
            connection.end()
            connection.join()


@contextlib.contextmanager
def proxy_to(host: str, port: int) -> Iterator[TcpProxy]:
    """Yield a proxy to a server."""
    proxy = TcpProxy(host, port)
    try:
        yield proxy
    finally:
        proxy.close()
