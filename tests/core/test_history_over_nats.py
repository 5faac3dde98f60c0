"""Rooms with history whose messages JetStream keeps, at several nodes and while it fails."""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
from collections.abc import Iterator

import pytest

from tests.support.broker_node import until
from tests.support.history_nodes import LARGE, ROOM, Crowd, client_of, history_node
from tests.support.nats_engine import PROGRAMS, NatsEngine, running_jetstream
from tests.support.tcp_proxy import proxy_to
from wshub import HistoryConfig
from wshub.brokers.nats import NatsBroker

# Each server has one of the loops: all four pairs take twice as long.
pytestmark = pytest.mark.parametrize(("engine", "run"), [("2.9", "asyncio"), ("current", "uvloop")], indirect=True)


@pytest.fixture(scope="module", params=PROGRAMS)
def engine(request: pytest.FixtureRequest) -> Iterator[NatsEngine]:
    with running_jetstream(request.param) as engine:
        yield engine


@pytest.fixture
def own_engine(engine: NatsEngine) -> Iterator[NatsEngine]:
    """A server that the test may stop, of the same kind as the shared one."""
    with running_jetstream(engine.kind) as own:
        yield own


async def test_members_at_all_nodes_get_one_order(engine: NatsEngine) -> None:
    prefix = secrets.token_hex(4)
    async with (
        history_node(NatsBroker(engine.url, prefix=prefix)) as one,
        history_node(NatsBroker(engine.url, prefix=prefix)) as two,
        client_of(one) as first,
        client_of(two) as second,
    ):
        for number in range(500):
            one.hub.broadcast(f"one {number}", room=ROOM)
            two.hub.broadcast(f"two {number}", room=ROOM)
            if number % 10 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(first.data) == len(second.data) == 1000)
        assert first.offsets == second.offsets
        assert first.data == second.data


async def test_a_client_that_joined_an_empty_room_gets_all_that_follows(engine: NatsEngine) -> None:
    prefix = secrets.token_hex(4)
    async with (
        history_node(NatsBroker(engine.url, prefix=prefix)) as one,
        history_node(NatsBroker(engine.url, prefix=prefix)) as two,
    ):
        for node in (one, two):
            node.hub.configure_room("other", history=one.hub._room_config(ROOM).history)  # type: ignore[union-attr]
        for number in range(5):
            await one.hub.publish(str(number), room="other")
        async with client_of(one) as client:
            position = client.position
        for number in range(5):
            await one.hub.publish(str(number), room="other")
        # Nothing was missed, and the room is still empty.
        async with client_of(two, position) as client:
            assert (client.data, client.gaps) == ([], [])
            position = client.position
        for number in range(3):
            await one.hub.publish(f"new {number}", room=ROOM)
        expected = ["new 0", "new 1", "new 2"]
        for node in (one, two):
            async with client_of(node, position) as client:
                assert (client.data, client.gaps) == (expected, [])
                expected.append(f"for {node.url}")
                await one.hub.publish(expected[-1], room=ROOM)
                await until(lambda client=client: client.data == expected)
                assert not client.gaps


async def test_what_was_trimmed_is_a_gap_and_what_was_not_is_none(engine: NatsEngine) -> None:
    prefix = secrets.token_hex(4)
    config = HistoryConfig(size=5, encode=LARGE.encode, encode_gap=LARGE.encode_gap)
    async with history_node(NatsBroker(engine.url, prefix=prefix), config) as node:
        positions = []
        for number in range(12):
            # A second room has every other offset.
            await node.hub.publish("x", room=ROOM)
            published = await node.hub.publish(str(number), room=ROOM)
            assert published.position is not None
            positions.append(published.position)
        async with client_of(node, positions[9]) as client:
            assert (client.data, client.gaps) == (["x", "10", "x", "11"], [])
        async with client_of(node, positions[5]) as client:
            assert (client.data, client.gaps) == ([], ["trimmed"])


async def test_a_message_of_an_epoch_that_has_ended_stops_nothing(own_engine: NatsEngine) -> None:
    async with history_node(NatsBroker(own_engine.url)) as node, client_of(node) as member:
        await node.hub.publish("1", room=ROOM)
        await until(lambda: member.data == ["1"])
        session = node.hub.broker._session  # type: ignore[union-attr]
        subject = session._names.subject("room:" + ROOM)
        former = {"Nats-Stream": "wshub-0-aaaaaaaa", "Nats-Sequence": "7", "Nats-Last-Sequence": "6"}
        session._kept.connection.publish(subject, b"late", "", former)
        for text in "23":
            await node.hub.publish(text, room=ROOM)
        await until(lambda: member.data == ["1", "2", "3"])
        assert not member.gaps
        reads = node.hub.stats().history.reads  # type: ignore[union-attr]
        await asyncio.sleep(0.1)
        assert node.hub.stats().history.reads == reads  # type: ignore[union-attr]


async def test_whatever_fails_every_client_gets_every_message_once_and_in_order(own_engine: NatsEngine) -> None:
    """Clients come and go at two nodes, while connections are reset, held and lost, and the server is started anew."""
    chance = random.Random(11)
    with proxy_to("127.0.0.1", own_engine.port) as proxy:
        brokers = [NatsBroker(own_engine.url), NatsBroker(f"nats://127.0.0.1:{proxy.port}")]
        async with history_node(brokers[0], LARGE) as one, history_node(brokers[1], LARGE) as two:
            nodes = (one, two)
            crowd = Crowd(chance, nodes, 4)
            await crowd.come()
            for step in range(60):
                for _ in range(chance.randrange(40)):
                    chance.choice(nodes).hub.broadcast(str(step), room=ROOM)
                fault = chance.randrange(6)
                if fault == 0 and step % 3 == 0:
                    own_engine.stop(signal.SIGKILL)
                    own_engine.start()
                elif fault == 1:
                    proxy.heal()
                    for connection in list(proxy.open_connections()):
                        connection.end()
                elif fault == 2:
                    proxy.to_client.clear()
                elif fault == 3:
                    proxy.heal()
                else:
                    await crowd.cut_one_off()
                for node in nodes:
                    node.skip()
                await asyncio.sleep(0.02)
            proxy.heal()
            last = await crowd.until_all_have_all()
            kept = await one.hub.history(ROOM, limit=100_000)
            offsets = [publication.offset for publication in kept.publications]
            assert offsets[-1] == last.offset
            for client in crowd.clients:
                got = [offset for _, offset in client.offsets]
                assert got == offsets[len(offsets) - len(got) :]
                assert not client.gaps
            await crowd.leave()
