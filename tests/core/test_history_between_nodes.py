"""Rooms with history at several nodes: one order for all, and nothing missed although the engine fails."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from tests.support.broker_node import until
from tests.support.history_nodes import ROOM, Crowd, client_of, gap_as_json, history_node
from wshub import HistoryConfig, Position
from wshub.brokers.envelope import encode_envelope
from wshub.brokers.interface import room_channel
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.errors import BrokerError


async def test_members_at_all_nodes_get_one_order() -> None:
    engine = MemoryEngine()
    async with (
        history_node(MemoryBroker(engine)) as one,
        history_node(MemoryBroker(engine)) as two,
        client_of(one) as first,
        client_of(two) as second,
    ):
        for number in range(50):
            one.hub.broadcast(f"one {number}", room=ROOM)
            two.hub.broadcast(f"two {number}", room=ROOM)
        await until(lambda: len(first.data) == len(second.data) == 100)
        assert first.offsets == second.offsets
        assert first.data == second.data
        assert [offset for _, offset in first.offsets] == list(range(1, 101))


async def test_a_client_that_moves_to_another_node_misses_nothing() -> None:
    engine = MemoryEngine()
    async with (
        history_node(MemoryBroker(engine)) as one,
        history_node(MemoryBroker(engine)) as two,
        client_of(one) as client,
    ):
        await one.hub.publish("1", room=ROOM)
        await until(lambda: client.data == ["1"])
        await client.leave()
        await one.hub.publish("2", room=ROOM)
        await two.hub.publish("3", room=ROOM)
        await client.come_back(two.url)
        await one.hub.publish("4", room=ROOM)
        await until(lambda: len(client.data) == 4)
        assert client.data == ["1", "2", "3", "4"]
        assert not client.gaps


async def test_a_client_that_is_ahead_of_the_node_it_comes_to_gets_nothing_twice() -> None:
    engine = MemoryEngine()
    fast, slow = MemoryBroker(engine), MemoryBroker(engine)
    async with (
        history_node(fast) as one,
        history_node(slow) as two,
        client_of(one) as client,
        client_of(two) as member,
    ):
        # Messages take a while to this node.
        engine.delay(0.05)
        published = await one.hub.publish("1", room=ROOM)
        await client.leave()
        client.position = published.position
        await client.come_back(two.url)
        await one.hub.publish("2", room=ROOM)
        await until(lambda: client.data[-1:] == ["2"])
        assert client.data in (["2"], ["1", "2"])
        assert member.data == ["1", "2"]
        assert not client.gaps


async def test_a_node_that_was_cut_off_catches_up() -> None:
    engine = MemoryEngine()
    broker = MemoryBroker(engine)
    async with history_node(MemoryBroker(engine)) as one, history_node(broker) as two, client_of(two) as member:
        await one.hub.publish("1", room=ROOM)
        engine.cut(broker)
        await one.hub.publish("2", room=ROOM)
        await one.hub.publish("3", room=ROOM)
        await until(lambda: len(member.data) == 3)
        assert member.data == ["1", "2", "3"]
        assert two.hub.stats().history.caught_up >= 1


async def test_what_was_lost_on_the_way_is_read_when_the_next_message_shows_it() -> None:
    engine = MemoryEngine()
    async with (
        history_node(MemoryBroker(engine)) as one,
        history_node(MemoryBroker(engine)) as two,
        client_of(two) as member,
    ):
        for number in range(20):
            one.hub.broadcast(str(number), room=ROOM)
        await asyncio.sleep(0)
        assert engine.drop_under_way() > 0
        await one.hub.publish("20", room=ROOM)
        await until(lambda: len(member.data) == 21)
        assert member.data == [str(number) for number in range(21)]


async def test_more_than_can_be_held_back_arrives_too() -> None:
    engine = MemoryEngine()
    config = HistoryConfig(
        size=5000,
        max_bytes=100_000_000,
        encode=lambda publication: json.dumps([publication.offset, publication.epoch, publication.data]),
    )
    async with (
        history_node(MemoryBroker(engine), config) as one,
        history_node(MemoryBroker(engine), config) as two,
        client_of(two) as member,
    ):
        for number in range(2000):
            one.hub.broadcast(str(number), room=ROOM)
            if number == 100:
                await asyncio.sleep(0)
                engine.drop_under_way()
        await until(lambda: len(member.data) == 2000)
        assert member.data == [str(number) for number in range(2000)]


async def test_members_are_told_of_messages_that_are_not_kept_any_more() -> None:
    engine = MemoryEngine()
    broker = MemoryBroker(engine)
    config = HistoryConfig(size=2, encode_gap=gap_as_json)
    async with (
        history_node(MemoryBroker(engine), config) as one,
        history_node(broker, config) as two,
        client_of(two) as member,
    ):
        engine.deafen(broker)
        for number in range(5):
            await one.hub.publish(json.dumps([number + 1, "-", number]), room=ROOM)
        engine.heal()
        engine.cut(broker)
        await until(lambda: len(member.data) == 2)
        assert member.gaps == ["trimmed"]
        assert member.data == [3, 4]


async def test_members_are_told_that_the_history_was_lost() -> None:
    engine = MemoryEngine()
    async with (
        history_node(MemoryBroker(engine)) as one,
        history_node(MemoryBroker(engine)) as two,
        client_of(two) as member,
    ):
        await one.hub.publish("1", room=ROOM)
        await until(lambda: member.data == ["1"])
        engine.lose_histories()
        await one.hub.publish("2", room=ROOM)
        await until(lambda: len(member.data) == 2)
        assert member.gaps == ["epoch"]
        assert [offset for _, offset in member.offsets] == [1, 1]
        async with client_of(one, Position(1, member.offsets[0][0])) as other:
            assert other.gaps == ["epoch"]


async def test_publishing_raises_when_the_engine_has_ended() -> None:
    engine = MemoryEngine()
    async with history_node(MemoryBroker(engine)) as node, client_of(node) as member:
        engine.stop()
        try:
            await node.hub.publish("1", room=ROOM)
        except BrokerError:
            pass
        else:
            raise AssertionError("nothing was raised")
        # Nobody gets what was not stored, at this node either.
        assert node.hub.broadcast("2", room=ROOM) == 1
        assert node.hub.stats().cluster.rejected == 2
        engine.heal()
        await until(lambda: node.skip() or node.hub.health().ok)
        await node.hub.publish("3", room=ROOM)
        await until(lambda: member.data == ["3"])


async def test_a_room_that_lost_its_last_client_is_not_read_again(caplog: pytest.LogCaptureFixture) -> None:
    engine = MemoryEngine()
    async with history_node(MemoryBroker(engine)) as node:
        kept = node.hub._histories
        assert kept is not None
        history = kept.hold(ROOM)
        await history.wait_live()
        engine.stop()
        history.interrupt()
        await until(lambda: history in kept._failed)
        kept.release(history)
        await until(lambda: not kept.cursors)
        engine.heal()
        await until(lambda: node.skip() or (node.hub.health().ok and not kept._failed and not kept._readers))
        assert [record for record in caplog.records if record.exc_info] == []


async def test_a_message_without_a_position_is_dropped_and_counted(caplog) -> None:
    engine = MemoryEngine()
    async with history_node(MemoryBroker(engine)) as node, client_of(node) as member:
        node.hub._cluster.receive(encode_envelope("room", ROOM, b"plain"))
        await node.hub.publish("kept", room=ROOM)
        await until(lambda: member.data)
        assert member.data == ["kept"]
        assert node.hub.stats().cluster.ignored.without_position == 1
        assert "without its history" in caplog.text


async def test_an_idempotency_key_holds_at_all_nodes() -> None:
    engine = MemoryEngine()
    async with history_node(MemoryBroker(engine)) as one, history_node(MemoryBroker(engine)) as two:
        outcomes = await asyncio.gather(
            *(node.hub.publish("1", room=ROOM, idempotency_key="a") for node in (one, two, one, two))
        )
        assert len({outcome.position for outcome in outcomes}) == 1
        assert [outcome.is_duplicate for outcome in outcomes].count(False) == 1


async def test_whatever_fails_every_client_gets_every_message_once_and_in_order() -> None:
    """Clients come and go at three nodes whose engine fails at random. All that was stored arrives."""
    engine = MemoryEngine()
    chance = random.Random(7)
    brokers = [MemoryBroker(engine, probe_interval=0.05, probe_timeout=0.2) for _ in range(3)]
    config = HistoryConfig(
        size=100_000,
        max_bytes=1 << 30,
        encode=lambda publication: json.dumps([publication.offset, publication.epoch, publication.data]),
    )
    async with (
        history_node(brokers[0], config) as one,
        history_node(brokers[1], config) as two,
        history_node(brokers[2], config) as three,
    ):
        nodes = (one, two, three)
        crowd = Crowd(chance, nodes, 6)
        await crowd.come()
        for step in range(150):
            for _ in range(chance.randrange(20)):
                chance.choice(nodes).hub.broadcast(str(step), room=ROOM)
            fault = chance.randrange(12)
            broker = chance.choice(brokers)
            if fault == 0:
                engine.cut(broker)
            elif fault == 1:
                engine.drop_under_way()
            elif fault == 2:
                engine.forget(broker, room_channel(ROOM))
            elif fault == 3:
                engine.deafen(broker)
            elif fault == 4:
                engine.freeze()
            elif fault == 5:
                engine.stop()
            elif fault < 9:
                engine.heal()
            else:
                await crowd.cut_one_off()
            for node in nodes:
                node.skip()
            await asyncio.sleep(0.005)
        engine.heal()
        last = await crowd.until_all_have_all()
        for client in crowd.clients:
            offsets = [offset for _, offset in client.offsets]
            assert offsets == list(range(offsets[0], last.offset + 1))
            assert not client.gaps
        await crowd.leave()
