"""Rooms with history and presence while servers of a NATS cluster fail, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import pytest

from tests.support.broker_node import until
from tests.support.history_nodes import LARGE, ROOM, client_of, history_node, publish_at_last
from tests.support.nats_engine import NatsEngine, running_cluster
from tests.support.presence_nodes import Events, Node, are, node, told
from tests.support.serving_hub import connected
from wshub.brokers.nats import NatsBroker
from wshub.errors import BrokerError

ON_BOTH = pytest.mark.parametrize(("kind", "run"), [("2.9", "asyncio"), ("current", "uvloop")], indirect=["run"])


def url_of(engines: list[NatsEngine], replicas: int) -> str:
    places = ",".join(engine.url.removeprefix("nats://") for engine in engines)
    return f"nats://{places}?replicas={replicas}"


def replicas_of(engine: NatsEngine) -> list[int]:
    """Return for each stream how many servers keep it."""
    names = engine.ask("$JS.API.STREAM.NAMES")["streams"]
    return [engine.ask(f"$JS.API.STREAM.INFO.{name}")["config"]["num_replicas"] for name in names]


async def are_at_last(of: Node, *users: str) -> None:
    """Wait until these users are in the room. A cluster that chooses leaders refuses questions meanwhile."""
    while True:
        with contextlib.suppress(BrokerError, TimeoutError):
            await are(of, *users)
            return


@pytest.mark.parametrize(
    ("kind", "run"), [("2.9", "asyncio"), pytest.param("current", "uvloop", marks=pytest.mark.long)], indirect=["run"]
)
async def test_what_one_server_keeps_is_kept_by_three_once_a_node_asks_for_it(kind: str) -> None:
    with running_cluster(kind) as engines:
        few, more = url_of(engines, 1), url_of(engines, 3)
        events = Events()
        async with history_node(NatsBroker(few), LARGE) as one, node(events, NatsBroker(few)) as former:
            await publish_at_last(one, "1")
            async with connected(former.url + "ann"):
                await are_at_last(former, "ann")
                async with (
                    history_node(NatsBroker(more), LARGE) as two,
                    node(events, NatsBroker(more)) as other,
                    connected(other.url + "bob"),
                ):
                    await publish_at_last(two, "2")
                    await are_at_last(other, "ann", "bob")
                    assert replicas_of(engines[0]) == [3, 3, 3]
                    # A node with the former number goes on, and does not lower it.
                    await publish_at_last(one, "3")
                    await are_at_last(former, "ann", "bob")
                    assert replicas_of(engines[0]) == [3, 3, 3]
                    found = await two.hub.history(ROOM)
                    assert [publication.data for publication in found.publications] == ["1", "2", "3"]


@ON_BOTH
@pytest.mark.long
async def test_one_of_three_servers_may_fail(kind: str) -> None:
    with running_cluster(kind) as engines:
        url = url_of(engines, 3)
        async with history_node(NatsBroker(url), LARGE) as one, history_node(NatsBroker(url), LARGE) as two:
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


@ON_BOTH
@pytest.mark.long
async def test_members_are_known_while_a_server_fails(kind: str) -> None:
    events = Events()
    with running_cluster(kind) as engines:
        url = url_of(engines, 3)
        async with (
            node(events, NatsBroker(url)) as one,
            node(events, NatsBroker(url)) as two,
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
            await told(events, {("join", "ann"): 1, ("join", "bob"): 1}, one, two)
