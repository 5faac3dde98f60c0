"""The tables in ``docs/topics``: their names, defaults and examples are those of the program."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import subprocess
import sys
from contextvars import ContextVar
from typing import Any

import pytest

import wshub
from tests.support.pages import DOCS, codes, program, rows
from tests.support.raw_peers import raw_peer
from tests.support.serving_hub import connected, serving
from wshub import (
    CloseCode,
    CompressionConfig,
    Connection,
    EventHandler,
    Frame,
    HistoryConfig,
    Hub,
    HubConfig,
    InvalidMessageError,
    Message,
    PresenceConfig,
    RateLimits,
)
from wshub.core.handler_checks import EVENTS
from wshub.protocol.close_code import encode_close_payload

PAGES = sorted(path.relative_to(DOCS).as_posix() for path in (DOCS / "topics").glob("*.md"))


# The life of a connection


def test_the_table_of_events_has_every_event() -> None:
    named = [name for cells in rows("topics/lifecycle.md", "Events") for name in codes(cells[0])]
    assert sorted(named) == sorted(EVENTS)


async def test_a_connection_has_every_attribute_of_the_table() -> None:
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (_, url), connected(url):
        connection = await opened
        for cells in rows("topics/lifecycle.md", "What a connection knows"):
            for name in codes(cells[0]):
                getattr(connection, name.removesuffix("()"))


def test_the_client_that_reconnects_stops_at_the_codes_for_which_the_table_says_so() -> None:
    (final,) = re.findall(r"const FINAL = \[(.*)\];", program("reconnecting.md", "page.html"))
    table = {code: advice for code, _, advice in rows("topics/lifecycle.md", "Close codes")}
    assert [code for code, advice in table.items() if advice.startswith("no")] == final.split(", ")


def test_the_codes_of_the_page_exist_and_those_that_can_be_sent_can() -> None:
    listed = [cells[0] for cells in rows("topics/lifecycle.md", "Close codes")]
    assert all(int(code) in set(CloseCode) for code in listed if "\N{EN DASH}" not in code)
    sent = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    for code in range(6000):
        if code in sent:
            encode_close_payload(code, "")
        else:
            with pytest.raises(InvalidMessageError):
                encode_close_payload(code, "")


async def test_the_handlers_of_a_connection_share_a_context() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")

    async def on_message(connection: Connection, message: Message) -> None:
        connection.send(variable.get())

    async def on_open(connection: Connection) -> None:
        variable.set(f"set by {connection.id}")

    async with serving(EventHandler(on_open=on_open, on_message=on_message)) as (_, url):
        for number in (1, 2):
            async with connected(url) as client:
                await client.send("hello")
                assert await client.recv() == f"set by {number}"


# Rooms


async def test_the_last_tab_of_a_user_sees_that_none_is_left() -> None:
    ended: asyncio.Queue[list[str]] = asyncio.Queue()

    async def live(connection: Connection) -> None:
        connection.user = "ann"
        connection.join("lobby")
        try:
            async for message in connection:
                connection.send(message)
        finally:
            found = [*hub.user_connections("ann"), *hub.room_members("lobby")]
            ended.put_nowait([*(str(one.id) for one in found), *connection.rooms, str(connection.user)])

    async with serving(live) as (hub, url), connected(url) as first:
        async with connected(url) as second:
            for client in (first, second):
                await client.send("hello")
                await client.recv()
        assert await ended.get() == ["1", "1", "lobby", "ann"]
        await first.close()
        assert await ended.get() == ["lobby", "ann"]


# Slow readers, compression and security: settings and defaults


async def test_a_message_may_be_longer_than_the_queue() -> None:
    long = "x" * (HubConfig().max_send_buffer * 8)
    handler = EventHandler(on_open=lambda connection: connection.send(long))
    async with serving(handler) as (_, url), connected(url, max_size=None) as client:
        assert await client.recv() == long


def test_the_limits_of_the_table_have_these_defaults() -> None:
    config = HubConfig()
    table = rows("topics/security.md", "What is limited from the start")
    limits = {cells[2]: cells[1] for cells in table if len(cells) > 2}
    expected = {
        "`max_connections`": (f"{config.max_connections:,}",),
        "`max_pending_handshakes`, `handshake_timeout_ms`": (
            f"{config.max_pending_handshakes:,}",
            f"{config.handshake_timeout_ms // 1000} seconds",
        ),
        "`max_message_size`": (f"{config.max_message_size // 1024} KiB",),
        "`max_fragments`": (f"{config.max_fragments:,}",),
        "`max_send_buffer`, `slow_consumer`": (f"{config.max_send_buffer // 1024} KiB",),
        "`send_timeout_ms`": (f"{config.send_timeout_ms // 1000} seconds",),
        "`ping_interval_ms`, `pong_timeout_ms`": (
            f"{config.ping_interval_ms // 1000} seconds",
            f"{config.pong_timeout_ms // 1000} to",
        ),
        "`close_timeout_ms`": (f"{config.close_timeout_ms // 1000} seconds",),
        "`RateLimits(control_frames=...)`": (f"{config.rates.control_frames} per second",),
    }
    assert set(limits) - {""} == set(expected)
    for setting, values in expected.items():
        assert all(value in limits[setting] for value in values), setting


def test_the_rates_of_the_table_have_these_defaults() -> None:
    found = {codes(cells[0])[0]: cells[2] for cells in rows("topics/slow-readers.md", "Clients that send too much")}
    rates = {name: getattr(RateLimits(), name) for name in found}
    assert set(found) == {"messages", "bytes", "control_frames", "handler_ms"}
    assert {name: str(rate) if rate else "no limit" for name, rate in rates.items()} == found


def test_the_settings_that_a_page_names_exist() -> None:
    fields = {
        field.name
        for kind in (HubConfig, RateLimits, CompressionConfig, HistoryConfig, PresenceConfig)
        for field in dataclasses.fields(kind)
    }
    for page in PAGES:
        for name in re.findall(r"\b(\w+_(?:ms|size|buffer|origins?|proxies|takeover))\b", (DOCS / page).read_text()):
            assert name in fields | {"latency_ms", "duration_ms", "room_size"}, f"{page}: {name}"


# Errors


def test_every_exception_is_in_the_table() -> None:
    text = (DOCS / "topics/errors.md").read_text().split("\n## ")[0]
    for name in wshub.errors.__all__:
        assert f"`{name}`" in text, name


async def test_the_examples_of_errors_raise_what_the_page_says() -> None:
    opened: asyncio.Queue[Connection] = asyncio.Queue()
    handler = EventHandler(on_open=opened.put_nowait)
    async with serving(handler) as (hub, url), connected(url):
        connection = await opened.get()
        async with connected(url):
            closed = await opened.get()
        async with raw_peer(url) as peer:
            lost = await opened.get()
            peer.reset()
        await asyncio.gather(closed.wait_closed(), lost.wait_closed())
        names: dict[str, Any] = {
            **{kind.__name__: kind for kind in (EventHandler, Frame, Hub, HubConfig, Message)},
            "closed": closed,
            "connection": connection,
            "handler": handler,
            "hub": hub,
            "lost": lost,
        }
        for call, raised in rows("topics/errors.md", "Examples"):
            with pytest.raises(Exception) as error:  # noqa: PT011
                eval(codes(call)[0], names)
            assert type(error.value).__name__ == codes(raised)[0], call


# Threads


def test_uvloop_runs_a_program() -> None:
    assert "uvloop.run(main())" in (DOCS / "topics/threads.md").read_text()
    source = """
import uvloop
from wshub import Hub


async def live(connection):
    pass


async def main():
    async with Hub().serve("127.0.0.1", 0, live) as server:
        print(server.port > 0)


uvloop.run(main())
"""
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "True\n"


def test_nothing_declares_support_for_free_threaded_builds() -> None:
    """Python then switches the GIL on. If a module declares it, the page has to change."""
    assert "freethreading_compatible" not in (DOCS.parent / "setup.py").read_text()
    assert "does not support free-threaded builds" in (DOCS / "topics/threads.md").read_text()
