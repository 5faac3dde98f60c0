"""The log names the event and the function that failed. A handler whose client has left ends quietly."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import pytest

from tests.support.raw_peers import raw_peer
from tests.support.serving_hub import connected, serving
from wshub import Connection, EventHandler, Frame, HandshakeError, Hub, Message


def fails(connection: Connection, *arguments: Any) -> None:
    raise RuntimeError("on purpose")


async def fails_late(connection: Connection, *arguments: Any) -> None:
    await asyncio.sleep(0)
    raise RuntimeError("on purpose")


class Handler(EventHandler):
    def on_pong(self, connection: Connection, payload: bytes) -> None:
        raise RuntimeError("on purpose")


HANDLERS = {
    "on_open (fails)": EventHandler(on_open=fails),
    "on_open (fails_late)": EventHandler(on_open=fails_late),
    "on_message (fails)": EventHandler(on_message=fails),
    "on_message (fails_late)": EventHandler(on_message=fails_late),
    "on_message (partial)": EventHandler(on_message=partial(fails)),
    "on_ping (fails)": EventHandler(on_ping=fails),
    "on_close (fails)": EventHandler(on_close=fails),
    "on_close (fails_late)": EventHandler(on_close=fails_late),
    "on_pong (Handler.on_pong)": Handler(),
    "the endpoint fails_late()": fails_late,
}


async def run_through(handler: Any) -> None:
    """Cause each event that a client can cause."""
    async with serving(handler) as (hub, url), raw_peer(url) as peer:
        for frame in (Frame.ping(b"p"), Frame.pong(b"q"), Frame.text("secret"), Frame.close(1000)):
            peer.send(frame)
        peer.writer.write_eof()
        while hub.connection_count or not hub.stats().closes:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("named", HANDLERS)
def test_the_log_names_the_event_the_function_and_the_connection(run, caplog, named) -> None:
    run(run_through(HANDLERS[named]))
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{named} of <Connection ")
    assert message.endswith("> has failed")
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert "secret" not in message


def test_the_log_names_on_error_if_that_fails(run, caplog) -> None:
    run(run_through(EventHandler(on_message=fails, on_error=fails)))
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("on_message (fails) of ")
    assert second.startswith("on_error (fails) of ")
    assert second.endswith("raised an exception itself")


def test_the_log_names_a_handler_that_was_cancelled(run, caplog) -> None:
    async def on_message(connection: Connection, message: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.sleep(10)

    run(run_through(EventHandler(on_message=on_message)))
    (record,) = caplog.records
    assert "on_message (test_the_log_names_a_handler_that_was_cancelled.<locals>.on_message) of " in record.getMessage()
    assert "was cancelled: closing with 1011" in record.getMessage()


# Quiet ends


async def sends_late(connection: Connection, *arguments: Any) -> None:
    await connection.wait_closed()
    connection.send("too late")


async def receives(connection: Connection, *arguments: Any) -> None:
    while True:
        await connection.receive()


async def drains_late(connection: Connection, *arguments: Any) -> None:
    await connection.wait_closed()
    await connection.drain()


async def joins_late(connection: Connection, *arguments: Any) -> None:
    await connection.wait_closed()
    connection.join("room")


async def fails_in_a_group(connection: Connection, *arguments: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(sends_late(connection))
        group.create_task(joins_late(connection))


def sends_in_on_close(connection: Connection, code: int, reason: str) -> None:
    connection.send("too late")


QUIET: dict[str, Any] = {
    "endpoint that sends": sends_late,
    "endpoint that receives": receives,
    "endpoint that drains": drains_late,
    "endpoint that joins": joins_late,
    "endpoint with a task group": fails_in_a_group,
    "on_message that sends": EventHandler(on_message=sends_late),
    "on_close that sends": EventHandler(on_close=sends_in_on_close),
}
# While on_message is suspended, nothing is read, so a close frame is not noticed.
ENDS = [
    (way, end) for way in QUIET for end in ("closes", "vanishes") if (way, end) != ("on_message that sends", "closes")
]


@pytest.mark.parametrize(("way", "end"), ENDS)
def test_a_handler_whose_client_has_left_ends_without_a_word_in_the_log(run, caplog, way, end) -> None:
    async def scenario() -> None:
        async with serving(QUIET[way]) as (hub, url):
            async with raw_peer(url) as peer:
                peer.send(Frame.text("x"))
                while not hub.stats().messages_received:
                    await asyncio.sleep(0)
                if end == "closes":
                    peer.send(Frame.close(1000))
                    assert await peer.close_code() == 1000
                else:
                    peer.reset()
            while hub.connection_count or hub._tasks_of(None):
                await asyncio.sleep(0)

    run(scenario())
    assert [record.getMessage() for record in caplog.records if record.name.startswith("wshub")] == []


def test_an_end_of_another_connection_is_an_error_of_the_handler(run, caplog) -> None:
    others: list[Connection] = []

    def on_message(connection: Connection, message: Message) -> None:
        others[0].send("to a client that has left")

    async def scenario() -> None:
        handler = EventHandler(on_open=others.append, on_message=on_message)
        async with serving(handler) as (_, url), connected(url) as client:
            other = others[0]
            async with connected(url):
                while len(others) < 2:
                    await asyncio.sleep(0)
            others.reverse()
            await others[0].wait_closed()
            assert other is others[1]
            await client.send("x")
            await client.wait_closed()
            assert client.close_code == 1011

    run(scenario())
    (record,) = caplog.records
    assert record.levelno == logging.ERROR


# What on_upgrade returns


@pytest.mark.parametrize("wrong", [False, True, "user", ["user"], 403, HandshakeError(403, "no")], ids=repr)
def test_on_upgrade_that_returns_something_else_than_a_mapping_lets_nobody_in(run, caplog, wrong) -> None:
    async def decides(request: Any) -> Any:
        return wrong

    async def scenario() -> None:
        for on_upgrade in (lambda request: wrong, decides):
            hub = Hub(on_upgrade=on_upgrade)
            async with hub.serve("127.0.0.1", 0, EventHandler(), close_hub=True) as server:
                async with raw_peer(f"ws://127.0.0.1:{server.port}/", handshake=False) as peer:
                    peer.write(
                        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                    )
                    assert b" 500 " in await peer.reader.readline()
                assert hub.connection_count == 0

    run(scenario())
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert record.exc_info is not None
        assert "on_upgrade must return a mapping or None" in str(record.exc_info[1])
        assert "HandshakeError(403" in str(record.exc_info[1])
