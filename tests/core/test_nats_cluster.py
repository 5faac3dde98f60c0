"""Rooms with history and presence while servers of a NATS cluster fail, one after the other."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.core.test_history_over_redis import LARGE, publish_at_last
from tests.support.broker_node import until
from tests.support.history_nodes import client_of, history_node
from tests.support.nats_engine import running_cluster
from tests.support.presence_nodes import Events, are, node
from tests.support.serving_hub import connected
from wshub.brokers.nats import NatsBroker
from wshub.errors import BrokerError

pytestmark = [pytest.mark.long, pytest.mark.parametrize("kind", ["2.9", "current"])]


def broker(urls: str) -> NatsBroker:
    return NatsBroker(urls, replicas=3)


async def test_one_of_three_servers_may_fail(kind: str) -> None:
    with running_cluster(kind) as engines:
        urls = "nats://" + ",".join(engine.url.removeprefix("nats://") for engine in engines)
        async with history_node(broker(urls), LARGE) as one, history_node(broker(urls), LARGE) as two:
            await publish_at_last(one, "first")
            async with client_of(one) as first, client_of(two) as second:
                sent = []
                for engine in engines[:2]:
                    for number in range(20):
                        sent.append(f"{engine.port} {number}")
                        await publish_at_last(one, sent[-1])
                    engine.stop(signal.SIGKILL)
                    for number in range(20, 30):
                        sent.append(f"{engine.port} {number}")
                        await publish_at_last(two, sent[-1])
                    engine.start()
                    # The server gets what it has missed before the next one fails.
                    await asyncio.sleep(2)
                await publish_at_last(one, "last")
                sent.append("last")

                def have_all() -> bool:
                    for each in (one, two):
                        each.skip()
                    return first.data[-1:] == second.data[-1:] == ["last"]

                await until(have_all)
                assert first.data == second.data == sent
                assert first.gaps == second.gaps == []


async def test_members_are_known_while_a_server_fails(kind: str) -> None:
    events = Events()
    with running_cluster(kind) as engines:
        urls = "nats://" + ",".join(engine.url.removeprefix("nats://") for engine in engines)
        async with (
            node(events, broker(urls)) as one,
            node(events, broker(urls)) as two,
            connected(one.url + "ann"),
            connected(two.url + "bob"),
        ):
            await until(lambda: len(events.log) == 2)
            for engine in engines[:2]:
                engine.stop(signal.SIGKILL)

                async def are_there() -> bool:
                    for each in (one, two):
                        each.skip(1)
                    await asyncio.sleep(0.05)
                    try:
                        return [await each.users() for each in (one, two)] == [["ann", "bob"]] * 2
                    except BrokerError:
                        return False

                while not await are_there():
                    pass
                engine.start()
                await asyncio.sleep(2)
            await are(one, "ann", "bob")
            assert events.counts() == {("join", "ann"): 1, ("join", "bob"): 1}
