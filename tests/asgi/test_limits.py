"""Each limit of a hub on each of its links. Daphne has lost limits between layers, and uvicorn has its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from tests.support.raw_peers import REQUEST, RawPeer, masked
from tests.support.reactor import needs_reactor
from wshub import Connection, EventHandler, Frame, Hub, HubConfig, Opcode, RateLimits
from wshub.uvicorn.running import PROTOCOL_CLASS

LINKS = [
    pytest.param("reactor", marks=needs_reactor),
    "transports",
    "tls",
    pytest.param("taken from uvicorn", marks=needs_reactor),
    "asgi",
]


class Scene:
    """A hub, its address, and the events of its handler."""

    def __init__(self, hub: Hub, port: int, tls: Any) -> None:
        self.hub = hub
        self.port = port
        self.tls = tls
        self.opened: list[Connection] = []
        self.closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @contextlib.asynccontextmanager
    async def peer(self, extensions: bytes = b"", *, status: int = 101) -> AsyncIterator[RawPeer]:
        options = {"ssl": self.tls, "server_hostname": "localhost"} if self.tls else {}
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        try:
            peer = RawPeer(reader, writer)
            field = b"Sec-WebSocket-Extensions: " + extensions + b"\r\n" if extensions else b""
            peer.write(REQUEST[:-2] + field + b"\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert int(head.split(b" ")[1]) == status
            assert (b"permessage-deflate" in head) == bool(extensions)
            yield peer
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def on_uvicorn(app: Any, ws: str, **options: Any) -> AsyncIterator[int]:
    """Run a uvicorn with that WebSocket protocol. Yields its port."""
    server = uvicorn.Server(uvicorn.Config(app, ws=ws, lifespan="off", log_level="critical", **options))  # type: ignore[arg-type]
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


@pytest.fixture(params=LINKS)
def link(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def serving(link, certificate):
    """Serve a hub with settings on one of the links."""

    @contextlib.asynccontextmanager
    async def serve(*, options: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Scene]:
        settings = {"close_timeout_ms": 100, "use_reactor": link != "transports", **settings}
        hub = Hub(HubConfig(**settings))
        scene = Scene(hub, 0, certificate.client_context() if link == "tls" else None)
        handler = EventHandler(
            on_open=lambda connection: scene.opened.append(connection),
            on_message=lambda connection, message: connection.send(message),
            on_close=lambda connection, code, reason: scene.closed.done() or scene.closed.set_result(code),
        )
        if link in ("taken from uvicorn", "asgi"):
            ws = PROTOCOL_CLASS if link == "taken from uvicorn" else "websockets-sansio"
            async with on_uvicorn(hub.asgi(handler), ws, **(options or {})) as scene.port:
                yield scene
                await hub.close()
        else:
            context = certificate.server_context() if link == "tls" else None
            async with hub.serve("127.0.0.1", 0, handler, ssl=context) as server:
                scene.port = server.port
                yield scene

    return serve


def fragments(*sizes: int) -> bytes:
    last = len(sizes) - 1
    return b"".join(
        masked(Frame(Opcode.CONTINUATION if index else Opcode.BINARY, bytes(size), fin=index == last))
        for index, size in enumerate(sizes)
    )


@pytest.mark.parametrize(
    "sizes",
    [(1001,), (60_000,), (500, 500, 1), (1000, 0, 1), (1,) * 1001],
    ids=["one more", "many more", "sum", "empty between", "bytes"],
)
async def test_the_size_of_a_message(serving, sizes) -> None:
    async with serving(max_message_size=1000) as scene, scene.peer() as peer:
        peer.write(fragments(1000) + fragments(*(1,) * 1000))
        assert [len((await peer.frame()).payload) for _ in range(2)] == [1000] * 2
        peer.write(fragments(*sizes))
        assert await peer.close_code() == 1009
        assert await scene.closed == 1009
        assert scene.hub.stats().messages_received == 2


@pytest.mark.parametrize("pieces", [1, 5])
async def test_the_size_of_a_message_once_decompressed(serving, pieces) -> None:
    """A mebibyte of zeros, compressed to a kibibyte. An ASGI server decompresses it, and the hub checks its size."""
    deflate = zlib.compressobj(wbits=-15)
    bomb = (deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(bomb) < 2000
    step = len(bomb) // pieces + 1
    parts = [bomb[start : start + step] for start in range(0, len(bomb), step)]

    async with serving(max_message_size=10_000, enable_compression=True) as scene:
        async with scene.peer(b"permessage-deflate") as peer:
            for index, part in enumerate(parts):
                opcode = Opcode.CONTINUATION if index else Opcode.BINARY
                peer.send(Frame(opcode, part, fin=part is parts[-1], rsv1=not index))
            assert await peer.close_code() == 1009
        assert await scene.closed == 1009
        assert scene.hub.stats().messages_received == 0


async def test_the_fragments_of_a_message(serving, link) -> None:
    async with serving(max_fragments=10) as scene, scene.peer() as peer:
        peer.write(fragments(*(1,) * 11))
        assert len((await peer.frame()).payload) == 11
        peer.write(fragments(*(1,) * 12))
        if link == "asgi":
            # The server has joined the fragments: the hub gets one message.
            assert len((await peer.frame()).payload) == 12
        else:
            assert await peer.close_code() == 1008
            assert await scene.closed == 1008


@pytest.mark.parametrize("kind", ["messages", "bytes", "control_frames"])
async def test_the_rates_of_a_connection(serving, link, kind) -> None:
    allowed = 100_000 if kind == "bytes" else 10
    rates = RateLimits(**{"control_frames": 0, kind: allowed}, burst_ms=1000, excess="close")
    async with serving(rates=rates) as scene, scene.peer() as peer:
        for _ in range(200):
            peer.send(Frame.ping(b"p") if kind == "control_frames" else Frame.text("x" * 1000))
        if link == "asgi" and kind == "control_frames":
            # The server answers pings. The hub does not see them.
            assert [(await peer.frame()).opcode for _ in range(200)] == [Opcode.PONG] * 200
            return
        assert await peer.close_code() == 1008
        assert await scene.closed == 1008
        assert scene.hub.stats().messages_received <= 120
        assert scene.hub.stats().rates_exceeded == 1


async def test_what_waits_for_a_peer_that_does_not_read(serving) -> None:
    async with serving(max_send_buffer=50_000) as scene, scene.peer() as peer:
        peer.writer.transport.pause_reading()
        while not scene.opened:
            await asyncio.sleep(0)
        (connection,) = scene.opened
        most = sent = 0
        while scene.hub.broadcast(bytes(10_000)):
            sent += 1
            most = max(most, connection.buffered)
            await asyncio.sleep(0)
            assert sent < 10_000
        assert 10_000 <= most <= 70_000
        assert await scene.closed == 1013
        assert scene.hub.stats().dropped.slow > 0
        assert connection.buffered == 0


async def test_the_number_of_connections(serving) -> None:
    async with serving(max_connections=1) as scene:
        async with scene.peer() as first:
            async with scene.peer(status=503):
                pass
            first.send(Frame.text("still here"))
            assert (await first.frame()).payload == b"still here"
        while scene.hub.connection_count:
            await asyncio.sleep(0)
        async with scene.peer():
            pass
        assert scene.hub.stats().refused == {503: 1}


@pytest.mark.parametrize("link", [pytest.param("taken from uvicorn", marks=needs_reactor)], indirect=True)
async def test_what_uvicorn_was_told_has_no_say_where_a_hub_has_the_connection(serving) -> None:
    options = {
        "ws_max_size": 10,
        "ws_per_message_deflate": True,
        "ws_ping_interval": 0.001,
        "ws_ping_timeout": 0.001,
    }
    async with serving(options=options, max_message_size=60_000) as scene, scene.peer() as peer:
        for size in (11, 60_000):
            peer.write(fragments(size))
            assert (await peer.frame()).payload == bytes(size)
        peer.write(fragments(60_001))
        assert await peer.close_code() == 1009
        assert scene.opened[0].compression is None
