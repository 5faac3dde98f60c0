"""Limits on one client in one loop iteration, and on everything that waits for an application."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.cpu_time import least_seconds
from tests.support.raw_peers import REQUEST, RawPeer, masked, port_of, raw_peer
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import Clock, serving
from wshub import Connection, EventHandler, Frame, Hub, Message, Opcode, RateLimits

EACH_LINK = pytest.mark.parametrize("use_reactor", [True, False])

# The same value as in receiving.pyx.
MOST_MESSAGES = 1024
# One read returns more than this.
FLOOD = 8_000


class Iterations:
    """Count the messages that are handled in each loop iteration."""

    def __init__(self) -> None:
        self.most = 0
        self.handled = 0
        self._handle: asyncio.Handle | None = None

    def __enter__(self) -> Iterations:
        self._next(self.handled)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._handle is not None
        self._handle.cancel()

    def _next(self, before: int) -> None:
        self.most = max(self.most, self.handled - before)
        self._handle = asyncio.get_running_loop().call_soon(self._next, self.handled)


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0)


def flood_of(messages: int) -> bytes:
    return b"".join(masked(Frame.binary(number.to_bytes(2, "big"))) for number in range(messages))


@EACH_LINK
@pytest.mark.parametrize(("milliseconds", "most"), [(0, 2 * MOST_MESSAGES), (0.4, 40), (3, 24)])
async def test_what_a_client_has_handled_in_one_iteration_is_bounded_in_messages_and_in_time(
    clock: Clock, use_reactor: bool, milliseconds: float, most: int
) -> None:
    received: list[int] = []
    closed: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
    iterations = Iterations()

    def on_message(connection: Connection, message: Message) -> None:
        received.append(int.from_bytes(message.data, "big"))
        iterations.handled += 1
        clock.now += milliseconds / 1000

    handler = EventHandler(
        on_message=on_message,
        on_close=lambda connection, code, reason: closed.set_result((code, reason)),
    )
    async with serving(handler, clock=clock, use_reactor=use_reactor) as (_, url), raw_peer(url) as peer:
        with iterations:
            peer.write(flood_of(FLOOD) + masked(Frame.close(4000, "done")))
            assert await peer.close_code() == 4000
            peer.writer.close()
            await closed
        # The hub handles all messages in order, and then the close frame.
        assert received == list(range(FLOOD))
        assert await closed == (4000, "done")
        assert iterations.most <= most


@needs_reactor
async def test_large_messages_to_many_members_leave_over_several_iterations(clock: Clock) -> None:
    """The clock stands still, so only the number of bytes that were sent or broadcast ends an iteration."""

    members, messages, size = 100, 24, 60_000
    iterations = Iterations()

    def on_open(connection: Connection) -> None:
        connection.join("room")

    def on_message(connection: Connection, message: Message) -> None:
        iterations.handled += 1
        hub.broadcast(message, room="room", exclude=connection)

    handler = EventHandler(on_open=on_open, on_message=on_message)
    settings = {"slow_consumer": "drop_oldest", "max_send_buffer": 1 << 24}
    async with serving(handler, clock=clock, **settings) as (hub, url), contextlib.AsyncExitStack() as stack:
        for _ in range(members):
            # These clients do not read; the kernel buffers what it can.
            await stack.enter_async_context(raw_peer(url, limit=1024))
        flooding = [await stack.enter_async_context(raw_peer(url)) for _ in range(4)]
        for peer in flooding:
            peer.write(masked(Frame.binary(bytes(size))) * (messages // 4))
            await peer.writer.drain()
        with iterations:
            await until(lambda: iterations.handled == messages)
        # Each message is 6 MB for the room, and an iteration sends up to 32 MiB: at most six messages.
        assert iterations.most <= 6


@EACH_LINK
@pytest.mark.parametrize("clients", [1, 12])
async def test_others_are_answered_after_a_few_messages_of_clients_that_flood(
    clock: Clock, use_reactor: bool, clients: int
) -> None:
    order: list[bool] = []

    def on_message(connection: Connection, message: Message) -> None:
        is_flood = len(message.data) == 2
        order.append(is_flood)
        if is_flood:
            clock.now += 0.0004
        else:
            connection.send(message)

    handler = EventHandler(on_message=on_message)
    async with (
        serving(handler, clock=clock, use_reactor=use_reactor) as (_, url),
        contextlib.AsyncExitStack() as stack,
    ):
        flooding = [await stack.enter_async_context(raw_peer(url)) for _ in range(clients)]
        polite = await stack.enter_async_context(raw_peer(url))
        for peer in flooding:
            peer.write(flood_of(FLOOD))
        await until(lambda: len(order) > 100)
        for _ in range(5):
            before = len(order)
            polite.send(Frame.text("please"))
            assert (await polite.frame()).payload == b"please"
            # An iteration takes some milliseconds, and the polite client gets its answer after a few iterations. On
            # asyncio's transports, each flooding client gets some messages handled before that.
            assert order[before:].index(False) <= (150 if use_reactor else 150 + 10 * clients)
        assert len(order) < clients * FLOOD


@EACH_LINK
async def test_a_handler_that_closes_in_the_middle_of_a_flood_is_the_last_that_is_called(
    clock: Clock, use_reactor: bool
) -> None:
    calls: list[int] = []

    def on_message(connection: Connection, message: Message) -> None:
        calls.append(len(calls))
        clock.now += 0.001
        if len(calls) == 1500:
            connection.close(4001, "enough")

    handler = EventHandler(on_message=on_message)
    async with serving(handler, clock=clock, use_reactor=use_reactor) as (hub, url), raw_peer(url) as peer:
        peer.write(flood_of(FLOOD) + masked(Frame.close(4001, "enough")))
        assert await peer.close_code() == 4001
        peer.writer.close()
        await until(lambda: not hub.connection_count)
        assert len(calls) == 1500


@EACH_LINK
async def test_a_flood_of_pings_is_bounded_like_one_of_messages(clock: Clock, use_reactor: bool) -> None:
    iterations = Iterations()

    def on_ping(connection: Connection, payload: bytes) -> None:
        iterations.handled += 1

    handler = EventHandler(on_ping=on_ping)
    settings = {"rates": RateLimits(control_frames=0), "use_reactor": use_reactor}
    async with serving(handler, clock=clock, **settings) as (_, url), raw_peer(url) as peer:
        with iterations:
            peer.write(masked(Frame.ping(b"")) * FLOOD)
            await until(lambda: iterations.handled == FLOOD)
        assert iterations.most <= 2 * MOST_MESSAGES


@EACH_LINK
async def test_those_who_were_slowed_down_together_do_not_go_on_in_one_iteration(
    clock: Clock, use_reactor: bool
) -> None:
    """A sweep resumes many connections; their messages are handled in later iterations."""

    iterations = Iterations()

    def on_message(connection: Connection, message: Message) -> None:
        iterations.handled += 1
        clock.now += 0.0002

    handler = EventHandler(on_message=on_message)
    settings = {"rates": RateLimits(messages=100, burst_ms=1000), "use_reactor": use_reactor}
    async with (
        serving(handler, clock=clock, **settings) as (hub, url),
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(20):
            (await stack.enter_async_context(raw_peer(url))).write(flood_of(1000))
        await until(lambda: iterations.handled >= 20 * 100)
        with iterations:
            before = iterations.handled
            clock.pass_for(1, hub)
            assert iterations.handled == before
            await until(lambda: iterations.handled >= before + 20 * 100)
        assert iterations.most <= 200


@EACH_LINK
def test_a_member_that_floods_a_large_room_leaves_the_loop_its_turn(run, use_reactor: bool) -> None:
    """Count the messages of each iteration, since its time depends on what else the machine does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (-1, resource.RLIM_INFINITY) and hard < 4096:
        pytest.skip("the limit on open files is too low")
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    members = 1000

    async def scenario() -> None:
        most = 0
        hub: Hub
        handler = EventHandler(
            on_open=lambda connection: connection.join("room"),
            on_message=lambda connection, message: hub.broadcast(message, room="room"),
        )
        settings = {"slow_consumer": "drop_oldest", "use_reactor": use_reactor}
        async with serving(handler, **settings) as (hub, url):
            peers = []
            for _ in range(members):
                peer = socket.create_connection(("127.0.0.1", port_of(url)))
                peer.sendall(REQUEST)
                peers.append(peer)
                await asyncio.sleep(0)
            await until(lambda: hub.room_size("room") == members)
            peers[0].setblocking(False)
            with contextlib.suppress(BlockingIOError):
                peers[0].send(masked(Frame.binary(b"x")) * 5000)
            handled = 0
            while handled < 1000:
                await asyncio.sleep(0)
                before, handled = handled, hub.stats().messages_received
                most = max(most, handled - before)
            for peer in peers:
                peer.close()
        # The budget of an iteration is a time, which is 30 to 60 messages here. Without one, all are handled at once.
        assert most <= 300

    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    try:
        run(scenario())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Messages that wait for an application


