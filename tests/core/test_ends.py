"""Every connection ends, its application is notified, and no resource stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import struct
import threading
from typing import Any

import pytest
import uvloop

from tests.support import chromium
from tests.support.certificate import Certificate
from tests.support.raw_peers import REQUEST, raw_peer
from tests.support.serving_hub import connected, serving
from wshub import Connection, ConnectionClosed, ConnectionLost, EventHandler, Frame, Hub, HubConfig, Opcode
from wshub.core.event_handler import receiving_handler_table

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
MANY = 5_000


@pytest.fixture(params=[True, False], ids=["native", "transports"])
def native(request: pytest.FixtureRequest) -> bool:
    return request.param


# Close frames


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        struct.pack("!H", 1000),
        struct.pack("!H", 3456) + b"pizza",
        struct.pack("!H", 4999) + b"x" * 123,
        struct.pack("!H", 1001) + ("\u00e9" * 60 + "\u20ac").encode(),
        struct.pack("!H", 1000) + "\U0001f600".encode(),
    ],
    ids=["empty", "code", "reason", "longest", "longest UTF-8", "emoji"],
)
async def test_a_close_is_answered_with_its_code_and_its_reason(native: bool, payload: bytes) -> None:
    async with serving(EventHandler(), use_reactor=native) as (_, url), raw_peer(url) as peer:
        peer.send(Frame(Opcode.CLOSE, payload))
        answer = await peer.frame()
        assert (answer.opcode, answer.payload) == (Opcode.CLOSE, payload)
        with pytest.raises(EOFError):
            await peer.frame()


@pytest.mark.skipif(chromium.PATH is None, reason="there is no chromium on this machine")
@pytest.mark.skipif("WSHUB_SANITIZED" in os.environ, reason="a browser does not run under the sanitizers")
def test_a_page_sees_the_code_and_the_reason_that_it_closed_with(native: bool) -> None:
    from playwright.async_api import async_playwright

    script = """([url, args]) => new Promise((resolve) => {
        const socket = new WebSocket(url);
        socket.onopen = () => socket.close(...args);
        socket.onclose = (event) => resolve([event.code, event.reason, event.wasClean]);
    })"""

    async def scenario() -> None:
        async with serving(EventHandler(), use_reactor=native) as (_, url), async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=chromium.PATH, args=chromium.OPTIONS)
            try:
                page = await browser.new_page()
                for code, reason in (
                    (1000, "pizza"),
                    (3456, "\u00e9t\u00e9 \U0001f600"),
                    (4999, "x" * 123),
                    (1000, ""),
                ):
                    assert await page.evaluate(script, [url, [code, reason]]) == [code, reason, True]
                assert await page.evaluate(script, [url, []]) == [1005, "", True]
            finally:
                await browser.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


# Waits


async def cancel_all(tasks: list[asyncio.Task[Any]]) -> None:
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def futures() -> int:
    gc.collect()
    # isinstance() would have lazy objects of other libraries load themselves.
    return sum(issubclass(type(each), asyncio.Future) for each in gc.get_objects())


@pytest.mark.one_loop
@pytest.mark.parametrize("name", ["wait_closed", "drain"])
async def test_cancelled_waits_leave_nothing_behind(native: bool, name: str) -> None:
    opened = asyncio.get_running_loop().create_future()
    settings = {"max_send_buffer": 1 << 25, "use_reactor": native}
    async with serving(EventHandler(on_open=opened.set_result), **settings) as (_, url), raw_peer(url) as peer:
        connection = await opened
        peer.writer.transport.pause_reading()
        connection.send(bytes(16_000_000))
        wait = getattr(connection, name)
        before = futures()
        # Cancel all of them at once; a linear search through the waiters would take too long.
        await cancel_all([asyncio.create_task(wait()) for _ in range(MANY)])
        for _ in range(100):
            await cancel_all([asyncio.create_task(wait())])
        assert futures() - before < 10


async def test_those_that_are_not_cancelled_go_on_to_wait(native: bool) -> None:
    opened = asyncio.get_running_loop().create_future()
    settings = {"max_send_buffer": 1 << 25, "use_reactor": native}
    async with serving(EventHandler(on_open=opened.set_result), **settings) as (_, url), raw_peer(url) as peer:
        connection = await opened
        peer.writer.transport.pause_reading()
        connection.send(bytes(16_000_000))
        drains = [asyncio.create_task(connection.drain()) for _ in range(3)]
        ends = [asyncio.create_task(connection.wait_closed()) for _ in range(3)]
        received = asyncio.create_task(connection.receive())
        await cancel_all([drains[0], ends[1], received])
        peer.writer.transport.resume_reading()
        await peer.frame()
        await asyncio.gather(*drains[1:])
        last = asyncio.create_task(connection.receive())
        peer.send(Frame.text("still heard"))
        assert (await last).data == "still heard"
        peer.reset()
        await asyncio.gather(ends[0], ends[2])


# Before the handshake is complete


def register(hub: Hub) -> Connection:
    hub.bind()
    return hub.register_connection(receiving_handler_table(), None)


@pytest.mark.parametrize("closed", [False, True], ids=["", "after close()"])
async def test_a_handshake_that_fails_ends_every_wait(closed: bool) -> None:
    async with Hub() as hub:
        connection = register(hub)
        connection.join("a room")
        early = [asyncio.create_task(connection.wait_closed()), asyncio.create_task(connection.receive())]
        await asyncio.sleep(0)
        if closed:
            connection.close(4000)
            await asyncio.sleep(0)
        assert not any(task.done() for task in early)
        hub.cancel_opening(connection)
        await early[0]
        with pytest.raises(ConnectionLost):
            await early[1]
        await connection.wait_closed()
        for late in (connection.receive, connection.drain):
            with pytest.raises(ConnectionLost):
                await late()
        connection.close()
        assert (connection.state.name, connection.close_code) == ("CLOSED", 1006)
        assert (hub.connection_count, hub.rooms) == (0, frozenset())


async def test_a_hub_that_closes_ends_what_waits_for_a_handshake_that_is_never_answered() -> None:
    hub = Hub(HubConfig(close_timeout_ms=50))
    connection = register(hub)
    wait = asyncio.create_task(connection.wait_closed())
    await hub.close()
    await wait
    assert hub.connection_count == 0


async def test_a_handshake_that_was_given_up_is_not_answered_later() -> None:
    async with Hub() as hub:
        connection = register(hub)
        hub.cancel_opening(connection)
        if not hub.can_adopt():
            return
        ours, theirs = socket.socketpair()
        theirs.settimeout(10)
        with theirs:
            ours.setblocking(False)
            with pytest.raises(Exception, match="shutting down"):
                hub.open_on_descriptor(connection, ours.detach(), b"101", b"")
            await asyncio.sleep(0)
            assert theirs.recv(10) == b""
        assert connection.state.name == "CLOSED"


# After the connection has closed


@contextlib.asynccontextmanager
async def serving_over(kind: str, handler: EventHandler, directory: Any, certificate: Certificate):
    options: dict[str, Any] = {"unix": str(directory / "socket")} if "unix" in kind else {"host": "127.0.0.1"}
    if "tls" in kind:
        options["ssl"] = certificate.server_context()
    config = HubConfig(use_reactor="native" in kind, close_timeout_ms=100)
    async with Hub(config) as hub, hub.serve(handler=handler, **options) as server:
        address = {"path": options["unix"]} if "unix" in kind else {"host": "127.0.0.1", "port": server.port}
        ssl = {"ssl": certificate.client_context(), "server_hostname": "localhost"} if "tls" in kind else {}
        connect = asyncio.open_unix_connection if "unix" in kind else asyncio.open_connection
        yield await connect(**address, **ssl)


@pytest.mark.parametrize("end", ["close", "reset", "hub"])
@pytest.mark.parametrize("carrier", ["native", "transports", "native tls", "transports tls"])
@pytest.mark.parametrize("address", ["tcp", "unix"])
async def test_the_address_is_there_at_all_times_and_in_all_threads(
    tmp_path, certificate, carrier: str, address: str, end: str
) -> None:
    kind = f"{carrier} {address}"
    seen: list[Any] = []

    def look(connection: Connection) -> None:
        seen.append(connection.remote_address)
        thread = threading.Thread(target=lambda: seen.append(connection.remote_address))
        thread.start()
        thread.join()

    loop = asyncio.get_running_loop()
    opened, closed = loop.create_future(), loop.create_future()

    def on_open(connection: Connection) -> None:
        look(connection)
        opened.set_result(connection)

    def on_close(connection: Connection, code: int, reason: str) -> None:
        look(connection)
        closed.set_result(None)

    handler = EventHandler(on_open=on_open, on_close=on_close)
    async with serving_over(kind, handler, tmp_path, certificate) as (reader, writer):
        expected = None if "unix" in kind else writer.get_extra_info("sockname")
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        connection = await opened
        if end == "reset":
            writer.transport.abort()
            await closed
        elif end == "close":
            connection.close()
            await reader.readexactly(4)
            writer.close()
            await closed
    look(connection)
    writer.transport.abort()
    await asyncio.sleep(0)
    look(connection)
    assert seen == [expected] * 8


def leave_a_loop_behind(loop: asyncio.AbstractEventLoop, kind: str) -> None:
    """Close a loop while the hub's code runs in it."""
    hub = Hub()
    opened: asyncio.Future[Connection] = loop.create_future()

    def on_open(connection: Connection) -> None:
        connection.join("room")
        opened.set_result(connection)

    async def listen() -> Any:
        return await hub.serve("127.0.0.1", 0, EventHandler(on_open=on_open)).__aenter__()

    server = loop.run_until_complete(listen())
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(REQUEST)
        connection = loop.run_until_complete(opened)
        if kind == "blocked":
            connection.send(bytes(900_000))
            loop.run_until_complete(asyncio.sleep(0))
        if kind == "waiting":
            waits = [loop.create_task(each()) for each in (connection.wait_closed, connection.receive)]
            loop.run_until_complete(asyncio.sleep(0))
            for task in waits:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*waits, return_exceptions=True))
        if kind in ("queued", "aborted"):
            hub.broadcast("x", room="room")
        if kind == "aborted":
            hub._abort_all()
        if kind == "closing":
            connection.close()
        loop.close()
        if kind == "queued later":
            hub.broadcast("x", room="room")
        server.stop_listening()


