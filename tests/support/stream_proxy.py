"""A proxy of byte streams, TCP or Unix, that fails as networks do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

# Bytes of one read, and bytes that one direction of a connection may hold back before it stops reading.
READ_SIZE = 65_536
MAX_HELD = 1 << 20


class Direction:
    """One direction of a connection. It reads, waits as long as it has to, and writes."""

    def __init__(
        self, proxy: StreamProxy, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.proxy = proxy
        self.name = name
        self.reader = reader
        self.writer = writer
        # Pieces that have arrived, each with the time at which it may leave; b"" is the end.
        self.held: deque[tuple[float, bytes]] = deque()
        self.held_bytes = 0
        self.changed = asyncio.Event()

    async def read(self) -> None:
        """Take what arrives. Behind a black hole the peer's bytes are taken until MAX_HELD of them wait."""
        loop = asyncio.get_running_loop()
        while True:
            while self.held_bytes > MAX_HELD:
                self.changed.clear()
                await self.changed.wait()
            data = await self.reader.read(READ_SIZE)
            self.proxy.arrived[self.name] += len(data)
            self.held.append((loop.time() + self.proxy.delay, data))
            self.held_bytes += len(data)
            self.changed.set()
            if not data:
                return

    async def write(self) -> None:
        """Pass on what may leave."""
        loop = asyncio.get_running_loop()
        while True:
            await self.proxy.passable[self.name].wait()
            if not self.held:
                self.changed.clear()
                await self.changed.wait()
                continue
            due, data = self.held[0]
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
                continue
            self.held.popleft()
            self.held_bytes -= len(data)
            self.changed.set()
            if not data:
                if self.writer.can_write_eof():
                    self.writer.write_eof()
                return
            await self.pass_on(data)

    async def pass_on(self, data: bytes) -> None:
        """Write a piece: whole, byte by byte, or up to the byte at which the connection is to be reset."""
        proxy = self.proxy
        limit = proxy.reset_after.get(self.name)
        if limit is not None:
            proxy.reset_after[self.name] = limit - len(data)
            if limit <= len(data):
                del proxy.reset_after[self.name]
                self.writer.write(data[:limit])
                await self.writer.drain()
                raise ConnectionResetError("the proxy was asked to")
        step = 1 if proxy.one_byte_at_a_time else len(data)
        for start in range(0, len(data), step):
            # A hole may open in the middle.
            await proxy.passable[self.name].wait()
            piece = data[start : start + step]
            self.writer.write(piece)
            await self.writer.drain()
            proxy.passed[self.name] += len(piece)
            if step == 1:
                await asyncio.sleep(0)


class StreamProxy:
    """Passes connections on to a server. Directions are ``"up"``, from the client to the server, and ``"down"``.

    Every fault applies to connections that exist, and to new ones.

    Args:
        target: where the server listens: a host and a port, or the path of a Unix socket.
    """

    def __init__(self, target: tuple[str, int] | Path) -> None:
        self.target = target
        # Seconds that every byte is held back.
        self.delay = 0.0
        # Whether each byte is written alone, in an iteration of the loop of its own.
        self.one_byte_at_a_time = False
        # Bytes that a direction still passes on before the connection that reaches it is reset; once.
        self.reset_after: dict[str, int] = {}
        self.passable = {"up": asyncio.Event(), "down": asyncio.Event()}
        for event in self.passable.values():
            event.set()
        # Bytes that have arrived at the proxy, and bytes that it has passed on.
        self.arrived = {"up": 0, "down": 0}
        self.passed = {"up": 0, "down": 0}
        # Connections ever accepted.
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._port = 0
        self._path: Path | None = None
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}

    @property
    def port(self) -> int:
        """The port that clients connect to, if it listens on TCP."""
        return self._port

    @property
    def path(self) -> Path | None:
        """The path that clients connect to, if it listens on a Unix socket."""
        return self._path

    @property
    def connection_count(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    async def listen(self, path: Path | None = None) -> None:
        """Accept connections on a free port of the loopback, or at a path. After ``refuse()`` it is the same again."""
        self._path = path or self._path
        if self._path is not None:
            self._server = await asyncio.start_unix_server(self._accept, self._path)
        else:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    def black_hole(self, *directions: str) -> None:
        """Pass nothing on in these directions, by default both. Connections stay open, and bytes are held back."""
        for direction in directions or ("up", "down"):
            self.passable[direction].clear()

    def open_holes(self) -> None:
        """Pass on again, what was held back first."""
        for event in self.passable.values():
            event.set()

    async def refuse(self) -> None:
        """Refuse new connections, until ``listen()``. Those that exist stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
            if self._path is not None:
                self._path.unlink(missing_ok=True)

    async def reset(self) -> None:
        """End every connection at once on both sides, over TCP with an RST. Bytes that were held back are lost."""
        connections = list(self._connections.items())
        for task, writers in connections:
            for writer in writers:
                abort(writer)
            task.cancel()
        await asyncio.gather(*(task for task, _ in connections), return_exceptions=True)

    async def heal(self) -> None:
        """End every fault."""
        self.delay = 0.0
        self.one_byte_at_a_time = False
        self.reset_after.clear()
        self.open_holes()
        if self._server is None:
            await self.listen()

    async def close(self) -> None:
        """End everything."""
        await self.refuse()
        await self.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.accepted += 1
        writers = self._connections[task] = [writer]
        try:
            if isinstance(self.target, Path):
                server_reader, server_writer = await asyncio.open_unix_connection(self.target)
            else:
                server_reader, server_writer = await asyncio.open_connection(*self.target)
            writers.append(server_writer)
            directions = (
                Direction(self, "up", reader, server_writer),
                Direction(self, "down", server_reader, writer),
            )
            async with asyncio.TaskGroup() as group:
                for direction in directions:
                    group.create_task(direction.read())
                    group.create_task(direction.write())
        except* OSError:
            # A side that is gone, or the reset that was asked for, ends the other one too.
            pass
        except* asyncio.CancelledError:
            # By reset(). The streams of asyncio would log it.
            pass
        finally:
            del self._connections[task]
            for each in writers:
                abort(each)


def abort(writer: asyncio.StreamWriter) -> None:
    """End one side of a connection at once."""
    connected = writer.get_extra_info("socket")
    if connected is not None and connected.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.asynccontextmanager
async def proxying(target: tuple[str, int] | Path, path: Path | None = None) -> AsyncIterator[StreamProxy]:
    """Run a proxy in front of a server, on a free port or at a path."""
    proxy = StreamProxy(target)
    await proxy.listen(path)
    try:
        yield proxy
    finally:
        await proxy.close()