@EACH_LINK
@pytest.mark.parametrize(("size", "most"), [(1 << 20, 1), (100 * 1024, 3), (10, 16)])
async def test_messages_that_wait_for_receive_are_bounded_in_number_and_in_bytes(
    use_reactor: bool, size: int, most: int
) -> None:
    go_on = asyncio.Event()
    received: list[int] = []

    async def endpoint(connection: Connection) -> None:
        await go_on.wait()
        async for message in connection:
            received.append(message.data[0])
            if len(received) == 40:
                return

    settings = {"max_message_size": 1 << 20, "use_reactor": use_reactor}
    async with serving(endpoint, **settings) as (hub, url), raw_peer(url) as peer:
        payload = random.randbytes(size - 1)
        for number in range(40):
            peer.send(Frame.binary(bytes([number]) + payload))
        await until(lambda: hub.stats().messages_received >= most)
        for _ in range(100):
            await asyncio.sleep(0)
        assert hub.stats().messages_received == most
        go_on.set()
        assert await peer.close_code() == 1000
        assert received == list(range(40))


# Dropping while many messages wait


@contextlib.asynccontextmanager
async def stalled(**settings: Any) -> AsyncIterator[tuple[Connection, RawPeer]]:
    """A connection with queued messages, whose peer does not read."""
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result), **settings) as (_, url), raw_peer(url) as peer:
        peer.writer.transport.pause_reading()
        connection = await opened
        while not connection.buffered:
            connection.send(bytes(50_000))
            await asyncio.sleep(0)
        yield connection, peer


