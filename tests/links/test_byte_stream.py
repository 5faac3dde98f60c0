"""A ``ByteStream``: bytes that are written one after another leave together, in order, each once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.links.conftest import make_reactor
from wshub.links.byte_stream import ByteStream

SIZES = (0, 1, 10, 500, 500, 500, 5000, 16_000, 16_384, 16_385, 50_000)


async def read_exactly(peer: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        found = await asyncio.get_running_loop().sock_recv(peer, size - len(data))
        assert found, "the stream has ended"
        data += found
    return bytes(data)


@contextlib.asynccontextmanager
async def opened(carrier: str) -> AsyncIterator[tuple[ByteStream, socket.socket]]:
    """Yield a stream whose kernel takes little at a time, and its peer. Then the peer ends, and so does the stream."""
    reactor = make_reactor(carrier)
    lost: list[Any] = []
    ours, peer = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    ours.setblocking(False)
    peer.setblocking(False)
    stream = ByteStream(lambda _data: None, lost.append)
    await stream.open(reactor, ours)
    yield stream, peer
    peer.close()
    while not lost:
        await asyncio.sleep(0)
    assert stream.pending_bytes == 0
    stream.write(b"after")
    reactor.close()


@pytest.mark.parametrize("seed", range(5))
async def test_bytes_leave_in_order_however_they_are_written(carrier: str, seed: int) -> None:
    chance = random.Random(seed)
    async with opened(carrier) as (stream, peer):
        written, received = bytearray(), bytearray()
        for number in range(400):
            data = bytes([number % 251]) * chance.choice(SIZES)
            stream.write(data)
            written += data
            if chance.randrange(3) == 0:
                await asyncio.sleep(0)
            if chance.randrange(20) == 0:
                received += await read_exactly(peer, chance.randint(0, len(written) - len(received)))
        received += await read_exactly(peer, len(written) - len(received))
        assert received == written
        assert stream.bytes_sent == len(written)
        assert stream.pending_bytes == 0


async def test_bytes_that_were_written_stay_as_they_are(carrier: str) -> None:
    async with opened(carrier) as (stream, peer):
        for _ in range(20_000):
            stream.write(b"first")
        await asyncio.sleep(0)
        # The kernel has taken a part. The rest is in memory that gets longer now.
        assert stream.bytes_sent > 0
        assert stream.pending_bytes > 0 or carrier == "transports"
        for _ in range(20_000):
            stream.write(b"other")
        assert await read_exactly(peer, 200_000) == b"first" * 20_000 + b"other" * 20_000


@pytest.mark.parametrize("end", ["finish", "abort"])
async def test_nothing_is_written_after_the_end(carrier: str, end: str) -> None:
    async with opened(carrier) as (stream, peer):
        stream.write(b"before" * 5000)
        getattr(stream, end)()
        stream.write(b"after" * 10)
        received = bytearray()
        while data := await asyncio.get_running_loop().sock_recv(peer, 1 << 16):
            received += data
        assert received == (b"before" * 5000 if end == "finish" else b"")
