"""The steps of an opening handshake, without a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.raw_peers import REQUEST
from wshub import Connection, ConnectionState, EventHandler, HandshakeError, Hub, HubConfig
from wshub.core.event_handler import handler_table_of
from wshub.core.opening import Opening
from wshub.core.refusals import refuse
from wshub.links.link_probe import LinkProbe
from wshub.links.memory_link import create_memory_links, deliver_all
from wshub.protocol.http.request import RequestHead, parse_request_head

TABLE = handler_table_of(EventHandler())
PEER = ("192.0.2.1", 5)


class Source:
    peer = PEER


def opening_of(hub: Hub, request: bytes = REQUEST, **options: Any) -> Opening:
    return Opening(hub, TABLE, parse_request_head(request), **options)


async def test_a_handshake_is_checked_accepted_and_opened() -> None:
    async with Hub() as hub:
        opening = opening_of(hub)
        opening.check()
        assert opening.decide() is None
        response = opening.accept((), path_params={"name": "x"}, headers=[("X-A", "b")])
        assert response.startswith(b"HTTP/1.1 101 ")
        assert b"X-A: b\r\n" in response
        assert opening.connection.state is ConnectionState.CONNECTING
        assert opening.connection.path_params == {"name": "x"}
        link, other = create_memory_links()
        client = LinkProbe(other)
        opening.open_on(link, response, b"")
        deliver_all(link)
        assert client.received == response
        assert opening.connection.state is ConnectionState.OPEN
        link.cut()
        deliver_all(link)


async def test_only_a_hub_that_needs_the_address_asks_for_it() -> None:
    seen: list[Any] = []

    def judge(request: RequestHead) -> None:
        seen.append(request.remote_address)

    for options, client, address in (
        ({}, None, None),
        ({"on_upgrade": judge}, None, PEER),
        ({"on_upgrade": judge}, ("198.51.100.1", 0), ("198.51.100.1", 0)),
    ):
        async with Hub(**options) as hub:
            opening = opening_of(hub, source=Source(), client=client)
            opening.check()
            assert opening.request.remote_address == address
            opening.decide()
            opening.accept(())
            assert opening.connection.forwarded_address == client
            opening.cancel()
    assert seen == [PEER, ("198.51.100.1", 0)]


async def test_capacity_is_checked_again_after_a_wait() -> None:
    async def judge(request: RequestHead) -> dict[str, str]:
        return {"name": "x"}

    async with Hub(HubConfig(max_connections=1), on_upgrade=judge) as hub:
        first, second = opening_of(hub), opening_of(hub)
        for opening in (first, second):
            opening.check()
        decisions: list[Any] = [opening.decide() for opening in (first, second)]
        metadata = [await decision for decision in decisions]
        first.accept((), metadata=metadata[0])
        assert first.connection.metadata == {"name": "x"}
        with pytest.raises(HandshakeError) as caught:
            second.accept((), metadata=metadata[1])
        assert caught.value.status == 503
        assert hub.connection_count == 1
        first.cancel()
        assert hub.connection_count == 0


async def test_a_refusal_is_counted_with_the_status_of_its_response(caplog) -> None:
    async with Hub() as hub:
        with pytest.raises(HandshakeError) as caught:
            opening_of(hub, REQUEST.replace(b"Version: 13", b"Version: 8")).check()
        assert refuse(hub, caught.value).startswith(b"HTTP/1.1 426 ")
        # A 204 cannot have a body, so the hub answers with another status.
        assert refuse(hub, HandshakeError(204, "nothing")).startswith(b"HTTP/1.1 500 ")
        assert refuse(None, HandshakeError(403, "no")).startswith(b"HTTP/1.1 403 ")
        assert hub.stats().refused == {426: 1, 500: 1}


async def test_a_connection_is_opened_from_the_loop_and_not_from_a_task() -> None:
    async with Hub() as hub:
        opening = opening_of(hub)
        opening.register()
        tasks: list[Any] = []
        await opening.open_from_loop(lambda: tasks.append(asyncio.current_task()))
        assert tasks == [None]

        def fail() -> None:
            raise ValueError("it cannot be opened")

        with pytest.raises(ValueError, match="cannot be opened"):
            await opening.open_from_loop(fail)
        assert hub.connection_count == 0


async def test_a_task_that_is_cancelled_before_the_opening_cancels_it() -> None:
    async with Hub() as hub:
        opening = opening_of(hub)
        connection: Connection = opening.register()
        called: list[str] = []
        task = asyncio.create_task(
            opening.open_from_loop(lambda: called.append("open"), lambda: called.append("cancelled"))
        )
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert called == ["cancelled"]
        assert connection.state is ConnectionState.CLOSED


async def test_a_wait_ends_by_the_clock_of_the_hub_or_with_the_hub(clock) -> None:
    async def never(request: RequestHead) -> None:
        await asyncio.sleep(60)

    async def waiting(opening: Opening) -> int:
        decision: Any = opening.decide()
        with pytest.raises(HandshakeError) as caught:
            await opening.wait(decision)
        assert caught.value.status == 503
        assert not opening.hub.waits
        return len(caught.value.reason)

    hub = Hub(HubConfig(handshake_timeout_ms=10_000), clock=clock, on_upgrade=never)
    hub.bind()
    task = asyncio.create_task(waiting(opening_of(hub)))
    await asyncio.sleep(0)
    clock.now += 9
    await asyncio.sleep(1.2)
    assert not task.done()
    clock.now += 2
    assert await task == len("The server did not decide in time.")
    task = asyncio.create_task(waiting(opening_of(hub)))
    await asyncio.sleep(0)
    await hub.close()
    assert await task == len("The server is shutting down.")
