"""Code of the garbage collector or the event loop runs during a broadcast and changes the members."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.raw_peers import RawPeer, raw_peer
from tests.support.serving_hub import connected, serving
from wshub import CompressionConfig, Connection, EventHandler, Opcode
from wshub.core.event_handler import handler_table_of

EACH_LINK = pytest.mark.parametrize("use_reactor", [True, False])
CLIENTS = 40
MEMBERS = 8


@contextlib.contextmanager
def at_the_next_collection(change: Callable[[], None]) -> Iterator[None]:
    """Call it in the next garbage collection; up to Python 3.11 the next allocation can start one."""
    armed = [change]

    def on_gc(phase: str, info: dict[str, int]) -> None:
        if armed and phase == "start":
            armed.pop()()

    thresholds = gc.get_threshold()
    gc.callbacks.append(on_gc)
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(on_gc)


@contextlib.contextmanager
def at_the_next_call_soon(change: Callable[[], None]) -> Iterator[None]:
    """Call it when the event loop is asked to schedule a call, as the hub does for the first member."""
    loop: Any = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip("uvloop's methods cannot be replaced")
    original = loop.call_soon
    armed = [change]

    def call_soon(*arguments: Any, **keywords: Any) -> Any:
        if armed:
            armed.pop()()
        return original(*arguments, **keywords)

    loop.call_soon = call_soon
    try:
        yield
    finally:
        del loop.call_soon
    assert not armed


EACH_WAY = pytest.mark.parametrize("when", [at_the_next_collection, at_the_next_call_soon])


@contextlib.asynccontextmanager
async def scene(**settings: Any):
    """Yield a hub with clients; the first of them are members of a room."""
    connections: list[Connection] = []
    async with (
        serving(EventHandler(on_open=connections.append), **settings) as (hub, url),
        contextlib.AsyncExitStack() as stack,
    ):
        peers = [await stack.enter_async_context(raw_peer(url)) for _ in range(CLIENTS)]
        while len(connections) < CLIENTS:
            await asyncio.sleep(0)
        for connection in connections[:MEMBERS]:
            connection.join("room")
        yield hub, connections, peers


async def texts_of(peer: RawPeer) -> list[bytes]:
    """Return all messages before "end"."""
    texts = []
    while (frame := await peer.frame()).payload != b"end":
        if frame.opcode is Opcode.TEXT:
            texts.append(frame.payload)
    return texts


@EACH_WAY
@EACH_LINK
async def test_a_member_throughout_a_broadcast_gets_it_once_whoever_joins_or_leaves(
    use_reactor: bool, when: Any
) -> None:
    async with scene(use_reactor=use_reactor) as (hub, connections, peers):
        changed: list[bool] = []

        def change() -> None:
            changed.append(True)
            for connection in hub.room_members("room")[: MEMBERS - 2]:
                connection.leave("room")
            for connection in connections[MEMBERS:]:
                connection.join("room")

        with when(change):
            hub.broadcast("once", room="room")
        hub.broadcast("end")
        received = [await texts_of(peer) for peer in peers]
        assert received[MEMBERS - 2 : MEMBERS] == [[b"once"]] * 2
        assert all(texts in ([], [b"once"]) for texts in received)
        # The room has the changed members, if the change ran.
        stayed = {connection.id for connection in connections[MEMBERS - 2 :]}
        assert not changed or {connection.id for connection in hub.room_members("room")} == stayed


@EACH_WAY
@EACH_LINK
async def test_a_connection_open_throughout_a_broadcast_gets_it_once_whoever_registers(
    use_reactor: bool, when: Any
) -> None:
    async with scene(use_reactor=use_reactor) as (hub, _, peers):
        registered: list[Connection] = []

        table = handler_table_of(EventHandler())

        def register_many() -> None:
            registered.extend(hub.register_connection(table, None) for _ in range(200))

        with when(register_many):
            assert hub.broadcast("once") == CLIENTS
        hub.broadcast("end")
        assert [await texts_of(peer) for peer in peers] == [[b"once"]] * CLIENTS
        if registered:
            assert hub.connection_count == CLIENTS + 200
        for connection in registered:
            hub.cancel_opening(connection)
        assert hub.connection_count == CLIENTS


@EACH_LINK
async def test_a_broadcast_within_another_to_the_same_room_does_not_break_what_they_share(use_reactor: bool) -> None:
    """Some members get the inner message first; compressed, it must not refer to the outer one."""

    connections: list[Connection] = []
    settings = {"compression": CompressionConfig(threshold=0), "use_reactor": use_reactor}
    async with serving(EventHandler(on_open=connections.append), **settings) as (hub, url):
        hub.configure_room("room", compression="shared")
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(url, compression="deflate")) for _ in range(4)]
            while len(connections) < 4:
                await asyncio.sleep(0)
            for connection in connections:
                connection.join("room")
            hub.broadcast("something that later messages refer to", room="room")
            assert {await client.recv() for client in clients} == {"something that later messages refer to"}
            with at_the_next_call_soon(
                lambda: hub.broadcast("something that later messages refer to: inner", room="room")
            ):
                hub.broadcast("something that later messages refer to: outer", room="room")
            hub.broadcast("something that later messages refer to: last", room="room")
            for client in clients:
                texts = [(await client.recv()).rpartition(" ")[2] for _ in range(3)]
                assert {*texts[:2]} == {"inner", "outer"}
                assert texts[2] == "last"


async def test_a_room_that_is_opened_while_it_is_opened_is_one_room() -> None:
    async with scene() as (hub, connections, _):
        with at_the_next_collection(lambda: connections[1].join("new")):
            connections[0].join("new")
        connections[1].join("new")
        assert {connection.id for connection in hub.room_members("new")} == {1, 2}
