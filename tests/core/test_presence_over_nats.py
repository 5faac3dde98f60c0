"""The members of a room, which JetStream keeps."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import secrets
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.broker_node import until, until_in_time_of
from tests.support.nats_engine import PROGRAMS, NatsEngine, running_jetstream
from tests.support.presence_nodes import ROOM, Events, Node, are, node, pass_a_moment, told
from tests.support.serving_hub import connected
from tests.support.tcp_proxy import proxy_to
from wshub import PresenceCounts
from wshub.brokers import nats_lives, nats_reading
from wshub.brokers.interface import room_channel
from wshub.brokers.nats import NatsBroker
from wshub.brokers.nats_presence import message_of
from wshub.brokers.presence_interface import PresenceEntry

# Each server has one of the loops: all four pairs take twice as long.
pytestmark = pytest.mark.parametrize(("engine", "run"), [("2.9", "asyncio"), ("current", "uvloop")], indirect=True)


DELETION = re.compile(rb"PUB \$JS\.API\.STREAM\.(?:PURGE|MSG\.DELETE)\.\S+ \S+ \d+\r\n[^\r]*\r\n")
"""A request of a node that deletes a message."""


@pytest.fixture(scope="module", params=PROGRAMS)
def engine(request: pytest.FixtureRequest) -> Iterator[NatsEngine]:
    with running_jetstream(request.param) as engine:
        yield engine


@pytest.fixture
def own_engine(engine: NatsEngine) -> Iterator[NatsEngine]:
    """A server that the test may stop, of the same kind as the shared one."""
    with running_jetstream(engine.kind) as own:
        yield own


@pytest.fixture
def prefix() -> str:
    """A prefix that no other test has."""
    return secrets.token_hex(4)


async def test_of_nodes_that_enter_a_user_at_once_one_is_first_and_one_is_last(engine: NatsEngine, prefix: str) -> None:
    events = Events()
    async with (
        node(events, NatsBroker(engine.url, prefix=prefix)) as one,
        node(events, NatsBroker(engine.url, prefix=prefix)) as two,
    ):
        sources = [each.hub.broker for each in (one, two)]
        for number in range(20):
            entries = [PresenceEntry(f"{index}:{number}", f"user {number % 7}", b"\x00\xff") for index in range(8)]

            enter = [sources[index % 2].presence_enter("room:a", [entry]) for index, entry in enumerate(entries)]  # type: ignore[union-attr]
            assert sorted(await asyncio.gather(*enter)) == [[False]] * 7 + [[True]]
            found = await sources[0].presence_read("room:a", "", 10)  # type: ignore[union-attr]
            assert set(found.entries) == set(entries)
            leave = [sources[index % 2].presence_leave("room:a", [entry]) for index, entry in enumerate(entries)]  # type: ignore[union-attr]
            assert sorted(await asyncio.gather(*leave)) == [[False]] * 7 + [[True]]
        assert await sources[0].presence_counts("room:a") == PresenceCounts(connections=0, users=0)  # type: ignore[union-attr]


@pytest.fixture
def short_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without a beat is dead after a fifth of a second by the engine's clock."""
    monkeypatch.setattr(nats_lives, "DEAD_SECONDS", 0.2)


@pytest.mark.usefixtures("short_life")
async def test_a_node_that_dies_while_it_takes_members_over_is_followed_by_another_one(own_engine: NatsEngine) -> None:
    events = Events()
    with proxy_to("127.0.0.1", own_engine.port) as first, proxy_to("127.0.0.1", own_engine.port) as second:
        async with (
            node(events, NatsBroker(f"nats://127.0.0.1:{first.port}")) as one,
            node(events, NatsBroker(f"nats://127.0.0.1:{second.port}")) as two,
            connected(one.url + "ann"),
        ):
            await are(two, "ann")
            first.to_server.clear()
            presences = two.hub.broker._session.presences  # type: ignore[union-attr]

            async def claimed() -> bool:
                beat = await presences.beat(is_leaving=False)
                return any([await presences._lives.claim(life) for life in beat.dead])

            # The second one claims what the first one had, and does nothing more.
            two.hub._presences._is_closed = True  # type: ignore[union-attr]
            async with asyncio.timeout(20):
                while not await claimed():
                    await asyncio.sleep(0.05)
            second.to_server.clear()
            async with node(events, NatsBroker(own_engine.url)) as three:
                async with asyncio.timeout(20):
                    while await three.users():
                        three.skip(4)
                        await asyncio.sleep(0.05)
                await told(events, {("join", "ann"): 1, ("leave", "ann"): 1}, three)
            for proxy in (first, second):
                proxy.heal()


