"""permessage-deflate with clients of other authors: each receives byte for byte what another one sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Iterable
from typing import Any

import pytest

from tests.support.foreign_clients import CLIENTS, FRAGMENTING, PLAIN_CLIENTS, Opening, why_missing
from tests.support.serving_hub import serving
from wshub import CompressionConfig, Connection, EventHandler, Hub

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


def opening_of(name: str) -> Opening:
    """Return a function that opens a connection of that client; skip the test if it is not installed."""
    if reason := why_missing(name):
        pytest.skip(reason)
    return CLIENTS[name]


def samples(threshold: int) -> list[str | bytes]:
    """Return messages around every size where behaviour changes: one letter, rows of text, and incompressible ones."""
    source = random.Random(15)
    rows = json.dumps([{"id": i, "name": f"row {i}"} for i in range(3000)])
    found: list[str | bytes] = []
    for size in (0, 1, threshold - 1, threshold, threshold + 1, 1024, 65_535, 65_536):
        found += ["a" * size, rows[:size], "\u00e9" * (size // 2) + "a" * (size % 2), bytes(size)]
        found += [source.randbytes(size), "".join(source.choices("abcdef \u00e9\u20ac\U0001f600", k=size // 4))]
    # Send some again; they may refer to earlier messages.
    return found + source.sample(found, 12)


def echo(connection: Connection, message: Any) -> None:
    connection.send(message)


@pytest.mark.one_loop
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", CLIENTS)
async def test_every_client_gets_back_what_it_sends(name, config) -> None:
    opening = opening_of(name)
    messages = samples(CONFIGS[config].threshold)

    async with (
        serving(EventHandler(on_message=echo), compression=CONFIGS[config]) as (hub, url),
        opening(url) as client,
    ):
        # Wait for the echo of each message first, then send all without waiting.
        for message in messages[:12]:
            await client.send(message)
            assert await client.receive() == message

        async def send() -> None:
            for message in messages:
                await client.send(message)

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            for message in messages:
                assert await client.receive() == message

        before = hub.stats()
        await client.send("a" * 60_000)
        assert await client.receive() == "a" * 60_000
        for counter in ("bytes_received", "bytes_sent"):
            assert getattr(hub.stats(), counter) - getattr(before, counter) < 1000, "the message was not compressed"


@pytest.mark.one_loop
@pytest.mark.parametrize("config", ["defaults", "takeover"])
@pytest.mark.parametrize("name", FRAGMENTING)
async def test_a_compressed_message_may_come_in_fragments_with_pings_between(name, config) -> None:
    opening = opening_of(name)
    source = random.Random(7)

    async with (
        serving(EventHandler(on_message=echo), compression=CONFIGS[config]) as (_, url),
        opening(url) as client,
    ):
        for message in source.sample(samples(CONFIGS[config].threshold), 20):
            data = message.encode() if isinstance(message, str) else message
            # Some fragments are empty; some end within a character.
            cuts = sorted(source.choices(range(len(data) + 1), k=source.randrange(6)))
            fragments = [data[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
            await client.send_fragments(fragments, binary=isinstance(message, bytes))
            assert await client.receive() == message


def ticks() -> Iterable[str]:
    source = random.Random(4)
    number = 0
    while True:
        number += 1
        price = round(source.random() * 100, 2)
        yield json.dumps({"type": "tick", "symbol": source.choice("ABC"), "bid": price, "seq": number})


class Participant:
    """A client, the hub's connection to it, and the messages that it has yet to receive."""

    def __init__(self, name: str, opening: Opening) -> None:
        self.name = name
        self.opening = opening
        self.expected: list[str | bytes] = []

    async def connect(self, url: str, opened: asyncio.Queue[Connection]) -> None:
        self.stack = contextlib.AsyncExitStack()
        self.client = await self.stack.enter_async_context(self.opening(url))
        self.connection = await opened.get()

    async def disconnect(self) -> None:
        await self.receive_all()
        await self.stack.aclose()

    async def receive_all(self) -> None:
        for message in self.expected:
            assert await self.client.receive() == message, self.name
        self.expected.clear()


