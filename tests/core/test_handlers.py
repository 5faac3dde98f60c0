"""Handlers: the actions that they may take, and the guarantees that a connection gives them."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from types import MappingProxyType
from typing import Any

import pytest
import websockets

from tests.support.raw_peers import masked, raw_peer
from tests.support.serving_hub import connected, serving
from wshub import CloseCode, ConnectionClosed, EventHandler, Frame, Hub, Message, MisuseError


async def test_events_come_in_order_and_on_close_exactly_once() -> None:
    events: list[object] = []
    done = asyncio.Event()

    class Handler(EventHandler):
        async def on_open(self, connection) -> None:
            await asyncio.sleep(0)
            events.append("open")

        async def on_message(self, connection, message) -> None:
            events.append(message.data)
            await asyncio.sleep(0)
            events.append(f"{message.data} done")

        def on_ping(self, connection, payload) -> None:
            events.append(("ping", payload))

        def on_pong(self, connection, payload) -> None:
            events.append(("pong", payload))

        async def on_close(self, connection, code, reason) -> None:
            await asyncio.sleep(0)
            events.append((code, reason))
            done.set()

    async with serving(Handler()) as (_, url):
        async with raw_peer(url) as peer:
            for frame in (Frame.text("a"), Frame.ping(b"p"), Frame.text("b"), Frame.pong(b"q")):
                peer.send(frame)
            peer.send(Frame.close(4000, "end"))
            assert (await peer.frame()).payload == b"p"
            assert await peer.close_code() == 4000
            peer.writer.write_eof()
            await done.wait()
        assert events == [
            "open",
            *("a", "a done"),
            ("ping", b"p"),
            *("b", "b done"),
            ("pong", b"q"),
            (4000, "end"),
        ]


@pytest.mark.parametrize("event", ["on_open", "on_message", "on_ping", "on_pong"])
@pytest.mark.parametrize("suspends", [False, True], ids=["function", "coroutine"])
@pytest.mark.parametrize("act", ["close itself", "close another", "leave and broadcast", "close the hub"])
async def test_a_handler_may_do_anything_to_any_connection(event, suspends, act) -> None:
    opened: list[object] = []
    closed: list[object] = []
    acted = asyncio.Event()
    background: list[asyncio.Task[None]] = []

    def work(connection) -> None:
        others = [other for other in opened if other is not connection]
        if act == "close itself":
            connection.close(4000)
            connection.close(4001)
        elif act == "close another" and others:
            others[0].close(4002)
        elif act == "leave and broadcast":
            for one in opened:
                connection.hub.leave_room(one, "room")
                one.join("another")
            connection.hub.broadcast("all", room="another")
        elif act == "close the hub":
            background.append(asyncio.ensure_future(connection.hub.close()))
        acted.set()

    def handle(connection, *_) -> None:
        if connection.path == "/actor":
            work(connection)

    async def handle_later(connection, *_) -> None:
        if connection.path == "/actor":
            await asyncio.sleep(0)
            work(connection)

    def on_open(connection) -> object:
        connection.join("room")
        opened.append(connection)
        if event == "on_open":
            return (handle_later if suspends else handle)(connection)
        return None

    handlers = {"on_open": on_open, "on_close": lambda connection, code, reason: closed.append(connection)}
    if event != "on_open":
        handlers[event] = handle_later if suspends else handle
    async with serving(EventHandler(**handlers), close_timeout_ms=300) as (hub, url):
        async with raw_peer(url + "other"), raw_peer(url, handshake=False) as peer:
            peer.write(
                b"GET /actor HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            for frame in (Frame.text("a"), Frame.ping(), Frame.pong(), Frame.text("b")):
                peer.send(frame)
            await acted.wait()
        # on_close waits for the running handler.
        while hub.connection_count or len(closed) < len(opened):
            await asyncio.sleep(0)
        assert sorted(one.id for one in closed) == sorted(one.id for one in opened)
        assert hub.rooms == frozenset()
        await asyncio.gather(*background)


def test_a_handler_that_outlives_its_connection_fails_at_the_next_send_and_on_close_waits(run, caplog) -> None:
    async def scenario() -> None:
        order: list[str] = []
        release = asyncio.Event()
        done = asyncio.Event()

        async def on_message(connection, message) -> None:
            order.append("started")
            await release.wait()
            order.append("ended")
            connection.send("too late")

        def on_close(connection, code, reason) -> None:
            order.append("closed")
            done.set()

        handler = EventHandler(on_message=on_message, on_close=on_close)
        async with serving(handler) as (_, url):
            async with raw_peer(url) as peer:
                peer.send(Frame.text("a"))
                while not order:
                    await asyncio.sleep(0)
                peer.reset()
            for _ in range(20):
                await asyncio.sleep(0)
            assert order == ["started"]
            release.set()
            await done.wait()
            assert order == ["started", "ended", "closed"]

    run(scenario())
    assert "has failed" not in caplog.text


async def test_a_large_message_that_arrives_while_on_drain_is_suspended_waits_for_its_end() -> None:
    events: list[object] = []
    opened = asyncio.get_running_loop().create_future()
    draining, release, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def on_drain(connection) -> None:
        events.append("drains")
        draining.set()
        await release.wait()
        events.append("has drained")

    async def on_message(connection, message) -> None:
        events.append(len(message))
        await asyncio.sleep(0)
        events.append(f"{len(message)} done")
        if len(message) == 1:
            done.set()

    async def received(hub, count: int) -> None:
        while hub.stats().bytes_received < count:
            await asyncio.sleep(0)

    handler = EventHandler(on_open=opened.set_result, on_message=on_message, on_drain=on_drain)
    large = masked(Frame.binary(bytes(30_000)))
    async with serving(handler, max_send_buffer=1 << 26) as (hub, url), raw_peer(url, limit=1024) as peer:
        connection = await opened
        peer.writer.transport.pause_reading()
        while not connection.buffered:
            connection.send(bytes(1 << 20))
            await asyncio.sleep(0)
        before = hub.stats().bytes_received
        peer.write(large[:20_000])
        await received(hub, before + 20_000)
        peer.writer.transport.resume_reading()
        reading = asyncio.create_task(peer.close_code())
        await draining.wait()
        peer.write(large[20_000:] + masked(Frame.text("x")))
        await received(hub, before + len(large))
        assert events == ["drains"]
        release.set()
        await done.wait()
        assert events == ["drains", "has drained", 30_000, "30000 done", 1, "1 done"]
        reading.cancel()


async def test_on_open_may_receive_beside_one_on_ping_and_on_close_waits_for_both() -> None:
    events: list[object] = []
    got, release, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    pings: list[asyncio.Event] = []

    async def on_open(connection) -> None:
        async for message in connection:
            events.append(message.data)
            got.set()
            if message.data == "b":
                break
        await release.wait()
        events.append("on_open done")

    async def on_ping(connection, payload) -> None:
        events.append(payload)
        pings.append(asyncio.Event())
        await pings[-1].wait()
        events.append(payload + b" done")

    def on_close(connection, code, reason) -> None:
        events.append("closed")
        done.set()

    async def until(count: int) -> None:
        while len(events) < count:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)

    handler = EventHandler(on_open=on_open, on_ping=on_ping, on_close=on_close)
    async with serving(handler) as (_, url):
        async with raw_peer(url) as peer:
            for frame in (Frame.text("a"), Frame.ping(b"p"), Frame.ping(b"q"), Frame.text("b")):
                peer.send(frame)
            await until(2)
            assert set(events) == {"a", b"p"}
            pings[0].set()
            await until(4)
            assert events[2:] == [b"p done", b"q"]
            pings[1].set()
            await until(6)
            assert events[4:] == [b"q done", "b"]
            peer.reset()
        await until(6)
        assert len(events) == 6
        release.set()
        await done.wait()
        assert events[6:] == ["on_open done", "closed"]


async def test_closing_the_hub_cancels_handlers_that_hang() -> None:
    cancelled = asyncio.Event()

    async def on_message(connection, message) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serving(EventHandler(on_message=on_message), close_timeout_ms=100) as (hub, url):
        async with raw_peer(url) as peer:
            peer.send(Frame.text("a"))
            while not hub.stats().messages_received:
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                await hub.close()
        assert cancelled.is_set()


async def test_asyncio_works_in_the_first_step_of_a_coroutine_handler() -> None:
    async def on_message(connection, message) -> None:
        assert asyncio.current_task() is not None
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        connection.send(message)

    async with serving(EventHandler(on_message=on_message)) as (_, url), connected(url) as client:
        for index in range(5):
            await client.send(str(index))
        assert [await client.recv() for _ in range(5)] == list("01234")


async def test_a_coroutine_handler_that_does_not_suspend_costs_no_task() -> None:
    async def on_message(connection, message) -> None:
        connection.send(message)

    async with serving(EventHandler(on_message=on_message)) as (_, url), connected(url) as client:
        await client.send("first")
        await client.recv()
        tasks = asyncio.all_tasks()
        for _ in range(100):
            await client.send("again")
            assert await client.recv() == "again"
        assert {task for task in asyncio.all_tasks() if task.get_name() == "wshub handler"} <= tasks


@pytest.mark.parametrize("broken", ["on_open", "on_message", "on_ping", "on_close", "on_error"])
@pytest.mark.parametrize("suspends", [False, True], ids=["function", "coroutine"])
def test_whatever_a_handler_raises_stays_with_its_connection(run, broken, suspends, caplog) -> None:
    async def scenario() -> None:
        errors: list[BaseException] = []

        def fail(*_) -> None:
            raise LookupError(broken)

        async def fail_later(*_) -> None:
            await asyncio.sleep(0)
            raise LookupError(broken)

        handlers = {
            "on_open": lambda connection: None,
            "on_message": lambda connection, message: connection.send(message),
            "on_error": lambda connection, error: errors.append(error),
            broken: fail_later if suspends else fail,
        }
        if broken == "on_error":
            handlers["on_message"] = fail
        async with serving(EventHandler(**handlers)) as (hub, url):
            for _ in range(2):
                async with connected(url) as client:
                    try:
                        await client.ping()
                        await client.send("x")
                        await client.recv()
                    except websockets.ConnectionClosed:
                        assert client.close_code == 1011
                while hub.connection_count:
                    await asyncio.sleep(0)
            if broken == "on_close":
                for _ in range(5):
                    await asyncio.sleep(0)
            if broken != "on_error":
                assert [str(error) for error in errors] == [broken] * 2

    run(scenario())
    assert "LookupError" in caplog.text
    assert "Traceback" in caplog.text


async def test_receive_belongs_to_one_way_of_receiving() -> None:
    opened = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result, on_message=lambda connection, message: None)
    async with serving(handler) as (_, url), connected(url):
        with pytest.raises(MisuseError, match="on_message"):
            await (await opened).receive()


async def test_a_coroutine_on_open_may_receive() -> None:
    async def on_open(connection) -> None:
        await asyncio.sleep(0)
        name = await connection.receive(timeout=5)
        async for message in connection:
            connection.send(f"{name.data}: {message.data}")

    async with serving(EventHandler(on_open=on_open)) as (_, url), connected(url) as client:
        for message in ("Ada", "hello", "again"):
            await client.send(message)
        assert [await client.recv(), await client.recv()] == ["Ada: hello", "Ada: again"]


async def test_messages_before_the_close_are_received_and_then_the_close_is_reported() -> None:
    ended = asyncio.get_running_loop().create_future()
    go = asyncio.Event()

    async def endpoint(connection) -> None:
        await go.wait()
        received = [message.data for _ in range(60) for message in [await connection.receive()]]
        try:
            await connection.receive()
        except ConnectionClosed as closed:
            ended.set_result((received, closed.code, closed.reason))

    async with serving(endpoint) as (_, url), raw_peer(url) as peer:
        for index in range(60):
            peer.send(Frame.text(str(index)))
        peer.send(Frame.close(3001, "done"))
        peer.writer.write_eof()
        go.set()
        assert await ended == ([str(index) for index in range(60)], 3001, "done")


def test_a_handler_that_is_none_of_the_events_or_not_callable_is_refused() -> None:
    with pytest.raises(MisuseError, match="on_mesage"):
        EventHandler(on_mesage=print)
    with pytest.raises(MisuseError, match="on_open"):
        EventHandler(on_open=3)  # type: ignore[arg-type]


async def test_close_refuses_what_cannot_be_sent() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (_, url), connected(url):
        connection = await opened
        for code, reason in ((CloseCode.ABNORMAL, ""), (999, ""), (1000, "x" * 124)):
            with pytest.raises(ValueError, match=r"cannot be sent|at most 123"):
                connection.close(code, reason)
        with pytest.raises(ValueError, match="at most 125"):
            connection.send_ping(b"x" * 126)
        with pytest.raises(TypeError):
            connection.send(3)
        with pytest.raises(TypeError, match="send_text"):
            connection.send_binary("text")


async def test_the_closing_handshake_does_not_wait_for_a_handler_that_is_suspended() -> None:
    started = asyncio.get_running_loop().create_future()
    forever = asyncio.Event()

    async def on_message(connection, message) -> None:
        started.set_result(connection)
        await forever.wait()

    async with serving(EventHandler(on_message=on_message)) as (_, url):
        async with connected(url) as client:
            await client.send("work")
            connection = await started
            connection.close(4000, "changed my mind")
            await client.wait_closed()
            assert client.close_code == 4000
            await connection.wait_closed()
            assert connection.close_code == 4000
        forever.set()


async def test_a_room_has_a_name() -> None:
    """A message to a room whose name was lost must not go to all connections."""

    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (hub, url), connected(url):
        connection = await opened
        for call in (
            connection.join,
            connection.leave,
            partial(hub.join_room, connection),
            partial(hub.leave_room, connection),
            partial(hub.broadcast_to_room, message="to all"),
            partial(hub.broadcast_to_room_except, message="to all", exclude=connection),
            hub.configure_room,
        ):
            with pytest.raises(TypeError):
                call(None)
        assert connection.rooms == hub.rooms == frozenset()
        assert hub.stats().messages_accepted == 0


async def test_close_codes_are_chosen_by_the_handler_and_checked() -> None:
    class Strict(EventHandler):
        close_codes = MappingProxyType({1009: 4009})

        def on_message(self, connection: Any, message: Message) -> None:
            raise RuntimeError("asked to fail")

    async with serving(Strict(), max_message_size=10) as (hub, url):
        for text, code in (("x" * 20, 4009), ("x", 1011)):
            async with connected(url) as client:
                await client.send(text)
                await client.wait_closed()
                assert client.close_code == code
        while hub.connection_count:
            await asyncio.sleep(0)
        assert hub.stats().closes == {4009: 1, 1011: 1}
    for codes in ({1011: 1006}, {1006: 4000}, {1011: 2000}, {1011: "4000"}, [1011], {1011: 4999.0}):
        handler = Strict()
        handler.close_codes = codes
        with pytest.raises(MisuseError, match="close_codes"):
            Hub().serve("127.0.0.1", 0, handler)


@pytest.mark.parametrize("suspends", [False, True], ids=["at once", "after an await"])
def test_a_handler_that_raises_cancelled_error_is_one_warning_without_a_traceback(run, suspends, caplog) -> None:
    async def on_message(connection, message) -> None:
        if suspends:
            await asyncio.sleep(0)
        raise asyncio.CancelledError

    async def scenario() -> None:
        async with serving(EventHandler(on_message=on_message)) as (_, url), raw_peer(url) as peer:
            peer.send(Frame.text("a"))
            assert await peer.close_code() == 1011

    run(scenario())
    records = [record for record in caplog.records if record.levelno > logging.INFO]
    assert [(record.levelname, record.exc_info) for record in records] == [("WARNING", None)]
