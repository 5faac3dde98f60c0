"""The nodes that a node knows: by heartbeats, on a clock that only the test moves. What commands may hold."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.serving_hub import Clock
from wshub import BrokerUnavailable, Hub
from wshub.brokers.envelope import decode_envelope, encode_envelope
from wshub.brokers.interface import NodeInfo
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.core.cluster_commands import HEARTBEAT_PERIOD, MAX_MISSED, MAX_NODES, NODE_TIMEOUT


class Node:
    """A hub of a cluster whose heartbeats the test can stop."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.cluster: Any = hub._cluster

    async def known(self) -> int:
        return len(await self.hub.nodes()) - 1

    async def deaf_ones(self) -> list[str]:
        """Return the ids of the nodes that do not hear this one, as far as it knows."""
        return [other.info.id for other in await self.hub.nodes() if not other.hears_this_node]

    def record_sent(self) -> list[dict[str, Any]]:
        """Return a list that gets every command that the node sends from now on."""
        sent: list[dict[str, Any]] = []
        send = self.cluster.broker.send

        def recorded(channel: str, envelope: bytes) -> bool:
            decoded = decode_envelope(envelope)
            if decoded.kind == "control":
                sent.append({**json.loads(decoded.payload), "channel": channel, "sent_at": decoded.sent_at})
            return send(channel, envelope)

        self.cluster.broker_send = recorded
        return sent

    def receive(self, node: int, command: object) -> None:
        """Have a command of another node arrive."""
        body = command if isinstance(command, bytes) else json.dumps(command).encode()
        self.cluster.receive(encode_envelope("control", "", body, node=node))

    def heartbeats_arrive(self, count: int) -> None:
        """Have the heartbeats of new nodes arrive in one iteration of the loop."""
        for number in range(1, count + 1):
            self.receive(number, {"do": "heartbeat", "info": {"pid": number}, "connections": 1, "hears": 1})

    @property
    def stats(self) -> Any:
        return self.hub.stats().cluster


@contextlib.asynccontextmanager
async def nodes(count: int, clock: Clock) -> AsyncIterator[list[Node]]:
    engine = MemoryEngine()
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            hub = await stack.enter_async_context(Hub(clock=clock, broker=MemoryBroker(engine)))
            await hub.broker_started()
            found.append(Node(hub))
        await settled()
        yield found


async def settled() -> None:
    """Let all that is under way in memory arrive."""
    for _ in range(20):
        await asyncio.sleep(0)


async def pass_for(seconds: float, clock: Clock, *sweeping: Node) -> None:
    """Let time pass, a second at a time, in which these nodes sweep and the others hang."""
    for _ in range(int(seconds)):
        clock.now += 1
        for node in sweeping:
            node.cluster.sweep(clock.now)
        await settled()


async def test_a_new_node_is_known_at_once_on_both_sides() -> None:
    async with nodes(3, Clock()) as (one, two, three):
        assert [await node.known() for node in (one, two, three)] == [2, 2, 2]


async def test_a_node_that_is_silent_is_forgotten_and_found_again() -> None:
    clock = Clock()
    async with nodes(2, clock) as (one, two):
        await pass_for(NODE_TIMEOUT, clock, one)
        assert await one.known() == 1
        await pass_for(1, clock, one)
        assert await one.known() == 0
        await pass_for(1, clock, one, two)
        assert await one.known() == 1


async def test_a_node_that_lives_stays_known() -> None:
    clock = Clock()
    async with nodes(2, clock) as (one, two):
        await pass_for(10 * NODE_TIMEOUT, clock, one, two)
        (_, other) = await one.hub.nodes()
        assert other.heard_ms <= HEARTBEAT_PERIOD * 1000
        assert other.hears_this_node


async def test_a_node_that_hears_nothing_is_noticed_by_the_others_within_15_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    async with nodes(3, clock) as (one, two, deaf):
        await pass_for(2 * NODE_TIMEOUT, clock, one, two, deaf)
        # It sends on, and nothing that arrives there is handled.
        deaf.cluster.commands.received = lambda node, body: None
        with caplog.at_level(logging.WARNING, "wshub.broker"):
            await pass_for(15, clock, one, two, deaf)
        for node in (one, two):
            assert await node.deaf_ones() == [deaf.cluster.info.id]
        assert len([record for record in caplog.records if "does not hear this node" in record.message]) == 2
        del deaf.cluster.commands.received
        await pass_for(NODE_TIMEOUT, clock, one, two, deaf)
        assert [await node.deaf_ones() for node in (one, two, deaf)] == [[], [], []]