class Party:
    """A hub, all its participants, and the messages that each of them must receive."""

    def __init__(self, hub: Hub, url: str, opened: asyncio.Queue[Connection], source: random.Random) -> None:
        self.hub = hub
        self.url = url
        self.opened = opened
        self.source = source
        self.ticks = iter(ticks())
        self.participants: list[Participant] = []
        self.steps = {self.tick: 8, self.tell: 2, self.tell_the_side_room: 1, self.come_and_go: 1, self.reconnect: 0.1}

    async def welcome(self, participant: Participant) -> None:
        await participant.connect(self.url, self.opened)
        self.participants.append(participant)
        participant.connection.join("all")
        if len(self.participants) % 3 == 0:
            participant.connection.join("side")

    async def some_steps(self, count: int) -> None:
        for step in self.source.choices(list(self.steps), list(self.steps.values()), k=count):
            await step()
            if self.source.random() < 0.3:
                # Let the queue empty here; otherwise several messages are written at once.
                await asyncio.sleep(0)

    def one(self) -> Participant:
        return self.source.choice(self.participants)

    def broadcast(self, room: str, message: str, exclude: Participant | None = None) -> None:
        receivers = [
            one for one in self.participants if one is not exclude and one.connection in self.hub.room_members(room)
        ]
        excluded = exclude.connection if exclude is not None else None
        assert self.hub.broadcast(message, room=room, exclude=excluded) == len(receivers)
        for receiver in receivers:
            receiver.expected.append(message)

    async def tick(self) -> None:
        self.broadcast("all", next(self.ticks), self.one() if self.source.random() < 0.1 else None)

    async def tell(self) -> None:
        chosen = self.one()
        message = f"for {chosen.name} alone " * self.source.choice([1, 3, 900])
        message = self.source.choice([message, message.encode()])
        chosen.connection.send(message, compress=self.source.choice([None, None, True, False]))
        chosen.expected.append(message)

    async def tell_the_side_room(self) -> None:
        self.broadcast("side", json.dumps([next(self.ticks) for _ in range(self.source.choice([1, 5]))]))

    async def come_and_go(self) -> None:
        chosen = self.one()
        if chosen.connection in self.hub.room_members("all"):
            chosen.connection.leave("all")
        else:
            chosen.connection.join("all")

    async def reconnect(self) -> None:
        chosen = self.one()
        self.participants.remove(chosen)
        await chosen.disconnect()
        await self.welcome(chosen)


@pytest.mark.one_loop
@pytest.mark.parametrize(("compression", "side"), [("message", "shared"), ("shared", "message"), ("shared", "shared")])
async def test_clients_of_all_kinds_share_a_room(compression, side) -> None:
    """Clients come one by one and leave again. In between they receive other messages, privately or in other rooms."""
    openings = {name: opening for name, opening in (CLIENTS | PLAIN_CLIENTS).items() if not why_missing(name)}
    source = random.Random(compression + side)

    opened: asyncio.Queue[Connection] = asyncio.Queue()
    async with serving(EventHandler(on_open=opened.put_nowait), compression=CompressionConfig(threshold=1)) as (
        hub,
        url,
    ):
        hub.configure_room("all", compression=compression, restart_interval=16)
        hub.configure_room("side", compression=side, restart_interval=5)
        party = Party(hub, url, opened, source)
        try:
            for name in source.sample(list(openings), len(openings)):
                await party.welcome(Participant(name, openings[name]))
                await party.some_steps(15)
            before = hub.stats().compression
            for _ in range(64):
                await party.tick()
            after = hub.stats().compression
            # The ratio shows that the clients' windows were in use.
            ratio = (after.bytes_out - before.bytes_out) / (after.bytes_in - before.bytes_in)
            assert ratio < 0.7 if compression == "shared" else ratio > 0.7
            for participant in party.participants:
                await participant.receive_all()
        finally:
            for participant in party.participants:
                await participant.stack.aclose()
