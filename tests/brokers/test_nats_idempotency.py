"""A message with an idempotency key is stored once in JetStream, whatever happens to its answer."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest

from tests.support.broker_node import BrokerNode, joined, until_in_time_of
from tests.support.nats_engine import NatsEngine, running_cluster, running_jetstream
from tests.support.tcp_proxy import proxy_to
from wshub.brokers.history_interface import HistoryQuery
from wshub.brokers.interface import HistoryConfig, Published
from wshub.brokers.nats import NatsBroker
from wshub.errors import BrokerError, BrokerUncertain

CONFIG = HistoryConfig(size=1000)

REPEATED = {"2.9": 10, "current": 1}
"""Of how many messages one is published again while servers take over the stream from one another.

A server of version 2.9.10 counts the duplicates of a stream. It may have led the stream before. If fewer messages than
duplicates were stored since, it drops as many further messages without an answer.
"""

ON_BOTH = pytest.mark.parametrize(("kind", "run"), [("2.9", "asyncio"), ("current", "uvloop")], indirect=["run"])


async def publish(node: BrokerNode, number: int, config: HistoryConfig = CONFIG) -> Published:
    """Publish a number, which is the key too."""
    published: Published = await node.broker.publish_stored(  # type: ignore[attr-defined]
        "room:a", b"%d" % number, config, idempotency_key=f"key {number}"
    )
    return published


async def publish_at_last(node: BrokerNode, number: int) -> Published:
    """Publish until the answer has come, as an application does."""
    async with asyncio.timeout(50):
        while True:
            try:
                return await publish(node, number)
            except BrokerError:
                node.skip(1)
                await asyncio.sleep(0.02)


async def numbers(node: BrokerNode) -> list[int]:
    found = await node.broker.history("room:a", CONFIG, HistoryQuery(limit=1000))  # type: ignore[attr-defined]
    return [int(stored.envelope) for stored in found.envelopes]


@ON_BOTH
async def test_a_message_whose_answer_is_lost_with_the_connection_is_stored_once(kind: str) -> None:
    with running_jetstream(kind) as engine, proxy_to("127.0.0.1", engine.port) as proxy:
        async with (
            joined(NatsBroker(f"nats://127.0.0.1:{proxy.port}")) as one,
            joined(NatsBroker(engine.url)) as other,
        ):
            await publish(one, 0)
            proxy.to_client.clear()
            publishing = asyncio.ensure_future(publish(one, 1))
            # The other node sees that the message is stored.
            async with asyncio.timeout(20):
                while await numbers(other) != [0, 1]:
                    await asyncio.sleep(0.005)
            for connection in proxy.open_connections():
                connection.end()
            with pytest.raises(BrokerUncertain):
                await publishing
            assert one.broker.stats().dropped["unanswered"] == 1
            proxy.heal()
            again = await publish_at_last(one, 1)
            assert again.is_duplicate
            assert not (await publish(one, 2)).is_duplicate
            # The key holds at each node, and has the position of the message.
            third = await publish(other, 1)
            assert (third.is_duplicate, third.position) == (True, again.position)
            assert await numbers(one) == [0, 1, 2]
            assert one.broker.stats().sent == 3


@ON_BOTH
async def test_a_key_is_known_across_reconnections_and_a_restart_of_the_server(kind: str) -> None:
    with running_jetstream(kind) as engine, proxy_to("127.0.0.1", engine.port) as proxy:
        async with joined(NatsBroker(f"nats://127.0.0.1:{proxy.port}")) as one:
            first = await publish(one, 0)

            def cut() -> None:
                for connection in proxy.open_connections():
                    connection.end()

            for interrupt in (cut, restarting(engine, signal.SIGTERM), restarting(engine, signal.SIGKILL)):
                before = one.broker.stats().reconnects
                interrupt()
                await until_in_time_of(one, lambda before=before: one.broker.stats().reconnects > before)
                again = await publish_at_last(one, 0)
                assert (again.is_duplicate, again.position) == (True, first.position)
            assert await numbers(one) == [0]


def restarting(engine: NatsEngine, signal_number: int) -> Callable[[], None]:
    def restart() -> None:
        engine.stop(signal_number)
        engine.start()

    return restart


@ON_BOTH
async def test_a_restarted_server_knows_the_keys_of_the_messages_that_it_still_has(kind: str) -> None:
    config = HistoryConfig(size=2)
    with running_jetstream(kind) as engine:
        async with joined(NatsBroker(engine.url)) as one:
            for number in range(4):
                await publish(one, number, config)
            assert (await publish(one, 0, config)).is_duplicate
        restarting(engine, signal.SIGTERM)()
        async with joined(NatsBroker(engine.url)) as one:
            assert (await publish(one, 3, config)).is_duplicate
            assert not (await publish(one, 0, config)).is_duplicate


@pytest.mark.long
@pytest.mark.hangs_after(180)
@ON_BOTH
async def test_when_another_server_leads_the_stream_each_message_is_stored_once_and_in_order(kind: str) -> None:
    with running_cluster(kind) as engines:
        places = ",".join(engine.url.removeprefix("nats://") for engine in engines)
        async with joined(NatsBroker(f"nats://{places}?replicas=3")) as one:
            await publish_at_last(one, 0)
            (stream,) = one.broker._session.storing._streams._known.values()  # type: ignore[attr-defined]
            leaders = {leader_of(engines, stream.name)}
            for number in range(1, 61):
                if number % 20 == 0:
                    engines[0].ask(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream.name}")
                published = await publish_at_last(one, number)
                if number % REPEATED[kind] == 0:
                    again = await publish_at_last(one, number)
                    assert (again.is_duplicate, again.position) == (True, published.position)
                leaders.add(leader_of(engines, stream.name))
            assert len(leaders - {""}) > 1
            assert await numbers(one) == list(range(61))


def leader_of(engines: list[NatsEngine], stream: str) -> str:
    """Return the server that leads a stream; empty while there is none."""
    cluster = engines[0].ask(f"$JS.API.STREAM.INFO.{stream}").get("cluster") or {}
    return str(cluster.get("leader", ""))
