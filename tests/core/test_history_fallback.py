"""An engine that comes back with an older state, and gives the offsets that were lost to other messages."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import websockets

from tests.support.broker_node import until
from tests.support.history_nodes import LARGE, ROOM, Client, HistoryNode, client_of, history_node, publish_at_last
from tests.support.redis_engine import RedisEngine
from tests.support.tcp_proxy import TcpProxy, proxy_to
from wshub import HistoryConfig, Hub, Position
from wshub.brokers.envelope import encode_envelope, encode_stored
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.redis import RedisBroker
from wshub.core import histories, history_checks
from wshub.errors import BrokerError


class FallingEngine:
    """An engine, and two nodes: one that is cut off when the engine falls back, and one that comes when it is back."""

    def __init__(self, engine: RedisEngine, proxy: TcpProxy, node: HistoryNode, member: Client) -> None:
        self.engine = engine
        self.proxy = proxy
        self.node = node
        self.member = member

    async def publish(self, texts: str) -> None:
        """Publish messages that arrive at the member."""
        for text in texts:
            await publish_at_last(self.node, text)
        await until(lambda: self.node.skip() or self.member.data[-1:] == [texts[-1]])

    def fall_back(self) -> None:
        """Have the engine come back with what it had when it was told to save. The node cannot reach it meanwhile."""
        self.proxy.refuses = True
        for connection in list(self.proxy.open_connections()):
            connection.reset()
        self.engine.stop(signal.SIGKILL)
        self.engine.start()

    async def publish_elsewhere(self, texts: str) -> None:
        """Publish messages at a node that knows nothing of the room."""
        async with history_node(RedisBroker(self.engine.url)) as other:
            for text in texts:
                await publish_at_last(other, text)

    async def until_told(self) -> None:
        """Let the node reach the engine again. Return when the member has been told."""
        self.proxy.heal()
        await until(lambda: self.node.skip() or bool(self.member.gaps))


@contextlib.asynccontextmanager
async def falling(
    engine: RedisEngine, config: HistoryConfig | None = None, **settings: Any
) -> AsyncIterator[FallingEngine]:
    with proxy_to("127.0.0.1", engine.port) as proxy:
        async with (
            history_node(RedisBroker(f"redis://127.0.0.1:{proxy.port}"), config, **settings) as node,
            client_of(node) as member,
        ):
            yield FallingEngine(engine, proxy, node, member)


@pytest.mark.failure("the engine comes back with an older state")
@pytest.mark.parametrize("others", ["c", "cd", "cde", "cdef"], ids=["fewer", "as many", "one more", "two more"])
async def test_members_are_told_that_messages_were_lost(own_engine: RedisEngine, others: str) -> None:
    async with falling(own_engine) as world:
        await world.publish("12")
        own_engine.command("SAVE")
        await world.publish("34")
        before = world.member.position
        assert before is not None
        world.fall_back()
        await world.publish_elsewhere(others)
        await world.until_told()
        await world.publish("z")
        assert world.member.data == ["1", "2", "3", "4", "z"]
        assert world.member.gaps == ["epoch"]
        found = await world.node.hub.history(ROOM)
        assert [entry.data for entry in found.publications] == ["1", "2", *others, "z"]
        assert len({entry.epoch for entry in found.publications} | {before.epoch}) == 2
        async with client_of(world.node, before) as late:
            assert late.gaps == ["epoch"]


async def test_a_member_that_has_all_of_what_is_left_misses_nothing(own_engine: RedisEngine) -> None:
    async with falling(own_engine) as world:
        await world.publish("12")
        own_engine.command("SAVE")
        world.fall_back()
        await world.publish_elsewhere("34")
        world.proxy.heal()
        await until(lambda: world.node.skip() or len(world.member.data) == 4)
        assert world.member.data == ["1", "2", "3", "4"]
        assert not world.member.gaps


async def test_a_client_of_another_node_is_told_as_soon_as_a_node_with_the_lost_messages_has_read(
    own_engine: RedisEngine,
) -> None:
    async with falling(own_engine) as world, history_node(RedisBroker(own_engine.url)) as other:
        await world.publish("12")
        own_engine.command("SAVE")
        await world.publish("34")
        before = world.member.position
        world.fall_back()
        await world.publish_elsewhere("cdef")
        await until(lambda: other.skip() or other.hub.health().ok)
        async with client_of(other, before) as moved:
            # The position alone looks right: nobody who has read knows better.
            assert moved.data == ["e", "f"]
            await world.until_told()
            await publish_at_last(other, "z")
            await until(lambda: moved.data[-1:] == ["z"])
            assert moved.gaps == ["epoch"]


async def test_a_client_that_is_on_its_way_back_gets_nothing_of_what_took_the_place(own_engine: RedisEngine) -> None:
    async with falling(own_engine, LARGE, max_send_buffer=20_000) as world:
        hub = world.node.hub
        for _ in range(1500):
            published = await hub.publish(f"old {'x' * 10_000}", room=ROOM)
        position = published.position
        assert position is not None
        await until(lambda: len(world.member.data) == 1500)
        own_engine.command("SAVE")
        for number in range(10):
            await hub.publish(f"lost {number}", room=ROOM)
        await until(lambda: len(world.member.data) == 1510)
        sent = hub.stats().messages_accepted
        # It reads nothing at first.
        async with websockets.connect(world.node.url, compression=None, max_size=None, max_queue=1) as client:
            await client.send(json.dumps([0, position.epoch]))
            await until(lambda: hub.stats().messages_accepted > sent + 20)
            world.fall_back()
            await world.publish_elsewhere("abcdefghijkl")
            await world.until_told()
            got = []
            # The history cannot be read while the engine is away: that may end the handler, and the connection.
            with contextlib.suppress(websockets.ConnectionClosed):
                while not got or got[-1][0] != "back":
                    got.append(json.loads(await client.recv()))
        if got[-1][0] == "back":
            _, count, gap, _, epoch = got.pop()
            assert (len(got), gap) == (count, "epoch")
            assert epoch != position.epoch
        assert [message[:2] for message in got] == [[offset, position.epoch] for offset in range(1, len(got) + 1)]
        assert {data.split()[0] for _, _, data in got} == {"old"}
        assert len(got) < 1500
        async with client_of(world.node, Position(len(got), position.epoch)) as late:
            assert late.gaps == ["epoch"]
            assert not late.data


async def test_a_node_remembers_how_far_a_room_without_members_had_got(own_engine: RedisEngine) -> None:
    async with falling(own_engine) as world:
        await world.publish("12")
        own_engine.command("SAVE")
        await world.publish("34")
        await world.member.leave()
        await until(lambda: not world.node.hub._histories.cursors)  # type: ignore[union-attr]
        world.fall_back()
        await world.publish_elsewhere("cdef")
        world.proxy.heal()
        await until(lambda: world.node.skip() or world.node.hub.health().ok)
        await world.member.come_back(world.node.url)
        assert world.member.gaps == ["epoch"]
        await publish_at_last(world.node, "z")
        await until(lambda: world.member.data[-1:] == ["z"])
        assert world.member.data == ["1", "2", "3", "4", "z"]


async def test_only_so_many_rooms_without_members_are_remembered(
    redis_engine: RedisEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories, "FORMER_ROOMS", 3)
    async with Hub(broker=RedisBroker(redis_engine.url, prefix=secrets.token_hex(4))) as hub:
        hub.configure_room("room:*", history=HistoryConfig())
        await hub.broker_started()
        kept = hub._histories
        assert kept is not None
        for number in [0, 1, 2, 3, 4, 3]:
            history = kept.hold(f"room:{number}")
            await history.wait_live()
            kept.release(history)
            await until(lambda: not kept.cursors)
        assert list(kept._former) == ["room:2", "room:4", "room:3"]


async def test_lost_messages_are_found_although_no_connection_was_lost(
    own_engine: RedisEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_checks, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(history_checks, "DOUBT_SECONDS", 0.05)
    async with falling(own_engine) as world:
        await world.publish("12")
        key = next(key for key in own_engine.command("KEYS", "*") if ":position:" in key)
        own_engine.command("HSET", key, "o", 1)
        own_engine.command("DEL", key.replace(":position:", ":history:"))
        # It gets the offset 2 once more, which the member has got.
        await publish_at_last(world.node, "b")
        await until(lambda: world.node.skip() or bool(world.member.gaps))
        assert world.member.data == ["1", "2"]
        assert world.member.gaps == ["epoch"]


async def test_an_engine_without_its_replica_refuses_messages_if_it_is_told_to(own_engine: RedisEngine) -> None:
    async with history_node(RedisBroker(own_engine.url)) as node, client_of(node) as member:
        await publish_at_last(node, "1")
        own_engine.command("CONFIG", "SET", "min-replicas-to-write", 1)
        with pytest.raises(BrokerError, match="NOREPLICAS"):
            await node.hub.publish("2", room=ROOM)
        own_engine.command("CONFIG", "SET", "min-replicas-to-write", 0)
        await publish_at_last(node, "3")
        await until(lambda: member.data[-1:] == ["3"])
        assert member.data == ["1", "3"]


async def test_a_held_back_message_of_an_epoch_that_has_ended_is_dropped() -> None:
    async with history_node(MemoryBroker(MemoryEngine())) as node, client_of(node) as member:
        await node.hub.publish("1", room=ROOM)
        history = node.hub._histories.cursors[ROOM]  # type: ignore[union-attr]
        history.interrupt()
        history.take(encode_stored(encode_envelope("room", ROOM, b"old"), offset=9, previous=8, epoch="endedone"))
        await history.wait_live()
        reads = node.hub.stats().history.reads
        await node.hub.publish("2", room=ROOM)
        await until(lambda: len(member.data) == 2)
        assert member.data == ["1", "2"]
        assert not member.gaps
        assert node.hub.stats().history.reads == reads
