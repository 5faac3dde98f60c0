"""The proxy that tests of brokers fail with does what it says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.stream_proxy import StreamProxy, proxying


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def proxied(tmp_path: Path, kind: str) -> AsyncIterator[StreamProxy]:
    """Run an echo server with a proxy in front of it: both over TCP, or both over Unix sockets."""
    if kind == "tcp":
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        target: tuple[str, int] | Path = server.sockets[0].getsockname()[:2]
        path = None
    else:
        target, path = tmp_path / "server", tmp_path / "proxy"
        server = await asyncio.start_unix_server(echo, target)
    async with proxying(target, path) as proxy:
        yield proxy
    server.close()
    # No connection is left when the proxy has closed.
    assert proxy.connection_count == 0


async def connect(proxy: StreamProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if proxy.path is not None:
        return await asyncio.open_unix_connection(proxy.path)
    return await asyncio.open_connection("127.0.0.1", proxy.port)


pytestmark = pytest.mark.parametrize("kind", ["tcp", "unix"])


async def test_it_passes_bytes_on_in_both_directions(tmp_path: Path, kind: str) -> None:
    async with proxied(tmp_path, kind) as proxy:
        reader, writer = await connect(proxy)
        data = bytes(range(256)) * 20_000
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.write_eof()
        assert await reader.read() == b""
        assert proxy.arrived == proxy.passed == {"up": len(data), "down": len(data)}
        writer.close()


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_black_hole_holds_back_one_direction(tmp_path: Path, kind: str, direction: str) -> None:
    async with proxied(tmp_path, kind) as proxy:
        reader, writer = await connect(proxy)
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        proxy.black_hole(direction)
        writer.write(b"behind")
        while proxy.arrived[direction] < 12:
            await asyncio.sleep(0.001)
        assert proxy.passed["down"] == 6
        assert proxy.passed["up"] == (6 if direction == "up" else 12)
        # The connection is open, and a new one is in the same hole.
        second_reader, second_writer = await connect(proxy)
        second_writer.write(b"too")
        while proxy.arrived[direction] < 15:
            await asyncio.sleep(0.001)
        proxy.open_holes()
        assert await reader.readexactly(6) == b"behind"
        assert await second_reader.readexactly(3) == b"too"
        for each in (writer, second_writer):
            each.close()


async def test_a_black_hole_takes_a_bounded_number_of_bytes(tmp_path: Path, kind: str) -> None:
    async with proxied(tmp_path, kind) as proxy:
        _, writer = await connect(proxy)
        proxy.black_hole("up")
        writer.write(bytes(32 << 20))
        arrived = -1
        while arrived != proxy.arrived["up"]:
            arrived = proxy.arrived["up"]
            await asyncio.sleep(0.05)
        assert 1 << 20 <= arrived < 2 << 20
        assert writer.transport.get_write_buffer_size() > 0
        writer.transport.abort()


async def test_it_delays_every_byte(tmp_path: Path, kind: str) -> None:
    async with proxied(tmp_path, kind) as proxy:
        reader, writer = await connect(proxy)
        proxy.delay = 0.05
        loop = asyncio.get_running_loop()
        before = loop.time()
        writer.write(b"late")
        assert await reader.readexactly(4) == b"late"
        assert loop.time() - before >= 0.09
        writer.close()


async def test_it_passes_one_byte_at_a_time(tmp_path: Path, kind: str) -> None:
    async with proxied(tmp_path, kind) as proxy:
        reader, writer = await connect(proxy)
        proxy.one_byte_at_a_time = True
        writer.write(b"slowly")
        pieces = [await reader.read(100)]
        while sum(map(len, pieces)) < 6:
            pieces.append(await reader.read(100))
        assert b"".join(pieces) == b"slowly"
        # The reader may be slower than the proxy.
        assert len(pieces) > 1
        writer.close()


async def test_it_resets_a_connection_in_the_middle_of_a_direction(tmp_path: Path, kind: str) -> None:
    async with proxied(tmp_path, kind) as proxy:
        reader, writer = await connect(proxy)
        proxy.reset_after["down"] = 4
        writer.write(b"cut off")
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(100):
                received += data
        # After a reset, TCP may lose what was on the way.
        assert received == (b"cut " if kind == "unix" else received[:4])
        writer.close()
        # It happens once.
        reader, writer = await connect(proxy)
        writer.write(b"not cut off")
        assert await reader.readexactly(11) == b"not cut off"
        writer.close()


async def test_it_refuses_and_accepts_again_at_the_same_place(tmp_path: Path, kind: str) -> None:
    async with proxied(tmp_path, kind) as proxy:
        reader, writer = await connect(proxy)
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        await proxy.refuse()
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            await connect(proxy)
        writer.write(b"b")
        assert await reader.readexactly(1) == b"b"
        await proxy.reset()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        await proxy.heal()
        reader, writer = await connect(proxy)
        writer.write(b"c")
        assert await reader.readexactly(1) == b"c"
        writer.close()


async def test_the_end_of_the_server_ends_the_client(tmp_path: Path, kind: str) -> None:
    async with proxied(tmp_path, kind) as proxy:
        proxy.target = tmp_path / "nobody"
        reader, writer = await connect(proxy)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
