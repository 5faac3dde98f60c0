"""``Hub.connections`` is a list of the open connections."""

from __future__ import annotations

import asyncio
import time

from tests.support.raw_peers import raw_peer
from tests.support.serving_hub import connected, serving
from wshub import Connection, EventHandler, Frame, Hub


async def test_it_has_the_open_connections_and_stays_as_it_is() -> None:
    assert Hub().connections == []
    opened: list[Connection] = []
    async with serving(EventHandler(on_open=opened.append)) as (hub, url):
        async with connected(url), connected(url):
            while len(opened) < 2:
                await asyncio.sleep(0)
            before = hub.connections
            assert before == opened
            for connection in before:
                # It ends while the list is iterated over.
                connection.close()
            assert hub.connections == []
            assert hub.connection_count == 2
            assert len(before) == 2
        await asyncio.gather(*(connection.wait_closed() for connection in opened))
        assert hub.connection_count == 0


async def test_a_connection_that_is_not_open_yet_is_not_in_it() -> None:
    registered: list[list[Connection]] = []

    def on_open(connection: Connection) -> None:
        registered.append(connection.hub.connections)

    async with serving(EventHandler(on_open=on_open)) as (hub, url), raw_peer(url) as peer:
        while not registered:
            await asyncio.sleep(0)
        assert registered == [hub.connections]
        peer.send(Frame.close(1000))
        peer.writer.write_eof()
        while hub.connection_count:
            await asyncio.sleep(0)
        assert hub.connections == []


async def test_another_thread_may_ask_for_it_while_connections_come_and_go() -> None:
    async with serving(EventHandler()) as (hub, url):
        ended = asyncio.Event()

        def ask() -> int:
            most = 0
            while not ended.is_set():
                most = max(most, len(hub.connections))
                # The loop gets its turn.
                time.sleep(0.0001)
            return most

        asking = asyncio.create_task(asyncio.to_thread(ask))
        for _ in range(20):
            async with raw_peer(url):
                await asyncio.sleep(0)
        ended.set()
        assert await asking <= 20
