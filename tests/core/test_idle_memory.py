"""The memory that an idle connection holds."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc

from tests.support.deflated import deflated
from tests.support.raw_peers import raw_peer
from tests.support.serving_hub import connected, serving
from wshub import CompressionConfig, EventHandler, Frame, Opcode


async def test_an_idle_connection_holds_no_buffers_and_its_memberships_end_with_it() -> None:
    connections = []

    def on_open(connection) -> None:
        connection.join("room")
        connections.append(connection)
        raise RuntimeError("whatever handlers do")

    async with serving(EventHandler(on_open=on_open)) as (hub, url):
        async with connected(url):
            pass
        while hub.connection_count:
            await asyncio.sleep(0)
        assert connections[0].buffered == 0
        assert hub.rooms == frozenset()


DEFLATE = b"permessage-deflate"


def test_an_idle_connection_keeps_no_deflate_state(run) -> None:
    """Measure the memory per connection after a compressed echo, including the client's buffers."""

    async def bytes_of_each(compression: CompressionConfig) -> float:
        handler = EventHandler(on_message=lambda connection, message: connection.send(message))
        async with serving(handler, compression=compression) as (_, url), contextlib.AsyncExitStack() as stack:
            kept = []
            for _ in range(21):
                kept.append(tracemalloc.get_traced_memory()[0])
                peer = await stack.enter_async_context(raw_peer(url, extensions=DEFLATE))
                peer.send(Frame(Opcode.TEXT, deflated(b"compressed " * 100), rsv1=True))
                assert (await peer.frame()).rsv1
            return (kept[20] - kept[1]) / 19

    tracemalloc.start()
    try:
        # Connections with context takeover keep their state; they show that the measurement would detect it.
        asked_for = CompressionConfig(server_context_takeover=True, client_context_takeover=True)
        assert run(bytes_of_each(asked_for)) > 40_000
        assert run(bytes_of_each(CompressionConfig())) < 16_000
    finally:
        tracemalloc.stop()
