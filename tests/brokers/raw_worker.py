"""A worker made by hand: it speaks records over a socket, and can do wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import struct
from pathlib import Path

from tests.brokers.mesh import Node
from wshub.brokers.interface import NodeInfo
from wshub.brokers.workers_hello import Hello

HELLO, SNAPSHOT, SUBSCRIBE, UNSUBSCRIBE, ENVELOPE, PING, PONG, GAP, GOODBYE, SNAPSHOT_END = range(1, 11)
MATCHING = 13


def record(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("<IB", 1 + len(body), kind) + body


def channels(*names: str) -> bytes:
    return b"".join(struct.pack("<I", len(name.encode())) + name.encode() for name in names)


def number(value: int) -> bytes:
    return struct.pack("<Q", value)


class RawWorker:
    """One connection, as another worker would have it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node_id: str = "") -> None:
        self.reader = reader
        self.writer = writer
        self.info = NodeInfo(id=node_id or secrets.token_hex(8), hub="hub", pid=os.getpid())

    @classmethod
    async def connect(cls, node: Node, node_id: str = "") -> RawWorker:
        directory = node.session.directory
        return cls(*await asyncio.open_unix_connection(directory._path(directory._name)), node_id)

    @classmethod
    def blocking(cls, node: Node) -> RawWorker:
        """Connect with a blocking socket, which sends at once. It cannot be read."""
        directory = node.session.directory
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(directory._path(directory._name))
        return cls(asyncio.StreamReader(), BlockingWriter(connected))  # type: ignore[arg-type]

    @classmethod
    async def meet(cls, node: Node, node_id: str = "", *, serial: int = 1) -> RawWorker:
        """Connect, exchange HELLO, and read the snapshot."""
        raw = await cls.connect(node, node_id)
        raw.hello(serial)
        await raw.answer_hello()
        return raw

    async def answer_hello(self) -> list[tuple[int, bytes]]:
        """Read HELLO and the snapshot, and answer the PING behind it. Return what was read."""
        records = await self.read_until(PING)
        assert [records[0][0], records[1][0], records[-2][0]] == [HELLO, SNAPSHOT, SNAPSHOT_END]
        self.write(PONG, records[-1][1])
        return records

    def hello(self, serial: int = 1, **fields: object) -> None:
        """Say HELLO, as a worker that knows no histories if nothing else is said."""
        self.write(
            HELLO, Hello(self.info, serial, **{"knows_histories": False, "knows_presences": False, **fields}).encode()
        )  # type: ignore[arg-type]

    def write(self, kind: int, body: bytes = b"") -> None:
        self.writer.write(record(kind, body))

    async def read(self) -> tuple[int, bytes]:
        length, kind = struct.unpack("<IB", await self.reader.readexactly(5))
        return kind, await self.reader.readexactly(length - 1)

    async def read_until(self, kind: int) -> list[tuple[int, bytes]]:
        """Read records up to the first one of a kind."""
        records = [await self.read()]
        while records[-1][0] != kind:
            records.append(await self.read())
        return records

    async def is_closed(self) -> bool:
        """Read to the end of the stream."""
        with contextlib.suppress(ConnectionError):
            await self.reader.read()
        return True

    def close(self) -> None:
        self.writer.close()


class RawListener:
    """A socket in the directory that accepts as a worker does, and is served by hand."""

    def __init__(self, path: Path, node: Node, node_id: str) -> None:
        self.id = node_id
        self.path = path / node.session.directory._name.replace(node.info.id, node_id)
        self.accepted: asyncio.Queue[RawWorker] = asyncio.Queue()

    async def __aenter__(self) -> RawListener:
        self.server = await asyncio.start_unix_server(self._accept, str(self.path))
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted.put_nowait(RawWorker(reader, writer, self.id))

    async def __aexit__(self, *error: object) -> None:
        self.server.close()
        while not self.accepted.empty():
            self.accepted.get_nowait().close()
        self.path.unlink(missing_ok=True)


class BlockingWriter:
    """Writes to a socket at once, in place of a StreamWriter."""

    def __init__(self, connected: socket.socket) -> None:
        self.write = connected.sendall
        self.close = connected.close
