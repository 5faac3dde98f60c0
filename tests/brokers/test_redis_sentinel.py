"""A broker behind Sentinels: it is where they say that the primary is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterator

import pytest

from tests.support.broker_node import BrokerNode, joined, until
from tests.support.redis_engine import ENGINES_AND_LOOPS, RedisEngine
from tests.support.redis_sentinel import NAME, SentinelSetup, running_sentinels
from wshub.brokers.interface import Broker
from wshub.brokers.redis import RedisBroker
from wshub.errors import ConfigurationError
from wshub.publisher import AsyncPublisher
from wshub.testing.broker_accounting import check_arrivals
from wshub.testing.broker_nodes import Node, Nodes
from wshub.testing.broker_recovery import arrives_again, recovered, trickling

CHANNEL = "room:faults"


shared_setup = pytest.mark.parametrize(("setup", "run"), ENGINES_AND_LOOPS, indirect=True, scope="module")


@pytest.fixture(scope="module")
def setup(request: pytest.FixtureRequest) -> Iterator[SentinelSetup]:
    """Two engines that three Sentinels watch. After a test, either of them may be the primary."""
    with running_sentinels(request.param, sentinels=3) as setup:
        yield setup


@contextlib.asynccontextmanager
async def nodes_of(setup: SentinelSetup):
    """Yield nodes whose envelopes are accounted for."""

    def make() -> Broker:
        return RedisBroker(setup.url, address_remap=setup.remap)

    nodes = Nodes(make, None, patience=20)
    try:
        yield nodes
    finally:
        await nodes.close()


def subscribers(engine: RedisEngine) -> int:
    """Return how many nodes hear an engine; -1 if it ends the connection of the test, as Sentinels have it do."""
    try:
        return engine.command("CLIENT", "LIST", "TYPE", "pubsub").count(":subscriber")
    except ConnectionError:
        return -1


async def check_that_both_have_moved(nodes: Nodes, setup: SentinelSetup, first: Node, second: Node) -> None:
    await recovered(nodes, first, second)
    await arrives_again(nodes, first, second)
    await nodes.quiet()
    check_arrivals(first, second, CHANNEL)
    check_arrivals(second, first, CHANNEL)
    assert subscribers(setup.primary) == 2
    assert second.interruptions()


@pytest.mark.failure("Sentinels make another engine the primary")
@shared_setup
async def test_a_failover_is_followed_and_nothing_is_lost_silently(setup: SentinelSetup) -> None:
    async with nodes_of(setup) as nodes:
        first, second = await nodes.two(CHANNEL)
        await first.join(CHANNEL)
        async with trickling(first, second):
            await nodes.pass_for(1, rate=5)
            old = setup.primary
            await asyncio.to_thread(setup.failover)
            await until(lambda: subscribers(old) == 0)
            await recovered(nodes, first, second)
            assert setup.primary is not old
        await check_that_both_have_moved(nodes, setup, first, second)
    await asyncio.to_thread(setup.wait_for_replica)


@pytest.mark.failure("an old primary goes on to answer")
@pytest.mark.parametrize(("kind", "run"), ENGINES_AND_LOOPS, indirect=["run"])
async def test_an_old_primary_that_goes_on_to_answer_is_left_within_the_time_out_of_probes(kind: str) -> None:
    """Only the Sentinels lose it. Its connections stay open, it takes messages, and each probe comes back."""
    with running_sentinels(kind, sentinels=3, is_proxied=True) as setup:
        async with nodes_of(setup) as nodes:
            first, second = await nodes.two(CHANNEL)
            await first.join(CHANNEL)
            old = setup.primary
            async with trickling(first, second):
                await nodes.pass_for(1, rate=5)
                setup.lose_first_engine()
                await asyncio.to_thread(setup.wait_for_failover, old)
                began = nodes.clock()
                await until(lambda: subscribers(old) == 0 and subscribers(setup.primary) == 2)
                assert nodes.clock() - began < 8
                assert "role:master" in old.command("INFO", "replication")
                assert [event.reason for event in second.interruptions()] == ["failover"]
                # The connection that publishes may follow the other one a moment later.
                await until(lambda: second.broker.stats().dropped["failover"] > 0)
            await check_that_both_have_moved(nodes, setup, first, second)


async def test_the_sentinel_of_the_latest_failover_is_right_and_those_that_are_away_do_not_matter() -> None:
    with running_sentinels("redis") as stale, running_sentinels("redis", sentinels=2) as newer:
        await asyncio.to_thread(newer.failover)
        places = [f"127.0.0.1:{sentinel.port}" for sentinel in (*stale.sentinels, *newer.sentinels)]
        newer.sentinels[1].pause()
        async with joined(RedisBroker(f"redis+sentinel://127.0.0.1:1,{','.join(places)}/{NAME}")):
            assert subscribers(newer.primary) == 1
            assert subscribers(stale.primary) == 0


@shared_setup
async def test_a_publisher_takes_the_url_of_sentinels(setup: SentinelSetup) -> None:
    async with joined(RedisBroker(setup.url), "room:a") as node, AsyncPublisher(setup.url) as publisher:
        await publisher.publish("hello", room="a")
        await until(lambda: any(b"hello" in envelope for envelope in node.received))


@shared_setup
async def test_a_wrong_name_and_a_wrong_port_are_configuration_errors(setup: SentinelSetup) -> None:
    sentinel, engine = setup.sentinels[0].port, setup.primary.port
    for url, words in (
        (f"redis+sentinel://127.0.0.1:{sentinel}/other", "no master named 'other'"),
        (f"redis+sentinel://127.0.0.1:{engine}/{NAME}", "an engine as a Sentinel"),
        (f"redis+sentinel://127.0.0.1:{sentinel}/{NAME}?sentinel_username=a&sentinel_password=b", "credentials"),
        (f"redis+sentinel://ann:wrong@127.0.0.1:{sentinel}/{NAME}", "credentials"),
        (f"redis://127.0.0.1:{sentinel}", "redis+sentinel://"),
    ):
        node = BrokerNode(RedisBroker(url), "hub")
        with pytest.raises(ConfigurationError, match=re.escape(words)):
            await node.start()
        await node.close()


async def test_it_waits_while_no_sentinel_answers_and_logs_that_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wshub.broker")
    with running_sentinels("redis") as setup:
        setup.sentinels[0].stop()
        node = BrokerNode(RedisBroker(setup.url), "hub")
        starting = asyncio.create_task(node.start())
        for _ in range(5):
            await asyncio.sleep(0.05)
            node.skip(10)
        assert not starting.done()
        assert node.broker.health().state == "starting"
        assert len(caplog.records) == 1
        setup.sentinels[0].start()
        while not starting.done():
            node.skip(1)
            await asyncio.sleep(0.05)
        await starting
        # Without Sentinels the connections stay where they are.
        setup.sentinels[0].stop()
        for _ in range(5):
            node.skip(4)
            node.broker.sweep(node.now())
            await until(lambda: not node.broker._session._probes._unanswered)  # type: ignore[attr-defined]
        assert node.broker.health().ok
        assert node.interruptions == []
        await node.close()


async def test_close_while_a_sentinel_is_asked_leaves_no_task() -> None:
    with running_sentinels("redis") as setup:
        tasks = asyncio.all_tasks()
        for _ in range(10):
            async with joined(RedisBroker(setup.url)) as node:
                node.skip(5)
                await asyncio.sleep(0.02 * _ / 10)
        assert asyncio.all_tasks() == tasks
