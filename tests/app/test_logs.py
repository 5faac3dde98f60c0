"""Every way to serve a hub logs the same."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import pytest

from tests.support.raw_peers import REQUEST, raw_peer
from tests.support.serving_hub import connected, serving
from tests.support.ways_to_serve import WAYS, served, status_of
from wshub import ConfigurationError, EventHandler, Frame, HandshakeError, Hub, HubConfig, Opcode, RateLimits
from wshub.core.connection_log import address_text, logger

ECHO = EventHandler(on_message=lambda connection, message: connection.send(message))


def records_of(caplog: pytest.LogCaptureFixture, name: str) -> list[Any]:
    return [record for record in caplog.records if record.name == name]


def events_of(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [record.event for record in records_of(caplog, name)]


async def all_gone(hub: Hub) -> None:
    while hub.connection_count:
        await asyncio.sleep(0)


@pytest.mark.parametrize("way", WAYS)
async def test_the_opening_and_the_end_of_a_connection_are_logged_at_debug(way: str, caplog) -> None:
    caplog.set_level(logging.DEBUG, "wshub.client")
    async with served(way, ECHO) as (hub, port):
        async with connected(f"ws://127.0.0.1:{port}/a%20b?token=secret") as client:
            client_port = client.local_address[1]
            await client.send("payload")
            assert await client.recv() == "payload"
            await client.close(4001, "enough")
        await all_gone(hub)
    opened, closed = records_of(caplog, "wshub.client")
    assert {record.levelno for record in (opened, closed)} == {logging.DEBUG}
    for record in (opened, closed):
        assert record.connection_id == opened.connection_id
        assert record.remote_address == f"127.0.0.1:{client_port}"
        assert record.path == "/a%20b"
        assert "secret" not in str(vars(record))
        assert "payload" not in str(vars(record))
    assert (opened.event, opened.status) == ("opened", 101)
    assert (closed.event, closed.close_code, closed.close_reason) == ("closed", 4001, "enough")
    assert 0 < closed.duration_ms < 60_000
    # A text frame of 7 bytes and a close frame of 8; from the client they are masked.
    assert closed.bytes_received == (2 + 4 + 7) + (2 + 4 + 8)
    assert closed.bytes_sent == (2 + 7) + (2 + 8)
    assert opened.getMessage().endswith("opened: /a%20b")
    assert "closed: 4001 enough, " in closed.getMessage()
    assert records_of(caplog, "wshub.access") == []


@pytest.mark.parametrize("way", WAYS)
async def test_a_refusal_is_logged_at_debug_with_its_status_and_why(way: str, caplog) -> None:
    caplog.set_level(logging.DEBUG, "wshub.client")

    def refuse(request: Any) -> None:
        raise HandshakeError(403, "No token.\r\nCRITICAL forged")

    async with served(way, ECHO, on_upgrade=refuse) as (_, port):
        assert await status_of(port, REQUEST.replace(b"GET / ", b"GET /chat?token=secret ")) == 403
    (record,) = records_of(caplog, "wshub.client")
    assert (record.event, record.levelno) == ("refused", logging.DEBUG)
    assert (record.status, record.path) == (403, "/chat")
    assert record.reason == "No token.\\r\\nCRITICAL forged"
    assert record.remote_address.startswith("127.0.0.1:")
    assert "secret" not in str(vars(record))
    assert len(record.getMessage().splitlines()) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_the_access_log_has_a_line_for_each_answer_and_each_end(way: str, caplog) -> None:
    caplog.set_level(logging.INFO, "wshub.access")
    async with served(way, ECHO, access_log=True, allowed_origins=("https://a",), allow_missing_origin=True) as (
        hub,
        port,
    ):
        assert await status_of(port, REQUEST[:-2] + b"Origin: https://b\r\n\r\n") == 403
        async with connected(f"ws://127.0.0.1:{port}/chat?token=secret"):
            pass
        await all_gone(hub)
    refused, opened, closed = records_of(caplog, "wshub.access")
    assert {record.levelno for record in (refused, opened, closed)} == {logging.INFO}
    assert refused.getMessage() == f'{refused.remote_address} - "WebSocket /" 403'
    assert opened.getMessage() == f'{opened.remote_address} - "WebSocket /chat" 101'
    assert closed.getMessage().startswith(f'{opened.remote_address} - "WebSocket /chat" closed 1000, ')
    assert records_of(caplog, "wshub.client") == []


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
async def test_the_levels_are_looked_at_once_for_each_connection(level: int, caplog, monkeypatch) -> None:
    caplog.set_level(level, "wshub.client")
    looks = []
    is_enabled_for = logger.isEnabledFor
    monkeypatch.setattr(logger, "isEnabledFor", lambda level: looks.append(level) or is_enabled_for(level))
    async with serving(ECHO) as (_, url), connected(url) as client:
        seen = len(looks)
        for _ in range(10):
            await client.send("x")
            await client.recv()
        assert len(looks) == seen == (1 if level > logging.DEBUG else 2)


async def test_a_connection_that_opened_before_the_level_was_debug_has_no_line_at_its_end(caplog) -> None:
    async with serving(ECHO) as (hub, url):
        async with connected(url):
            caplog.set_level(logging.DEBUG, "wshub.client")
        await all_gone(hub)
    assert events_of(caplog, "wshub.client") == []


async def test_a_client_that_vanishes_is_logged_with_1006(caplog) -> None:
    caplog.set_level(logging.DEBUG, "wshub.client")
    async with serving(ECHO) as (hub, url):
        async with raw_peer(url) as peer:
            peer.reset()
        await all_gone(hub)
    assert records_of(caplog, "wshub.client")[-1].close_code == 1006


async def test_a_handler_of_the_log_that_closes_the_connection_does_no_harm(caplog) -> None:
    caplog.set_level(logging.DEBUG, "wshub.client")
    hub = Hub()

    class Closing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.event == "opened":
                hub.get_connection(record.connection_id).close(4000)

    closing = Closing()
    logger.addHandler(closing)
    try:
        async with hub.serve("127.0.0.1", 0, ECHO) as server:
            async with raw_peer(f"ws://127.0.0.1:{server.port}/") as peer:
                assert await peer.close_code() == 4000
            await all_gone(hub)
    finally:
        logger.removeHandler(closing)


async def test_start_and_stop_are_logged_at_info(caplog) -> None:
    caplog.set_level(logging.INFO, "wshub.server")
    hub = Hub(name="prices")
    async with hub.serve("127.0.0.1", 0, ECHO, close_hub=True) as server:
        port = server.port
        async with connected(f"ws://127.0.0.1:{port}/"):
            await server.close()
    lines = records_of(caplog, "wshub.server")
    assert [(line.event, line.levelno) for line in lines] == [
        (event, logging.INFO) for event in ("started", "listening", "stopped", "closed")
    ]
    assert lines[1].getMessage() == f"listening on 127.0.0.1:{port}"
    assert lines[2].addresses == [f"127.0.0.1:{port}"]
    assert (lines[3].hub, lines[3].connections) == ("prices", 1)


# Limits


async def open_two(url: str) -> None:
    for _ in range(3):
        await status_of(int(url.split(":")[2].split("/")[0]), REQUEST)


async def open_and_keep(url: str) -> None:
    async with connected(url):
        await open_two(url)


async def say_nothing(url: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(raw_peer(url, handshake=False)) for _ in range(3)]
        assert await peers[1].reader.read() == b""


async def send_too_much(url: str) -> None:
    for _ in range(2):
        async with raw_peer(url) as peer:
            peer.send(Frame.text("x" * 200))
            assert await peer.close_code() == 1009


async def send_fragments(url: str) -> None:
    for _ in range(2):
        async with raw_peer(url) as peer:
            peer.send(Frame(Opcode.TEXT, b"a", fin=False))
            for _ in range(3):
                peer.send(Frame(Opcode.CONTINUATION, b"b", fin=False))
            assert await peer.close_code() == 1008


async def send_too_often(url: str) -> None:
    for _ in range(2):
        async with raw_peer(url) as peer:
            for _ in range(20):
                peer.send(Frame.text("x"))
            assert await peer.close_code() == 1008


LIMITS = [
    ({"max_connections": 1}, open_and_keep),
    ({"max_connections_per_address": 1}, open_and_keep),
    ({"max_connection_rate": 1}, open_two),
    ({"max_connection_rate_per_address": 1}, open_two),
    ({"max_pending_handshakes": 1}, say_nothing),
    ({"max_message_size": 100}, send_too_much),
    ({"max_fragments": 1}, send_fragments),
    ({"rates": RateLimits(messages=2, excess="close")}, send_too_often),
]


@pytest.mark.parametrize(("settings", "act"), LIMITS, ids=[next(iter(settings)) for settings, _ in LIMITS])
async def test_a_limit_that_is_reached_is_logged_once_with_its_name(settings, act, caplog) -> None:
    async with serving(ECHO, **settings) as (_, url):
        await act(url)
    (record,) = caplog.records
    (name,) = settings
    assert (record.name, record.levelno) == ("wshub.server", logging.WARNING)
    assert (record.event, record.limit) == ("limit", name)
    assert name in record.getMessage()


async def test_a_full_send_queue_is_logged_once(caplog) -> None:
    opened = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result)
    async with serving(handler, max_send_buffer=1000, slow_consumer="drop_newest") as (hub, url), raw_peer(url):
        connection = await opened
        for _ in range(3):
            dropped = hub.stats().dropped.newest
            while hub.stats().dropped.newest == dropped:
                connection.send(b"x" * 100_000)
            hub._sweep()
    (record,) = caplog.records
    assert record.limit == "max_send_buffer"


# Words


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("1.2.3.4", 5), "1.2.3.4:5"),
        (("1.2.3.4", 0), "1.2.3.4"),
        (("::1", 80), "[::1]:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (None, "-"),
        ("", "-"),
    ],
)
def test_an_address_is_written_as_in_a_url(address: Any, text: str) -> None:
    assert address_text(address) == text


def test_the_access_log_is_a_bool() -> None:
    with pytest.raises(ConfigurationError, match="access_log"):
        HubConfig(access_log="yes")  # type: ignore[arg-type]