@pytest.mark.usefixtures("short_life")
async def test_a_member_whose_node_dies_right_after_a_loss_is_no_ghost(own_engine: NatsEngine) -> None:
    """The node has entered the member, and has not had the beat that would tell the engine of its life."""
    events = Events()
    with proxy_to("127.0.0.1", own_engine.port) as proxy:
        async with (
            node(events, NatsBroker(own_engine.url)) as two,
            node(events, NatsBroker(f"nats://127.0.0.1:{proxy.port}")) as one,
            connected(one.url + "ann"),
        ):
            await are(two, "ann")
            own_engine.delete_streams()
            async with connected(one.url + "bob"):
                await until(lambda: ("join", "bob") in events.log)
                proxy.to_server.clear()
                async with asyncio.timeout(20):
                    while await two.users() or ("leave", "bob") not in events.log:
                        two.skip(1)
                        await asyncio.sleep(0.02)
            proxy.heal()
            await pass_a_moment(two)
            assert events.counts()["leave", "bob"] == 1


async def test_after_an_outage_nobody_is_taken_for_dead(own_engine: NatsEngine, monkeypatch: Any) -> None:
    events = Events()
    async with (
        node(events, NatsBroker(own_engine.url)) as one,
        node(events, NatsBroker(own_engine.url)) as two,
        connected(one.url + "ann"),
        connected(two.url + "bob"),
    ):
        await are(one, "ann", "bob")
        monkeypatch.setattr(nats_lives, "DEAD_SECONDS", 0.0)
        own_engine.stop(signal.SIGTERM)
        own_engine.start()
        for _ in range(8):
            for each in (one, two):
                await until_in_time_of(each, lambda each=each: each.hub.health().ok)
            await pass_a_moment(one, two)
        await are(two, "ann", "bob")
        await told(events, {("join", "ann"): 1, ("join", "bob"): 1}, one, two)


async def test_nobody_is_missing_in_what_is_read_while_somebody_else_leaves(engine: NatsEngine, prefix: str) -> None:
    events = Events()
    async with (
        node(events, NatsBroker(engine.url, prefix=prefix)) as one,
        node(events, NatsBroker(engine.url, prefix=prefix)) as two,
        connected(one.url + "ann"),
    ):
        await are(two, "ann")
        theirs, own = (each.hub.broker._session.presences._stream for each in (one, two))  # type: ignore[union-attr]
        gone = f"user.{two.hub.broker._session.presences._epochs.tokens(room_channel(ROOM))}.gone"  # type: ignore[union-attr]
        sequence = await theirs.replace(gone, message_of(room_channel(ROOM), "ubob", []), 0)
        pull = own._reader._pull

        async def pull_later(*arguments: Any) -> Any:
            """Ask a consumer for messages once it has counted one that is deleted then."""
            own._reader._pull = pull
            theirs.delete(gone, sequence)
            await until(lambda: not theirs._deletions)
            return await pull(*arguments)

        own._reader._pull = pull_later
        assert await two.users() == ["ann"]


