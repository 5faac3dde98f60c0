"""How an application receives: cancellation, second readers, limits on every wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.raw_peers import raw_peer
from tests.support.serving_hub import connected, serving
from wshub import EventHandler, Frame, MisuseError


async def test_cancelling_receive_loses_no_message_and_cuts_no_frame() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (_, url), connected(url) as client:
        connection = await opened
        received = []
        for index in range(100):
            receiving = asyncio.create_task(connection.receive())
            await asyncio.sleep(0)
            await client.send(str(index))
            if index % 3 == 0:
                receiving.cancel()
            (result,) = await asyncio.gather(receiving, return_exceptions=True)
            if not isinstance(result, BaseException):
                received.append(result.data)
        while len(received) < 100:
            received.append((await connection.receive(timeout=5)).data)
        assert received == [str(index) for index in range(100)]


async def test_a_second_reader_is_told_which_task_is_the_first() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (_, url), connected(url):
        connection = await opened
        first = asyncio.create_task(connection.receive(), name="first-reader")
        await asyncio.sleep(0)
        with pytest.raises(MisuseError, match="first-reader"):
            await connection.receive()
        first.cancel()


async def test_no_wait_is_without_a_bound_and_a_failing_handler_is_reported() -> None:
    """Every wait of an application accepts a timeout, and ``on_error`` receives the exception of a handler."""

    opened: asyncio.Queue[Any] = asyncio.Queue()
    failed = asyncio.get_running_loop().create_future()

    async def endpoint(connection) -> None:
        assert (await connection.receive()).data == "expected"

    handler = EventHandler(on_open=endpoint, on_error=lambda _, error: failed.set_result(error))
    async with serving(handler) as (_, url), raw_peer(url) as peer:
        peer.send(Frame.text("unexpected"))
        assert isinstance(await failed, AssertionError)
        assert await peer.close_code() == 1011
    handler = EventHandler(on_open=opened.put_nowait)
    async with serving(handler, max_send_buffer=1 << 30) as (_, url), raw_peer(url) as peer:
        connection = await opened.get()
        with pytest.raises(TimeoutError):
            await connection.receive(timeout=0.001)
        peer.send(Frame.text("late"))
        assert (await connection.receive(timeout=5)).data == "late"
        peer.writer.transport.pause_reading()
        for _ in range(50):
            connection.send(bytes(1_000_000))
        for wait in (connection.drain, connection.wait_closed, connection.receive, connection.__anext__):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wait(), 0.001)