async def test_only_the_node_that_is_not_heard_learns_of_it() -> None:
    clock = Clock()
    async with nodes(3, clock) as (one, two, three):
        await pass_for(2 * NODE_TIMEOUT, clock, one, two, three)
        received, of_one = three.cluster.commands.received, one.cluster.info.id
        three.cluster.commands.received = lambda node, body: None if node == of_one else received(node, body)
        await pass_for(15, clock, one, two, three)
        assert await one.deaf_ones() == [three.cluster.info.id]
        assert await two.deaf_ones() == []
        three.cluster.commands.received = received
        await pass_for(NODE_TIMEOUT, clock, one, two, three)
        assert await one.deaf_ones() == []


async def test_a_node_that_hears_no_other_does_not_hear_this_one_however_many_it_misses() -> None:
    clock = Clock()
    async with nodes(1, clock) as (one,):
        for hears, deaf in ((1, []), (0, []), (1, []), (0, [f"{7:016x}"]), (1, [])):
            one.receive(7, {"do": "heartbeat", "info": {}, "hears": hears, "misses": []})
            # A new node has ten seconds.
            assert await one.deaf_ones() == deaf
            clock.now += 4


async def test_a_heartbeat_is_short_however_many_nodes_there_are() -> None:
    clock = Clock()
    async with nodes(1, clock) as (one,):
        one.heartbeats_arrive(1_000)
        sent = one.record_sent()
        await pass_for(2 * NODE_TIMEOUT, clock, one)
        assert sent[0]["hears"] == 1_000
        assert sent[0]["misses"] == []
        assert sent[-1]["hears"] == 0
        assert sent[-1]["misses"] == [f"{number:016x}" for number in range(1_000 - MAX_MISSED + 1, 1_001)]
        assert max(len(json.dumps(command)) for command in sent) < 1_200
        # A node that says goodbye or is heard again is not missed.
        one.receive(1_000, {"do": "goodbye"})
        one.receive(999, {"do": "heartbeat", "info": {}, "hears": 1})
        one.cluster.commands.greet()
        assert sent[-1]["misses"] == [f"{number:016x}" for number in range(1_000 - MAX_MISSED + 1, 999)]


async def test_a_command_that_an_old_node_does_not_know_is_ignored() -> None:
    async with nodes(2, Clock()) as (one, _two):
        for body in (b'{"do": "dance"}', b'{"do": "__init__"}', b'{"do": 7}', b"[]", b"null"):
            one.cluster.commands.received("0" * 16, body)
        assert await one.known() == 1


async def test_commands_say_when_they_were_sent() -> None:
    async with nodes(2, Clock()) as (one, _two):
        sent = one.record_sent()
        before = time.time_ns() // 1000
        one.cluster.commands.greet()
        assert before <= sent[0]["sent_at"] <= time.time_ns() // 1000


async def test_nothing_is_sent_after_the_goodbye() -> None:
    clock = Clock()
    async with nodes(2, clock) as (one, two):
        sent = one.record_sent()
        closing = asyncio.create_task(one.hub.close())
        while not sent:
            await asyncio.sleep(0)
        clock.now += 2 * HEARTBEAT_PERIOD
        commands = one.cluster.commands
        commands.sweep(clock.now)
        commands.greet()
        commands.change_rooms("join", "ann", "lobby")
        one.receive(7, {"do": "heartbeat", "info": {}, "hears": 1})
        one.receive(7, {"do": "survey", "topic": "wshub.room_count", "number": 1, "body": "lobby"})
        commands.close()
        assert [command["do"] for command in sent] == ["goodbye"]
        await closing
        assert await two.known() == 0


async def test_a_thousand_nodes_may_start_at_once() -> None:
    async with nodes(1, Clock()) as (one,):
        one.heartbeats_arrive(1_000)
        assert await one.known() == 1_000
        await settled()
        assert one.stats.broker.dropped == {}
        assert one.stats.rejected == 0
        assert one.cluster.broker.health().pending_bytes == 0


async def test_a_new_node_is_answered_with_a_short_heartbeat_that_nobody_answers() -> None:
    async with nodes(1, Clock()) as (one,):
        one.heartbeats_arrive(100)
        sent = one.record_sent()
        one.receive(1_000, {"do": "heartbeat", "info": {}, "hears": 1})
        (reply,) = sent
        assert reply["channel"] == f"node:{1_000:016x}"
        assert "hears" not in reply
        one.receive(1_001, reply)
        assert len(sent) == 1
        assert await one.known() == 102