@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
@pytest.mark.parametrize("pinned_between", [False, True])
def test_what_a_policy_costs_does_not_grow_with_the_messages_that_it_must_not_drop(
    policy: str, pinned_between: bool
) -> None:
    """With sixteen times as many pinned messages in the queue, a send takes about as long."""

    async def seconds_with(pinned: int) -> float:
        bound = pinned * 64 + (1 << 20)
        async with stalled(max_send_buffer=bound) as (connection, _):
            for number in range(pinned):
                connection.send(b"pinned", slow_consumer="close")
                if pinned_between and number % 60 == 0:
                    connection.send(b"spare", slow_consumer=policy, key=f"key {number % 7}")
            while connection.buffered < bound:
                connection.send(b"spare", slow_consumer="drop_oldest", key="filler")

            def send_some(_: int) -> None:
                for number in range(100):
                    connection.send(b"another", slow_consumer=policy, key=f"key {number % 7}")

            # The first call builds the index that later calls search.
            send_some(0)
            return least_seconds(send_some, range(10))

    assert asyncio.run(seconds_with(64_000)) < 6 * asyncio.run(seconds_with(4_000))


@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
async def test_messages_of_every_kind_leave_in_order_whatever_was_dropped_between_them(policy: str) -> None:
    """Compare the queue with a plain list, over many chunks that hold few frames each."""
    chance = random.Random(15)

    async with stalled(max_send_buffer=1 << 30) as (connection, peer):
        expected: list[tuple[str, int]] = []
        for number in range(20_000):
            kind = chance.choices(["pinned", "a", "b", "c"], [1, 30, 5, 5])[0]
            if kind == "pinned":
                connection.send(f"pinned {number}", slow_consumer="close")
            elif policy == "latest":
                for place in range(len(expected) - 1, -1, -1):
                    if expected[place][0] == kind:
                        expected[place] = (kind, number)
                        break
                else:
                    expected.append((kind, number))
                connection.send(f"{kind} {number}", slow_consumer=policy, key=kind)
                continue
            else:
                connection.send(f"{kind} {number}", slow_consumer=policy, key=kind)
            expected.append((kind, number))
        peer.writer.transport.resume_reading()
        connection.send("end", slow_consumer="close")
        received = []
        while (frame := await peer.frame()).payload != b"end":
            if frame.opcode is Opcode.TEXT:
                kind, number = frame.payload.decode().split()
                received.append((kind, int(number)))
        assert received == expected
