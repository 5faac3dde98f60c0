"""Watches of hubs that NATS servers join: wildcards, rooms that JetStream keeps, permissions and outages."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.core.test_watches import Seen
from tests.support.broker_node import until
from tests.support.cluster_nodes import member, serving_node
from tests.support.nats_engine import PROGRAMS, NatsEngine, running_jetstream
from wshub import BrokerUnavailable, HistoryConfig, Hub
from wshub.brokers.nats import NatsBroker
from wshub.publisher import AsyncPublisher

# Each server has one of the loops: all four pairs take twice as long.
pytestmark = pytest.mark.parametrize(("engine", "run"), [("2.9", "asyncio"), ("current", "uvloop")], indirect=True)

USERS = """
authorization {
    users = [
        {user: all, password: pw, permissions: {publish: ["wshub.>", "$JS.API.>"], subscribe: "wshub.>"}}
        {
            user: some, password: pw,
            permissions: {publish: "wshub.>", subscribe: {allow: "wshub.>", deny: "wshub.*.room.secret=3A.>"}}
        }
    ]
}
"""


@pytest.fixture(scope="module", params=PROGRAMS)
def engine(request: pytest.FixtureRequest) -> Iterator[NatsEngine]:
    with running_jetstream(request.param, USERS) as engine:
        yield engine


@pytest.fixture
def own_engine(engine: NatsEngine) -> Iterator[NatsEngine]:
    """A server that the test may stop, of the same kind as the shared one."""
    with running_jetstream(engine.kind, USERS) as own:
        yield own


def broker_of(engine: NatsEngine, user: str = "all") -> NatsBroker:
    return NatsBroker(f"nats://{user}:pw@127.0.0.1:{engine.port}")


@asynccontextmanager
async def two_hubs(engine: NatsEngine) -> AsyncIterator[tuple[Hub, Hub]]:
    """Two hubs that hear nothing of other tests. Their rooms ``kept:*`` have a history."""
    name = secrets.token_hex(4)
    async with Hub(broker=broker_of(engine), name=name) as one, Hub(broker=broker_of(engine), name=name) as two:
        for hub in (one, two):
            hub.configure_room("kept:*", history=HistoryConfig(size=1000))
            await hub.broker_started()
        yield one, two


async def test_a_pattern_matches_what_nats_cannot_express(engine: NatsEngine) -> None:
    patterns = ("prices:*", "prices:a*", "*:audit", "prices:eu.*:x", "*", "prices:" + "long:" * 60 + "*")
    rooms = ["prices:a", "prices:b", "chat:audit", "prices:eu.1:x", "prices:eu.1:y", "prices", "prices:"]
    rooms += ["prices:" + "long:" * 60 + "1", "prices:" + "long:" * 59 + "1", "prices:ab" + "x" * 300]
    all_seen = [Seen() for _ in patterns]
    async with two_hubs(engine) as (one, two):
        for pattern, seen in zip(patterns, all_seen, strict=True):
            await one.watch(pattern, seen)
        for hub in (one, two):
            for room in rooms:
                hub.broadcast("hello", room=room)
        begin = [room for room in rooms if room.startswith("prices:")]
        expected = [begin, ["prices:a", rooms[-1]], ["chat:audit"], ["prices:eu.1:x"], rooms, [rooms[-3]]]
        await until(lambda: [len(seen.messages) for seen in all_seen] == [2 * len(each) for each in expected])
        found = [sorted(message.room for message in seen.messages) for seen in all_seen]
        assert found == [sorted(2 * each) for each in expected]


async def test_rooms_with_history_are_seen_once_and_in_order(engine: NatsEngine) -> None:
    seen = Seen()
    async with two_hubs(engine) as (one, two):
        await one.watch("kept:*", seen)
        overlapping = Seen()
        await one.watch("*", overlapping)

        async def publish(hub: Hub, name: str) -> None:
            for number in range(50):
                await hub.publish(f"{name} {number}", room=f"kept:{number % 2}", publisher=name)

        await asyncio.gather(
            *(publish(hub, f"{index} {task}") for index, hub in enumerate((one, two)) for task in "ab")
        )
        for each in (seen, overlapping):
            await each.after(200)
        for room in ("kept:0", "kept:1"):
            kept = (await two.history(room, limit=1000)).publications
            for each in (seen, overlapping):
                found = [message for message in each.messages if message.room == room]
                assert [message.data for message in found] == [publication.data for publication in kept]
                assert [message.position for message in found] == [publication.position for publication in kept]
                assert [message.publisher for message in found] == [publication.publisher for publication in kept]
        assert len(seen.messages) == len(overlapping.messages) == 200


async def test_members_and_watches_of_one_node_get_a_message_once_each(engine: NatsEngine) -> None:
    seen, name = Seen(), secrets.token_hex(4)
    async with (
        serving_node(broker_of(engine), name=name) as one,
        serving_node(broker_of(engine), name=name) as two,
        member(one, "chat:1") as client,
        AsyncPublisher(f"nats://all:pw@127.0.0.1:{engine.port}", hub=name) as publisher,
    ):
        await one.hub.watch("chat:*", seen)
        for number in range(10):
            (one, two)[number % 2].hub.broadcast(str(number), room="chat:1")
            assert await client.recv() == str(number)
        await publisher.publish("from a program", room="chat:1")
        assert await client.recv() == "from a program"
        await seen.after(11)
        assert seen.texts == [*map(str, range(10)), "from a program"]


async def test_a_pattern_that_the_account_does_not_allow_is_an_error(engine: NatsEngine) -> None:
    async with Hub(broker=broker_of(engine, "some"), name=secrets.token_hex(4)) as hub:
        await hub.broker_started()
        with pytest.raises(BrokerUnavailable, match=r"(?i)permissions violation for subscription.*secret=3A\.>"):
            await hub.watch("secret:*", Seen())
        assert hub._watches is None
        seen = Seen()
        await hub.watch("open:*", seen)
        hub.broadcast("1", room="open:1")
        await seen.after(1)


async def test_a_watch_goes_on_after_the_server_was_restarted(own_engine: NatsEngine) -> None:
    seen = Seen()
    async with two_hubs(own_engine) as (one, two):
        watch = await one.watch("a:*", seen)
        two.broadcast("before", room="a:1")
        await seen.after(1)
        own_engine.stop(signal.SIGKILL)
        await until(lambda: watch.interruptions)
        own_engine.start()
        # Own messages need no server.
        one.broadcast("alone", room="a:1")

        def is_back() -> bool:
            two.broadcast("after", room="a:1")
            return seen.texts[-1] == "after"

        await until(is_back)
        assert seen.texts[:2] == ["before", "alone"]
        assert not watch.is_closed