async def test_nobody_is_missing_in_what_is_read_while_somebody_leaves_and_somebody_comes(
    engine: NatsEngine, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events()
    async with (
        node(events, NatsBroker(engine.url, prefix=prefix), grace_ms=0) as one,
        node(events, NatsBroker(engine.url, prefix=prefix)) as two,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = {}
        for name in ("ann", "bob", "cid", "dan"):
            clients[name] = await stack.enter_async_context(connected(one.url + name))
            await until(lambda name=name: ("join", name) in events.log)
        theirs, own = (each.hub.broker._session.presences._stream for each in (one, two))  # type: ignore[union-attr]
        monkeypatch.setattr(nats_reading, "BATCH", 1)
        pull, pulls = own._reader._pull, 0

        async def pull_later(*arguments: Any) -> Any:
            """Have somebody leave and somebody come, once one member was read."""
            nonlocal pulls
            pulls += 1
            if pulls == 2:
                await clients["dan"].close()
                await until(lambda: ("leave", "dan") in events.log and not theirs._deletions)
                await stack.enter_async_context(connected(one.url + "eve"))
                await until(lambda: ("join", "eve") in events.log)
            return await pull(*arguments)

        own._reader._pull = pull_later
        assert {"ann", "bob", "cid"} <= set(await two.users())


async def test_what_was_to_be_deleted_when_the_connection_ended_is_deleted_over_the_next_one(
    engine: NatsEngine, prefix: str
) -> None:
    events = Events()
    with proxy_to("127.0.0.1", engine.port) as proxy:
        broker = NatsBroker(f"nats://127.0.0.1:{proxy.port}", prefix=prefix)
        async with node(events, broker, grace_ms=0) as one, node(events, NatsBroker(engine.url, prefix=prefix)) as two:
            stream = one.hub.broker._session.presences._stream  # type: ignore[union-attr]
            (connection,) = proxy.open_connections()
            async with connected(one.url + "ann"):
                await are(two, "ann")
                connection.to_server.swallowed = DELETION
            await until(lambda: stream._deletions and connection.to_server.swallowed is None)
            # A beat without a connection would have the node begin another life.
            one.hub._presences._beat_at = float("inf")  # type: ignore[union-attr]
            connection.end()
            await until(lambda: not one.hub.health().ok)
            await until_in_time_of(one, lambda: one.hub.health().ok)
            one.hub._presences._beat_at = 0.0  # type: ignore[union-attr]
            theirs = two.hub.broker._session.presences._stream  # type: ignore[union-attr]
            async with asyncio.timeout(20):
                while (await theirs.list("user.>", 1, 10)).available:
                    one.skip(1)
                    await asyncio.sleep(0.02)
            assert not stream._deletions


async def test_what_was_to_be_deleted_in_a_stream_that_is_lost_is_not_deleted_in_the_next_one(
    own_engine: NatsEngine,
) -> None:
    events = Events()
    async with (
        node(events, NatsBroker(own_engine.url)) as two,
        node(events, NatsBroker(own_engine.url)) as one,
        connected(two.url + "ann"),
    ):
        await are(one, "ann")
        stream = one.hub.broker._session.presences._stream  # type: ignore[union-attr]
        own_engine.delete_streams()
        await until_in_time_of(two, lambda: two.hub.broker._session.presences._lives.losses == 2)  # type: ignore[union-attr]
        await are(two, "ann")
        # The next stream has given the sequence to another message.
        (message,) = (await stream.list("user.>", 1, 10)).messages
        stream._deletions["user.room.room.other"] = message.sequence
        one.hub.broker._session._kept.replace("lost")  # type: ignore[union-attr]
        await until(lambda: not one.hub.health().ok)
        await until_in_time_of(one, lambda: one.hub.health().ok)
        await until_in_time_of(one, lambda: not stream._deletions)
        await pass_a_moment(one, two)
        await are(one, "ann")


async def test_no_life_is_missing_in_what_is_read_while_another_one_ends(
    engine: NatsEngine, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose life is missing would count as dead for those that have members of its own."""
    events = Events()
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(events, NatsBroker(engine.url, prefix=prefix))) for _ in range(4)]
        presences = [each.hub.broker._session.presences for each in nodes]  # type: ignore[union-attr]
        for each in presences:
            await each.beat(is_leaving=False)
        last, reading = presences[-1], presences[0]
        requests = reading._stream._requests
        several = requests.several
        monkeypatch.setattr(nats_reading, "BATCH", 1)
        asked = 0

        def end_before(*arguments: Any) -> Any:
            """Delete a life once another one was read."""
            nonlocal asked
            asked += 1
            if asked != 2:
                return several(*arguments)
            subject = f"{last._stream.start}life.{last._lives.own}"
            purged = engine.ask(f"$JS.API.STREAM.PURGE.{last._stream._name}", json.dumps({"filter": subject}).encode())
            assert purged["purged"] == 1
            return several(*arguments)

        monkeypatch.setattr(requests, "several", end_before)
        assert await reading._lives.names() == {each._lives.own for each in presences[:-1]}


async def test_a_node_without_members_leaves_nothing_behind(engine: NatsEngine, prefix: str) -> None:
    events = Events()
    async with node(events, NatsBroker(engine.url, prefix=prefix)) as two:
        async with node(events, NatsBroker(engine.url, prefix=prefix)) as one, connected(one.url + "ann"):
            await are(two, "ann")
            two.skip(4)
            stream = two.hub.broker._session.presences._stream  # type: ignore[union-attr]
            while (await stream.list("life.*", 1, 10)).available != 2:
                await asyncio.sleep(0.01)
            one.hub.configure_room(ROOM, presence=events.config(grace_ms=0))
            for connection in one.hub.connections:
                connection.leave(ROOM)
            await are(two)
        assert (await stream.list("life.*", 1, 10)).available == 1
        assert (await stream.list("user.>", 1, 10)).available == 0


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_whatever_fails_nobody_is_missing_and_there_is_no_ghost(
    own_engine: NatsEngine, monkeypatch: pytest.MonkeyPatch, end: int
) -> None:
    """Users come and go at three nodes whose connections and engine fail, against a model."""
    monkeypatch.setattr(nats_lives, "DEAD_SECONDS", 0.3)
    chance = random.Random(5)
    events = Events()
    async with contextlib.AsyncExitStack() as stack:
        proxies = [stack.enter_context(proxy_to("127.0.0.1", own_engine.port)) for _ in range(3)]
        nodes: list[Node] = []
        for index, proxy in enumerate(proxies):
            broker = NatsBroker(f"nats://127.0.0.1:{proxy.port}")
            nodes.append(await stack.enter_async_context(node(events, broker)))
            nodes[-1].clock.skipped += 3600 * index
        there: dict[str, Any] = {}
        for step in range(80):
            fault = chance.randrange(12)
            if fault == 0:
                chance.choice(proxies).to_server.clear()
            elif fault == 1:
                for connection in chance.choice(proxies).open_connections():
                    connection.end()
            elif fault == 2 and own_engine.process is not None:
                own_engine.stop(end)
            elif fault == 3:
                if own_engine.process is None:
                    own_engine.start()
                for proxy in proxies:
                    proxy.heal()
            elif fault < 7 and there:
                await there.pop(chance.choice(sorted(there))).close()
            else:
                name = f"user-{step}"
                there[name] = await stack.enter_async_context(connected(chance.choice(nodes).url + name))
            for each in nodes:
                each.skip(1)
            await asyncio.sleep(0.01)
        if own_engine.process is None:
            own_engine.start()
        for proxy in proxies:
            proxy.heal()

        async def is_right() -> bool:
            for each in nodes:
                each.skip(0.5)
            await asyncio.sleep(0.02)
            if not all(each.hub.health().ok for each in nodes):
                return False
            return all([await each.users() == sorted(there) for each in nodes])

        async with asyncio.timeout(40):
            while not await is_right():
                pass
        for name in {str(user) for _, user in events.log}:
            joins, leaves = events.counts()["join", name], events.counts()["leave", name]
            # A server that is killed may have members again that had left.
            assert joins >= leaves or end == signal.SIGKILL, name