def descriptors_and_objects() -> tuple[int, int]:
    gc.collect()
    ours = sum(issubclass(type(each), (Connection, Hub)) for each in gc.get_objects())
    return len(os.listdir("/proc/self/fd")), ours


@pytest.mark.one_loop
@pytest.mark.skipif(os.environ.get("WSHUB_USE_REACTOR") == "0", reason="asyncio warns about open transports")
@pytest.mark.parametrize("kind", ["", "queued", "queued later", "aborted", "closing", "blocked", "waiting"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_that_is_closed_in_the_middle_leaks_nothing(loop: str, kind: str) -> None:
    leave_a_loop_behind(LOOPS[loop](), kind)
    before = descriptors_and_objects()
    for _ in range(3):
        leave_a_loop_behind(LOOPS[loop](), kind)
    after = descriptors_and_objects()
    # Objects of an earlier test may have been freed in between.
    assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)


async def test_receive_after_a_close_of_the_client_ends_in_the_ordinary_way(native: bool) -> None:
    opened = asyncio.get_running_loop().create_future()
    async with (
        serving(EventHandler(on_open=opened.set_result), use_reactor=native) as (_, url),
        connected(url) as client,
    ):
        connection = await opened
        received = asyncio.create_task(connection.receive())
        await client.close(4000, "so long")
        with pytest.raises(ConnectionClosed) as caught:
            await received
        assert (caught.value.code, caught.value.reason) == (4000, "so long")
        assert (client.close_code, client.close_reason) == (4000, "so long")


async def test_an_application_that_only_sends_notices_a_disconnect() -> None:
    told = asyncio.get_running_loop().create_future()

    async def ticker(connection) -> None:
        try:
            while True:
                connection.send("tick")
                await asyncio.sleep(0)
        except ConnectionClosed as closed:
            told.set_result((closed.code, closed.reason))

    async with serving(ticker) as (_, url):
        async with connected(url) as client:
            await client.recv()
            await client.close(4003, "enough ticks")
        assert await told == (4003, "enough ticks")


async def test_sending_after_a_close_is_one_exception_and_closing_twice_is_fine() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (_, url), connected(url):
        connection = await opened
        connection.close(1000, "done")
        connection.close(1000, "done again")
        for send in (connection.send, connection.send_text, connection.send_json):
            with pytest.raises(ConnectionClosed):
                send("late")
        with pytest.raises(ConnectionClosed):
            connection.send_binary(b"late")
        with pytest.raises(ConnectionClosed):
            connection.send_ping()
        with pytest.raises(ConnectionClosed):
            connection.join("room")
        await connection.wait_closed()
        connection.close()
        with pytest.raises(ConnectionClosed) as caught:
            connection.send("later")
        assert caught.value.code == 1000


async def test_an_abnormal_end_raises_from_async_for_and_a_normal_one_does_not() -> None:
    ends: asyncio.Queue[object] = asyncio.Queue()

    async def endpoint(connection) -> None:
        try:
            async for _ in connection:
                pass
        except ConnectionLost as lost:
            ends.put_nowait(lost.code)
        else:
            ends.put_nowait("normal")

    async with serving(endpoint) as (_, url):
        async with connected(url):
            pass
        assert await ends.get() == "normal"
        async with raw_peer(url) as peer:
            peer.reset()
        assert await ends.get() == 1006
