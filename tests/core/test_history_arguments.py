"""Positions and limits come from clients, and settings change while clients recover."""

from __future__ import annotations

import asyncio
import secrets
import threading
from typing import Any

import pytest
import websockets

from tests.support.broker_node import until
from tests.support.redis_engine import RedisEngine
from tests.support.serving_hub import connected, serving
from wshub import (
    ConfigurationError,
    Connection,
    ConnectionClosed,
    HistoryConfig,
    Hub,
    InvalidMessageError,
    MisuseError,
    Position,
)
from wshub.brokers.history_interface import HistoryQuery
from wshub.brokers.interface import Broker
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.redis import RedisBroker

BIG = HistoryConfig(size=2000, max_bytes=1 << 30)


async def test_an_idempotency_key_has_a_bounded_length() -> None:
    async with Hub() as hub:
        hub.configure_room("room", history=HistoryConfig())
        assert not (await hub.publish("a", room="room", idempotency_key="k" * 512)).is_duplicate
        with pytest.raises(InvalidMessageError, match="at most 512 characters, not 513"):
            await hub.publish("a", room="room", idempotency_key="k" * 513)
        assert (await hub.publish("a", room="room", idempotency_key="k" * 512)).is_duplicate


@pytest.mark.parametrize("name", ["encode", "encode_gap"])
def test_what_makes_messages_is_a_function_that_does_not_wait(name: str) -> None:
    async def encode(publication: Any) -> str:
        return "made"

    with pytest.raises(ConfigurationError, match=f"{name} is called for each message"):
        HistoryConfig(**{name: encode})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=f"{name} must be a function or None, not 'made'"):
        HistoryConfig(**{name: "made"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": -1},
        {"limit": 1_000_001},
        {"limit": True},
        {"max_bytes": 0},
        {"max_bytes": "1"},
        {"reverse": 1},
        {"is_own": None},
    ],
)
def test_a_query_with_a_wrong_value_cannot_be_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(wrong))} must be"):
        HistoryQuery(**wrong)


async def hold(connection: Connection) -> None:
    async for _ in connection:
        pass


async def read_all(client: websockets.ClientConnection) -> None:
    async for _ in client:
        pass


async def check_positions(broker: Broker | None) -> None:
    async with Hub(broker=broker) as hub:
        await hub.broker_started()
        hub.configure_room("room", history=HistoryConfig())
        last = Position(0, "")
        for number in range(3):
            last = (await hub.publish(str(number), room="room")).position or last
        first = Position(0, last.epoch)
        found = await hub.history("room", since=first, reverse=True)
        assert (found.publications, found.gap) == ((), "")
        assert len((await hub.history("room", since=first)).publications) == 3
        for offset in (-1, 1 << 63, 1 << 200):
            for reverse in (False, True):
                found = await hub.history("room", since=Position(offset, last.epoch), reverse=reverse)
                assert found.gap == "epoch"
        wrong: list[Any] = ["7", 7.0, True, None, []]
        for given in wrong:
            with pytest.raises(TypeError, match="since must have an int as its offset"):
                await hub.history("room", since=Position(given, last.epoch))
        for epoch in (5, None):
            with pytest.raises(TypeError, match="a str as its epoch"):
                await hub.history("room", since=Position(1, epoch))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="since must be a Position"):
            await hub.history("room", since=(1, last.epoch))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="the name of a room must be a str"):
            await hub.history(5)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="reverse must be"):
            await hub.history("room", reverse="no")  # type: ignore[arg-type]
        assert (await hub.history("room", limit=0)).position == last


async def test_odd_positions_have_one_outcome_with_and_without_a_broker() -> None:
    await check_positions(None)
    await check_positions(MemoryBroker(MemoryEngine()))


async def test_odd_positions_have_the_same_outcome_at_an_engine(redis_engine: RedisEngine) -> None:
    await check_positions(RedisBroker(redis_engine.url, prefix=secrets.token_hex(4)))


async def test_recover_checks_its_arguments_its_loop_and_the_connection() -> None:
    async with serving(hold) as (hub, url):
        hub.configure_room("room", history=HistoryConfig())
        position = (await hub.publish("1", room="room")).position
        assert position is not None
        async with connected(url):
            await until(lambda: len(hub.connections) == 1)
            (connection,) = hub.connections
            with pytest.raises(TypeError, match="position must have an int"):
                await connection.recover("room", Position("1", position.epoch))  # type: ignore[arg-type]
            for limit in (-1, "1", None, 1.5):
                with pytest.raises(ConfigurationError, match="limit must be"):
                    await connection.recover("room", position, limit=limit)  # type: ignore[arg-type]
            recovery = await connection.recover("room", Position(-1, position.epoch))
            assert recovery.gap == "epoch"
            assert connection.in_room("room")

            errors: list[BaseException] = []

            async def recover_elsewhere() -> None:
                with pytest.raises(MisuseError, match="another event loop") as caught:
                    await connection.recover("room", None)
                errors.append(caught.value)

            thread = threading.Thread(target=lambda: asyncio.run(recover_elsewhere()))
            thread.start()
            await until(lambda: not thread.is_alive())
            assert errors
            assert connection.in_room("room")
        await connection.wait_closed()
        with pytest.raises(ConnectionClosed):
            await connection.recover("room", None)


@pytest.mark.parametrize("has_member", [True, False])
@pytest.mark.parametrize("begins_anew", [True, False])
async def test_a_room_that_loses_its_history_ends_the_recoveries(has_member: bool, begins_anew: bool) -> None:
    async with serving(hold, max_send_buffer=100_000) as (hub, url):
        hub.configure_room("room", history=BIG)
        first = (await hub.publish("0", room="room")).position
        for _ in range(1000):
            # Together they are more than the buffers of the kernel hold.
            await hub.publish("x" * 50_000, room="room")
        async with connected(url, max_size=None) as client, connected(url):
            await until(lambda: len(hub.connections) == 2)
            connection, other = hub.connections
            if has_member:
                other.join("room")
            recovering = asyncio.create_task(connection.recover("room", first))
            await until(lambda: hub.stats().messages_accepted > 20)
            hub.configure_room("room")
            if begins_anew:
                hub.configure_room("room", history=BIG)
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(read_all(client))
                with pytest.raises(MisuseError, match="room 'room'"):
                    await recovering
                reading.cancel()
            assert not connection.in_room("room")
            client.transport.abort()
            await until(lambda: hub.stats().history.rooms == int(has_member and begins_anew))  # type: ignore[union-attr]
