"""Hubs at a Redis engine that fails: what the program sees, what clients see, and where it is counted.

All nodes of a test have one clock, which only the test moves. So nothing is sent that the test has not sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import pytest
import websockets

from tests.brokers.test_redis_subscriptions import connection_of, user_with_channels
from tests.support.broker_node import until
from tests.support.cluster_nodes import (
    LARGE_BUFFER,
    HubNode,
    all_know,
    member,
    pass_for,
    pass_until,
    receive,
    receive_until,
    serving_node,
)
from tests.support.redis_engine import RedisEngine
from tests.support.serving_hub import Clock, connected
from tests.support.tcp_proxy import TcpProxy, proxy_to
from wshub import BrokerError, BrokerUnavailable, BrokerUncertain
from wshub.brokers.envelope import encode_envelope
from wshub.brokers.redis import RedisBroker
from wshub.brokers.redis_probes import INTERVAL

MAX_PENDING = 8 * 1024 * 1024

SECONDS_SINCE_THE_START = 2
"""Seconds on the clock of a pair since its brokers have started."""


@pytest.fixture
def proxy(own_engine: RedisEngine) -> Iterator[TcpProxy]:
    """The way to the engine of some nodes."""
    with proxy_to("127.0.0.1", own_engine.port) as proxy:
        yield proxy


class Pair(NamedTuple):
    """Two nodes, and a member of the room ``room`` at each of them."""

    one: HubNode
    two: HubNode
    near: websockets.ClientConnection
    far: websockets.ClientConnection


@contextlib.asynccontextmanager
async def pair(clock: Clock, port_of_one: int, port_of_two: int) -> AsyncIterator[Pair]:
    """Join two nodes through these ports, behind which is one engine."""

    def node(port: int) -> contextlib.AbstractAsyncContextManager[HubNode]:
        return serving_node(RedisBroker(f"redis://127.0.0.1:{port}"), clock=clock, max_send_buffer=LARGE_BUFFER)

    async with (
        node(port_of_one) as one,
        node(port_of_two) as two,
        member(one, "room") as near,
        member(two, "room") as far,
    ):
        await all_know(one, two)
        # A connection that has lasted for a second is made again at once.
        await pass_for(SECONDS_SINCE_THE_START, clock, one, two)
        yield Pair(one, two, near, far)


@pytest.mark.failure("Redis is down, or cannot be reached")
@pytest.mark.parametrize("cause", ["down", "unreachable"])
async def test_without_an_engine_each_node_serves_its_own_clients(
    own_engine: RedisEngine, proxy: TcpProxy, clock: Clock, cause: str
) -> None:
    async with pair(clock, proxy.port, proxy.port) as (one, two, near, far):
        if cause == "down":
            own_engine.stop(signal.SIGKILL)
        else:
            proxy.refuses = True
            for connection in list(proxy.open_connections()):
                connection.reset()
        await until(lambda: not any(node.stats.broker.peers for node in (one, two)))
        rejected = one.stats.rejected
        assert one.hub.broadcast("1", room="room") == 1
        with pytest.raises(BrokerUnavailable):
            await one.hub.publish("2", room="room")
        assert two.hub.broadcast("3", room="room") == 1
        assert await receive(near, 2) == ["1", "2"]
        assert await far.recv() == "3"
        await pass_for(4, clock, one, two)
        health = one.hub.health()
        assert (health.ok, health.broker.state) == (False, "disconnected")
        # Heartbeats are rejected as well.
        assert one.stats.rejected == one.dropped["disconnected"] >= rejected + 2
        assert one.stats.interruptions == two.stats.interruptions == {"disconnected": 1}
        if cause == "down":
            own_engine.start()
        else:
            proxy.heal()
        await pass_until(lambda: one.hub.health().ok and two.hub.health().ok, clock, one, two)
        await two.hub.subscribed("room")
        await one.hub.publish("4", room="room")
        assert await near.recv() == await far.recv() == "4"


@pytest.mark.failure("the answer of Redis is lost")
@pytest.mark.parametrize("lost", ["to_client", "to_server"])
async def test_if_the_answer_is_lost_members_elsewhere_have_a_message_once_or_not_at_all(
    own_engine: RedisEngine, proxy: TcpProxy, clock: Clock, lost: str
) -> None:
    async with pair(clock, proxy.port, own_engine.port) as (one, two, near, far):
        publisher = await connection_of(proxy, "publisher")
        getattr(publisher, lost).is_black_hole = True
        seen = publisher.to_server.bytes_seen
        publishing = asyncio.create_task(one.hub.publish("1" * 1000, room="room"))
        await until(lambda: publisher.to_server.bytes_seen > seen + 1000)
        one.hub.broadcast("2", room="room")
        # The engine has taken both, or nothing.
        before = ["1" * 1000, "2"] if lost == "to_client" else []
        assert await receive(far, len(before)) == before
        publisher.reset()
        with pytest.raises(BrokerUncertain):
            await publishing
        await pass_until(lambda: one.hub.health().ok, clock, one, two)
        assert one.dropped["unanswered"] == 2
        await one.hub.publish("3", room="room")
        assert await far.recv() == "3"
        assert await receive(near, 3) == ["1" * 1000, "2", "3"]
        assert two.stats.interruptions == {}


@pytest.mark.failure("a connection to Redis stalls, and another takes its place")
async def test_what_the_engine_gets_late_does_not_arrive_after_newer_messages(
    own_engine: RedisEngine, proxy: TcpProxy, clock: Clock
) -> None:
    async with pair(clock, proxy.port, own_engine.port) as (one, two, near, far):
        publisher = await connection_of(proxy, "publisher")
        publisher.to_server.is_black_hole = True
        seen = publisher.to_server.bytes_seen
        stalled = []
        send = one.hub._cluster.broker_send
        one.hub._cluster.broker_send = lambda channel, envelope: stalled.append(envelope) or send(channel, envelope)
        one.hub.broadcast("1", room="room")
        one.hub._cluster.broker_send = send
        publishing = asyncio.create_task(one.hub.publish("2" * 1000, room="room"))
        await until(lambda: publisher.to_server.bytes_seen > seen + 1000)
        publisher.reset()
        with pytest.raises(BrokerUncertain):
            await publishing
        await pass_until(lambda: one.hub.health().ok, clock, one, two)
        await one.hub.publish("3", room="room")
        # The network has held the first message back until now.
        own_engine.command("PUBLISH", "wshub:hub:room:room", *stalled)
        await one.hub.publish("4", room="room")
        assert await receive(far, 2) == ["3", "4"]
        assert await receive(near, 4) == ["1", "2" * 1000, "3", "4"]
        assert one.dropped["unanswered"] == 2
        assert two.stats.ignored.late == 1


@pytest.mark.failure("Redis is slow")
async def test_a_slow_engine_delays_messages_until_eight_mebibytes_wait_and_the_newest_are_dropped(
    own_engine: RedisEngine, clock: Clock
) -> None:
    async with pair(clock, own_engine.port, own_engine.port) as (one, two, near, far):
        own_engine.pause()
        publishing = asyncio.create_task(one.hub.publish("published", room="room"))
        await asyncio.sleep(0)
        for number in range(300):
            one.hub.broadcast(str(number).rjust(65_536), room="room")
        sent_at = time.monotonic()
        assert MAX_PENDING <= one.hub.health().broker.pending_bytes < MAX_PENDING + 70_000
        dropped = one.dropped["full"]
        assert 0 < dropped == one.stats.rejected == sum(one.dropped.values())
        await pass_for(4, clock, one, two)
        assert not publishing.done()
        clock.now += 1
        one.sweep()
        with pytest.raises(BrokerUncertain):
            await publishing
        paused_ms = (time.monotonic() - sent_at) * 1000
        own_engine.resume()
        assert await far.recv() == "published"
        numbers = [int(text) for text in await receive(far, 300 - dropped)]
        assert numbers == list(range(300 - dropped))
        assert two.stats.lag_ms >= paused_ms
        await one.hub.publish("later", room="room")
        assert await far.recv() == "later"
        # Members of the same node have everything.
        assert len(await receive_until(near, "later")) == 301
        assert two.stats.interruptions == {}


@pytest.mark.failure("Redis closes a subscriber that reads too slowly")
async def test_a_subscriber_that_the_engine_closes_subscribes_again_at_once(
    own_engine: RedisEngine, clock: Clock
) -> None:
    own_engine.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 1mb 1")
    async with pair(clock, own_engine.port, own_engine.port) as (one, two, _near, far):
        for connection in one.hub.room_members("room"):
            connection.leave("room")
        reading = asyncio.create_task(receive_until(far, "end"))
        with own_engine.client() as client:
            # The node cannot read meanwhile: its loop is this one.
            for number in range(2_000):
                text = str(number).rjust(16_000).encode()
                client.send("PUBLISH", "wshub:hub:room:room", encode_envelope("room", "room", text))
                client.reply()
        # The clock stands still, so this is at once.
        await until(lambda: two.stats.interruptions and two.hub.health().ok)
        await two.hub.subscribed("room")
        await one.hub.publish("end", room="room")
        numbers = [int(text) for text in await reading]
        assert numbers == list(range(len(numbers)))
        assert 0 < len(numbers) < 2_000
        assert two.stats.interruptions == {"disconnected": 1}
        assert two.stats.broker.reconnects == 1


@pytest.mark.failure("Redis refuses a subscription")
async def test_a_room_that_the_engine_refuses_has_messages_of_its_own_node_until_it_is_allowed(
    redis_engine: RedisEngine, clock: Clock
) -> None:
    restricted = user_with_channels(redis_engine)
    async with (
        serving_node(RedisBroker(redis_engine.url), clock=clock) as one,
        serving_node(RedisBroker(restricted), clock=clock) as two,
        connected(two.url("room")) as far,
    ):
        await (await far.ping())
        with pytest.raises(BrokerError, match="NOPERM"):
            await two.hub.subscribed("room")
        assert two.stats.interruptions == {"refused": 1}
        await one.hub.publish("1", room="room")
        # Nothing else suffers: the channel of all nodes comes behind.
        await one.hub.publish("to all")
        assert await far.recv() == "to all"
        two.hub.broadcast("2", room="room")
        assert await far.recv() == "2"
        redis_engine.command("ACL", "SETUSER", "some", "&wshub:hub:room:room")
        while not redis_engine.command("PUBSUB", "NUMSUB", "wshub:hub:room:room")[1]:
            await pass_for(1, clock, one, two)
        await two.hub.subscribed("room")
        await one.hub.publish("3", room="room")
        assert await far.recv() == "3"
        assert two.stats.interruptions == {"refused": 1}


@pytest.mark.failure("a connection is up, and delivers nothing")
async def test_a_connection_that_delivers_nothing_is_found_deaf_within_15_seconds_and_made_again(
    own_engine: RedisEngine, proxy: TcpProxy, clock: Clock
) -> None:
    async with pair(clock, own_engine.port, proxy.port) as (one, two, _near, far):
        # A probe has just come back, so the next one is as far away as it ever is.
        await pass_for(int(INTERVAL) - SECONDS_SINCE_THE_START, clock, one, two)
        (await connection_of(proxy, "subscriber")).to_client.is_black_hole = True
        await one.hub.publish("1", room="room")
        seconds = await pass_until(lambda: two.hub.health().broker.state == "deaf", clock, two)
        assert seconds <= 15
        assert two.stats.interruptions == {"deaf": 1}
        await pass_until(lambda: two.hub.health().ok, clock, two)
        # An engine that stands still for a moment is late by this clock, and the other connection is made again too.
        assert two.stats.broker.reconnects >= 1
        await two.hub.subscribed("room")
        await one.hub.publish("2", room="room")
        assert await far.recv() == "2"
        assert one.hub.health().ok
