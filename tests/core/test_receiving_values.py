"""An application receives text, bytes or JSON. A client that sends something else is closed, and fills no log."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
import websockets

from tests.support.raw_peers import raw_peer
from tests.support.serving_hub import connected, serving
from wshub import Connection, ConnectionLost, EventHandler, Frame, Message, UnexpectedMessageError


async def test_each_method_returns_the_payload_in_its_type() -> None:
    received: asyncio.Queue[Any] = asyncio.Queue()

    async def endpoint(connection: Connection) -> None:
        received.put_nowait(await connection.receive_text())
        received.put_nowait(await connection.receive_bytes())
        received.put_nowait(await connection.receive_json())
        async for value in connection.iter_json():
            received.put_nowait(value)
        received.put_nowait("ends")

    async with serving(endpoint) as (_, url):
        async with connected(url) as client:
            for message in ("ä", b"\x00\xff", '{"a": [1]}', "null", "[1.5, true]"):
                await client.send(message)
        assert [await received.get() for _ in range(6)] == ["ä", b"\x00\xff", {"a": [1]}, None, [1.5, True], "ends"]


async def test_each_method_takes_a_timeout_and_loses_no_message() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (_, url), connected(url) as client:
        connection = await opened
        for receive in (connection.receive_text, connection.receive_bytes, connection.receive_json):
            with pytest.raises(TimeoutError):
                await receive(0.001)
        await client.send("1")
        assert await connection.receive_json(timeout=5) == 1


async def test_a_message_of_the_wrong_type_is_reported_and_taken_from_the_inbox() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (_, url), connected(url) as client:
        connection = await opened
        for message in (b"1", "2", b"3", "{", "4"):
            await client.send(message)
        for receive, code in (
            (connection.receive_text, 1003),
            (connection.receive_bytes, 1003),
            (connection.receive_json, 1003),
            (connection.receive_json, 1007),
        ):
            with pytest.raises(UnexpectedMessageError) as caught:
                await receive()
            assert caught.value.code == code
        assert await connection.receive_json() == 4


async def test_json_iteration_raises_if_the_client_vanishes() -> None:
    ended = asyncio.get_running_loop().create_future()

    async def endpoint(connection: Connection) -> None:
        try:
            async for _ in connection.iter_json():
                pass
        except ConnectionLost as lost:
            ended.set_result(lost.code)

    async with serving(endpoint) as (_, url):
        async with raw_peer(url) as peer:
            peer.send(Frame.text("1"))
        assert await ended == 1006


async def text_endpoint(connection: Connection) -> None:
    await connection.receive_text()


async def json_endpoint(connection: Connection) -> None:
    async for _ in connection.iter_json():
        pass


async def late_json(connection: Connection, message: Message) -> None:
    await asyncio.sleep(0)
    message.json()


CASES = {
    "text": (text_endpoint, b"secret", 1003, "expected a text message"),
    "json": (json_endpoint, "secret", 1007, "expected JSON"),
    "on_message": (EventHandler(on_message=lambda _, message: message.json()), "secret", 1007, "expected JSON"),
    "on_message, suspended": (EventHandler(on_message=late_json), "secret", 1007, "expected JSON"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_unexpected_message_closes_with_its_code_and_logs_no_error(run, caplog, case) -> None:
    handler, message, code, reason = CASES[case]

    async def scenario() -> None:
        async with serving(handler) as (hub, url), connected(url) as client:
            await client.send(message)
            with pytest.raises(websockets.ConnectionClosed):
                await client.recv()
            assert (client.close_code, client.close_reason) == (code, reason)
            while hub.connection_count:
                await asyncio.sleep(0)
            assert hub.stats().closes == {code: 1}

    caplog.set_level(logging.DEBUG)
    run(scenario())
    ours = [record for record in caplog.records if record.name.startswith("wshub")]
    assert [record for record in ours if record.levelno > logging.INFO] == []
    assert any("unexpected message" in record.getMessage() for record in ours)
    assert "secret" not in "".join(record.getMessage() for record in ours)


async def test_on_error_hears_of_it_and_a_subprotocol_may_have_a_code_of_its_own() -> None:
    errors: list[BaseException] = []
    closed = asyncio.get_running_loop().create_future()

    class Handler(EventHandler):
        close_codes = {1007: 4400}  # noqa: RUF012

        def on_message(self, connection: Connection, message: Message) -> None:
            message.json()

        def on_error(self, connection: Connection, error: BaseException) -> None:
            errors.append(error)

        def on_close(self, connection: Connection, code: int, reason: str) -> None:
            closed.set_result((code, reason))

    async with serving(Handler()) as (_, url), connected(url) as client:
        await client.send("{")
        assert await closed == (4400, "expected JSON")
        assert client.close_code in (None, 4400)
    assert isinstance(errors[0], UnexpectedMessageError)
