"""Limits on queued messages, ``drain()``, the counters, and exact delivery in any order of events."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.raw_peers import REQUEST, port_of, raw_peer
from tests.support.serving_hub import connected, serving
from wshub import ConnectionClosed, EventHandler, Frame, Hub, HubConfig


def balanced(hub: Hub, room: str | None = None) -> bool:
    stats = hub.stats(room=room)
    return stats.messages_accepted == (stats.messages_delivered + stats.dropped.total + stats.messages_pending)


async def test_a_burst_within_one_turn_is_not_taken_for_a_slow_reader() -> None:
    async def _receive(client, count: int) -> list[bytes]:
        return [await client.recv() for _ in range(count)]

    def on_message(connection, message) -> None:
        for index in range(1000):
            connection.send(b"%4d" % index + b"h" * 1000)

    handler = EventHandler(on_message=on_message)
    async with serving(handler) as (hub, url), connected(url, max_size=None) as client:
        receiving = asyncio.create_task(_receive(client, 1000))
        await client.send("history, please")
        assert [message[:4] for message in await receiving] == [b"%4d" % index for index in range(1000)]
        assert balanced(hub)


async def test_drain_returns_when_the_peer_has_read_and_raises_when_it_is_gone() -> None:
    opened = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result)
    async with serving(handler, max_send_buffer=1 << 26) as (hub, url):
        async with raw_peer(url, limit=1024) as peer:
            peer.writer.transport.pause_reading()
            connection = await opened
            await connection.drain()
            for _ in range(64):
                connection.send(bytes(1 << 19))
            draining = asyncio.create_task(connection.drain())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert connection.buffered > 0
            assert not draining.done()
            assert balanced(hub)
            peer.writer.transport.resume_reading()
            received = 0
            while received < 64:
                received += bool((await peer.frame()).payload)
            await draining
            assert connection.buffered == 0
            peer.writer.transport.pause_reading()
            for _ in range(64):
                connection.send(bytes(1 << 19))
            draining = asyncio.create_task(connection.drain())
            await asyncio.sleep(0)
            peer.reset()
            with pytest.raises(ConnectionClosed):
                await draining
        assert hub.stats().dropped.closed > 0
        assert balanced(hub)


async def test_a_peer_that_does_not_read_its_echoes_is_not_read_either() -> None:
    """Echoes use at most ``max_send_buffer`` bytes of memory, and no connection is closed for them."""

    opened = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result, on_message=lambda connection, message: connection.send(message))
    async with serving(handler) as (hub, url), raw_peer(url, limit=1024) as peer:
        peer.writer.transport.pause_reading()
        connection = await opened
        block = b"".join(
            Frame.binary(b"%8d" % index + bytes(5000)).with_mask(b"abcd").encode() for index in range(2000)
        )
        peer.write(block)
        seen = -1
        while hub.stats().messages_received != seen or not connection.buffered:
            seen = hub.stats().messages_received
            for _ in range(50):
                await asyncio.sleep(0)
            assert connection.buffered <= 256 * 1024 + 64 * 1024 + 5020
            if seen == 2000:
                break
        peer.writer.transport.resume_reading()
        for index in range(2000):
            assert (await peer.frame()).payload[:8] == b"%8d" % index
        assert not hub.stats().dropped.total
        assert balanced(hub)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(0, 3), st.sampled_from("ab")),
        st.tuples(st.just("leave"), st.integers(0, 3), st.sampled_from("ab")),
        st.tuples(st.just("send"), st.integers(0, 3), st.integers(0, 300)),
        st.tuples(st.just("broadcast"), st.sampled_from([None, "a", "b"]), st.sampled_from([None, 0, 1, 2, 3])),
        st.tuples(st.just("close"), st.integers(0, 3), st.none()),
        st.tuples(st.just("turn"), st.none(), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(ACTIONS)
def test_every_client_gets_exactly_what_the_model_says_in_order(actions) -> None:
    """Joins, leaves, sends, broadcasts and closes in any order, compared with a model of sets and lists."""

    async def scenario() -> None:
        connections: list = []
        hub = Hub(HubConfig())
        async with hub.serve("127.0.0.1", 0, EventHandler(on_open=connections.append)) as server:
            url = f"ws://127.0.0.1:{server.port}/"
            managers = [raw_peer(url) for _ in range(4)]
            peers = [await manager.__aenter__() for manager in managers]
            expected: list[list[bytes]] = [[] for _ in peers]
            rooms: dict[str, set[int]] = {"a": set(), "b": set()}
            alive = {0, 1, 2, 3}
            for number, (kind, first, second) in enumerate(actions):
                text = f"{number}:".encode()
                if kind == "turn":
                    await asyncio.sleep(0)
                elif kind == "broadcast":
                    members = (alive if first is None else rooms[first]) - {second}
                    exclude = None if second is None else connections[second]
                    assert hub.broadcast(text, room=first, exclude=exclude) == len(members)
                    for member in members:
                        expected[member].append(text)
                elif first not in alive:
                    with pytest.raises(ConnectionClosed):
                        connections[first].send("gone")
                elif kind == "join":
                    connections[first].join(second)
                    rooms[second].add(first)
                elif kind == "leave":
                    connections[first].leave(second)
                    rooms[second].discard(first)
                elif kind == "send":
                    connections[first].send(text + bytes(second))
                    expected[first].append(text + bytes(second))
                elif kind == "close":
                    connections[first].close()
                    alive.discard(first)
                    for members in rooms.values():
                        members.discard(first)
                assert hub.rooms == {name for name, members in rooms.items() if members}
                assert all(balanced(hub, room) for room in (None, "a", "b"))
            for connection in connections:
                connection.close()
            for peer, messages in zip(peers, expected, strict=True):
                received = []
                while (frame := await peer.frame()).opcode.name != "CLOSE":
                    received.append(frame.payload)
                assert received == messages
                peer.send(Frame.close())
            for manager in managers:
                await manager.__aexit__(None, None, None)
            assert balanced(hub)

    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.mark.parametrize("use_reactor", [True, False])
async def test_drain_raises_when_what_it_waits_for_is_dropped_since_too_much_waits(use_reactor) -> None:
    opened = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result)
    async with serving(handler, use_reactor=use_reactor) as (hub, url), raw_peer(url) as peer:
        peer.writer.transport.pause_reading()
        connection = await opened
        while not connection.buffered:
            connection.send(bytes(10_000))
            await asyncio.sleep(0)
        draining = asyncio.create_task(connection.drain())
        await asyncio.sleep(0)
        while connection.close_code is None:
            connection.send(bytes(10_000))
        peer.writer.transport.resume_reading()
        assert await peer.close_code() == 1013
        with pytest.raises(ConnectionClosed, match="1013"):
            await draining
        assert hub.stats().dropped.slow > 0
        assert balanced(hub)


async def test_every_drop_is_counted_with_its_reason() -> None:
    async with serving(EventHandler(), close_timeout_ms=50) as (hub, url):
        with socket.create_connection(("127.0.0.1", port_of(url))) as stalled:
            stalled.sendall(REQUEST)
            while not hub.connection_count:
                await asyncio.sleep(0)
            # The message that exceeds the limit is dropped too.
            sent = 1
            while hub.broadcast(bytes(60_000)):
                sent += 1
            while hub.connection_count:
                await asyncio.sleep(0)
        stats = hub.stats()
        assert stats.messages_accepted == sent
        assert stats.messages_pending == 0
        assert stats.dropped.slow > 0
        assert sent == stats.messages_delivered + stats.dropped.total
