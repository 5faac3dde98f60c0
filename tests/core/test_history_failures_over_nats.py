"""Rows of the table of failures on the page about rooms with history that are about NATS."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from tests.support.broker_node import until
from tests.support.history_nodes import ROOM, client_of, history_node, publish_at_last
from tests.support.nats_engine import PROGRAMS, NatsEngine, running_jetstream, running_nats
from tests.support.tcp_proxy import proxy_to
from wshub import BrokerUnavailable, BrokerUncertain, Hub
from wshub.brokers.nats import NatsBroker

# Each server has one of the loops: all four pairs take twice as long.
pytestmark = pytest.mark.parametrize(("own_engine", "run"), [("2.9", "asyncio"), ("current", "uvloop")], indirect=True)


@pytest.fixture(params=PROGRAMS)
def own_engine(request: pytest.FixtureRequest) -> Iterator[NatsEngine]:
    """A server that the test may stop."""
    with running_jetstream(request.param) as engine:
        yield engine


async def delete_streams(node_hub: Hub) -> None:
    """Have the engine lose the histories."""
    requests = node_hub.broker._session._requests  # type: ignore[union-attr]
    for name in (await requests.ask("STREAM.NAMES"))["streams"]:
        await requests.ask(f"STREAM.DELETE.{name}")


@pytest.mark.failure("NATS has no JetStream")
async def test_without_jetstream_a_room_with_history_says_so(own_engine: NatsEngine) -> None:
    with running_nats(own_engine.kind) as plain:
        async with history_node(NatsBroker(plain.url)) as node:
            with pytest.raises(BrokerUnavailable, match="JetStream"):
                await node.hub.publish("1", room=ROOM)
            node.hub.broadcast("2", room=ROOM)
            assert node.hub.stats().cluster.rejected >= 1
            await node.hub.publish("3", room="plain")
            assert node.hub.health().ok


@pytest.mark.failure("JetStream has lost a stream, or its newest messages")
async def test_histories_that_were_lost_begin_an_epoch_and_members_are_told(own_engine: NatsEngine) -> None:
    async with (
        history_node(NatsBroker(own_engine.url)) as one,
        history_node(NatsBroker(own_engine.url)) as two,
        client_of(two) as member,
    ):
        await one.hub.publish("1", room=ROOM)
        await until(lambda: member.data == ["1"])
        await delete_streams(one.hub)
        await publish_at_last(one, "2")
        await until(lambda: two.skip() or member.data == ["1", "2"])
        assert member.gaps == ["epoch"]
        assert two.hub.stats().history.gaps == {"epoch": 1}
        assert len({epoch for epoch, _ in member.offsets}) == 2


@pytest.mark.failure("JetStream has lost a stream, or its newest messages")
async def test_an_engine_that_has_lost_the_newest_messages_is_noticed(own_engine: NatsEngine) -> None:
    """No connection is lost: the server of the stream is another one of the cluster."""
    async with history_node(NatsBroker(own_engine.url)) as node, client_of(node) as member:
        for number in range(5):
            await node.hub.publish(str(number), room=ROOM)
        await until(lambda: len(member.data) == 5)
        streams = node.hub.broker._session.storing._streams  # type: ignore[union-attr]
        (stream,) = streams._known.values()
        await streams._delete(stream.name)
        await streams._create(stream)
        history = node.hub._histories.cursors[ROOM]  # type: ignore[union-attr]
        await node.hub._histories._checks.check(history)  # type: ignore[union-attr]
        await until(lambda: member.gaps == ["epoch"])
        await node.hub.publish("new", room=ROOM)
        await until(lambda: member.data[-1] == "new")


@pytest.mark.failure("a NATS server is killed and comes back")
async def test_a_server_that_is_killed_costs_nothing_that_was_stored(own_engine: NatsEngine) -> None:
    with proxy_to("127.0.0.1", own_engine.port) as proxy:
        async with (
            history_node(NatsBroker(own_engine.url)) as one,
            history_node(NatsBroker(f"nats://127.0.0.1:{proxy.port}")) as two,
            client_of(two) as member,
        ):
            for number in range(20):
                if number % 7 == 3:
                    # The answer to one message is held back until its connection has ended.
                    proxy.to_client.clear()
                    await publish_at_last(one, str(number))
                    own_engine.stop(signal.SIGKILL)
                    own_engine.start()
                    proxy.heal()
                else:
                    await publish_at_last(one, str(number))
            await publish_at_last(two, "20")
            own_engine.pause()
            lost = asyncio.ensure_future(two.hub.publish("uncertain", room=ROOM))
            await until(lambda: two.hub.broker._session._requests._open)  # type: ignore[union-attr]
            own_engine.stop(signal.SIGKILL)
            with pytest.raises(BrokerUncertain):
                await lost
            own_engine.start()
            await publish_at_last(one, "last")
            await until(lambda: two.skip() or member.data[-1:] == ["last"])
            assert [data for data in member.data if data != "uncertain"] == [*map(str, range(21)), "last"]
            assert not member.gaps
            assert two.hub.stats().history.caught_up >= 1