async def test_more_nodes_than_the_limit_are_ignored_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with nodes(1, Clock()) as (one,):
        with caplog.at_level(logging.WARNING, "wshub.broker"):
            one.heartbeats_arrive(3 * MAX_NODES)
        assert await one.known() == MAX_NODES
        assert len(caplog.records) == 1
        await settled()
        assert one.stats.broker.dropped == {}
        # Nodes that are known stay known.
        one.receive(1, {"do": "heartbeat", "info": {}, "connections": 5, "hears": 1})
        assert (await one.hub.nodes())[1].connections == 5


@pytest.mark.parametrize(
    "command",
    [
        b"[" * 100_000,
        b'{"do": "heartbeat", "info": {"pid": 1e999}}',
        b'{"do": "heartbeat", "info": {"started_at": NaN}}',
        b'{"do": "heartbeat", "info": {"started_at": 1' + b"0" * 400 + b"}}",
        {"do": "heartbeat"},
        {"do": "heartbeat", "info": []},
        {"do": "heartbeat", "info": {"host": 7}},
        {"do": "heartbeat", "info": {}, "connections": "many"},
        {"do": "heartbeat", "info": {}, "hears": [], "misses": []},
        {"do": "heartbeat", "info": {}, "hears": 1, "misses": {}},
        {"do": "survey", "topic": [], "number": 1},
        {"do": "survey", "topic": "topic"},
        {"do": "survey", "topic": "wshub.room_count", "number": 1, "body": 7},
        {"do": "answer", "number": [], "answer": 1},
        {"do": "disconnect", "user": 7, "code": 1008, "reason": ""},
        {"do": "disconnect", "user": "ann", "code": True, "reason": ""},
        {"do": "disconnect", "user": "ann", "code": 1008},
        {"do": "join", "user": "ann", "room": 7},
        {"do": "disconnect", "user": "ann", "code": 1008, "reason": []},
        {"do": "leave", "user": {}, "room": "lobby"},
    ],
)
async def test_a_malformed_command_counts_as_unreadable(command: object) -> None:
    async with nodes(1, Clock()) as (one,):
        sent = one.record_sent()
        one.receive(7, command)
        assert one.stats.ignored.unreadable == 1
        assert one.stats.ignored.failed == 0
        assert await one.known() == 0
        assert sent == []


async def test_a_disconnect_that_no_other_node_gets_counts_as_rejected() -> None:
    engine = MemoryEngine()
    async with Hub(broker=MemoryBroker(engine)) as hub:
        await hub.broker_started()
        engine.stop()
        await settled()
        before = Node(hub).stats.rejected
        with pytest.raises(BrokerUnavailable):
            await hub.disconnect_user("ann")
        assert Node(hub).stats.rejected == before + 1


async def test_commands_about_users_refuse_what_cannot_be_sent() -> None:
    async with nodes(2, Clock()) as (one, _two):
        sent = one.record_sent()
        commands = one.cluster.commands
        for room in (7, None, b"lobby"):
            with pytest.raises(TypeError, match="room"):
                commands.change_rooms("join", "ann", room)
            with pytest.raises(TypeError, match="room"):
                commands.change_rooms("leave", "ann", room)
        with pytest.raises(TypeError, match="reason"):
            await commands.disconnect_user("ann", 1008, b"bytes")
        assert sent == []


async def test_names_with_a_lone_surrogate_travel_in_commands() -> None:
    async with nodes(2, Clock()) as (one, _two):
        sent = one.record_sent()
        one.cluster.commands.change_rooms("join", "\ud800", "\udfff")
        assert (sent[0]["user"], sent[0]["room"]) == ("\ud800", "\udfff")
        one.receive(7, sent[0])
        assert one.stats.ignored.unreadable == 0


async def test_a_program_that_only_publishes_is_no_receiver() -> None:
    engine = MemoryEngine()
    async with nodes(0, Clock()):
        broker = MemoryBroker(engine)

        class Events:
            reactor: Any = None
            now = staticmethod(time.monotonic)

        await broker.start(NodeInfo(id="7" * 16, hub="hub", receives=False), Events())  # type: ignore[arg-type]
        assert broker.stats().subscriptions == 0
        async with Hub(broker=MemoryBroker(engine)) as hub:
            await hub.broker_started()
            assert (await hub.publish("hello")).receivers == 0
            assert (await broker.publish("all", b"envelope")).receivers == 1
        await broker.close()
