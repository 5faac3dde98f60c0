"""permessage-deflate with clients that others have written: what one sends another receives, octet for octet."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import pytest

from tests.hub.conftest import serving
from tests.hub.foreign_clients import CLIENTS
from wshub import CompressionConfig, EventHandler, Hub

CONFIGS = {
    "defaults": CompressionConfig(),
    "takeover": CompressionConfig(client_context_takeover=True, server_context_takeover=True, threshold=1),
    "small windows": CompressionConfig(
        client_context_takeover=True,
        server_context_takeover=True,
        server_max_window_bits=9,
        client_max_window_bits=9,
        memory_level=1,
        level=9,
    ),
}


def samples() -> list[str | bytes]:
    """Messages of all sizes around which something changes, some like those before, some that do not compress."""
    source = random.Random(15)
    found: list[str | bytes] = []
    for size in (0, 1, 125, 126, 255, 256, 1024, 20_000, 65_000):
        found.append("".join(source.choices("abcdefgh \u00e9\U0001f600", k=size // 2)))
        found.append(source.randbytes(size))
        found.append(json.dumps([{"id": i, "name": f"row {i}"} for i in range(size // 30)]))
    return found + found[-3:] + found[:6]


def echo(connection, message) -> None:
    connection.send(message)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", CLIENTS)
def test_every_client_gets_back_what_it_sends(run, name, config) -> None:
    async def scenario() -> None:
        async with (
            serving(EventHandler(on_message=echo), compression=CONFIGS[config], max_message_size=1 << 20) as (hub, url),
            CLIENTS[name](url) as client,
        ):
            for message in samples():
                await client.send(message)
                assert await client.receive() == message
            assert hub.stats()["compression"]["compressions"] > 5

    run(scenario())


async def members(hub: Hub, count: int) -> None:
    while hub.room_size("all") < count:
        await asyncio.sleep(0.001)


def ticks(count: int) -> list[str]:
    source = random.Random(4)
    return [
        json.dumps({"type": "tick", "symbol": source.choice("ABC"), "bid": round(source.random() * 100, 2), "seq": i})
        for i in range(count)
    ]


@pytest.mark.parametrize("compression", ["message", "shared"])
def test_clients_of_all_kinds_share_a_room(run, compression) -> None:
    """They come one after the other, some are told something in between, one leaves and comes back."""

    async def scenario() -> None:
        handler = EventHandler(on_open=lambda connection: connection.join("all"))
        config = CompressionConfig(threshold=1)
        async with serving(handler, compression=config) as (hub, url), contextlib.AsyncExitStack() as stack:
            hub.configure_room("all", compression=compression, restart_interval=16)
            source = random.Random(compression)
            clients: dict = {}
            expected: dict[str, list[str]] = {}
            pending = ticks(len(CLIENTS) * 30)
            for number, (name, opening) in enumerate(CLIENTS.items()):
                clients[name] = await stack.enter_async_context(opening(url))
                expected[name] = []
                await members(hub, number + 1)
                inside = dict(zip(clients, sorted(hub.room_members("all"), key=lambda one: one.id), strict=True))
                away = None
                for _ in range(30):
                    if away is not None and source.random() < 0.3:
                        inside[away].join("all")
                        away = None
                    if source.random() < 0.2:
                        chosen = source.choice(list(clients))
                        private = f"for {chosen} alone " * source.choice([1, 3, 900])
                        inside[chosen].send(private)
                        expected[chosen].append(private)
                    if away is None and source.random() < 0.1:
                        away = source.choice(list(clients))
                        inside[away].leave("all")
                    left_out = source.choice(list(clients)) if source.random() < 0.1 else None
                    tick = pending.pop()
                    hub.broadcast(tick, room="all", exclude=inside[left_out] if left_out is not None else None)
                    for receiver in set(clients) - {left_out, away}:
                        expected[receiver].append(tick)
                if away is not None:
                    inside[away].join("all")
            for name, client in clients.items():
                for message in expected[name]:
                    assert await client.receive() == message, name

    run(scenario())
