"""Rooms with history and presence behind Sentinels: a failover is followed, and what it has lost is told."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.broker_node import until
from tests.support.history_nodes import ROOM, client_of, history_node, publish_at_last
from tests.support.presence_nodes import Events, are, node, told
from tests.support.redis_engine import RedisEngine
from tests.support.redis_sentinel import SentinelSetup, running_sentinels
from tests.support.serving_hub import connected
from wshub.brokers.redis import RedisBroker

# Each engine with one of the loops. The second one takes as long as the first.
PAIRS = [("redis", "uvloop"), pytest.param("valkey", "asyncio", marks=pytest.mark.long)]


def broker_of(setup: SentinelSetup) -> RedisBroker:
    return RedisBroker(setup.url, address_remap=setup.remap)


def subscribers(engine: RedisEngine) -> int:
    """Return how many nodes hear an engine; -1 if it ends the connection of the test, as Sentinels have it do."""
    try:
        return engine.command("CLIENT", "LIST", "TYPE", "pubsub").count(":subscriber")
    except ConnectionError:
        return -1


@pytest.mark.failure("another engine takes over, and has all messages")
@pytest.mark.parametrize(("kind", "run"), PAIRS, indirect=["run"])
async def test_a_failover_that_loses_nothing_is_noticed_by_nobody(kind: str) -> None:
    events = Events()
    with running_sentinels(kind) as setup:
        async with (
            history_node(broker_of(setup)) as one,
            history_node(broker_of(setup)) as two,
            client_of(two) as member,
            node(events, broker_of(setup)) as three,
            node(events, broker_of(setup)) as four,
            connected(three.url + "ann"),
            connected(four.url + "bob"),
        ):
            for number in range(5):
                await one.hub.publish(str(number), room=ROOM)
            await are(four, "ann", "bob")
            old = setup.primary
            await until(lambda: replicated(setup))
            await asyncio.to_thread(setup.failover)
            await until(lambda: subscribers(old) == 0)
            await publish_at_last(one, "after")
            await until(lambda: two.skip() or member.data[-1:] == ["after"])
            assert (member.gaps, member.data) == ([], ["0", "1", "2", "3", "4", "after"])
            await until(lambda: all(each.skip(1) or each.hub.health().ok for each in (three, four)))
            async with connected(four.url + "cid"):
                await are(three, "ann", "bob", "cid")
                await told(events, {("join", name): 1 for name in ("ann", "bob", "cid")}, three, four)


def replicated(setup: SentinelSetup) -> bool:
    """Whether the replica has all that the primary has."""
    fields = dict(
        line.split(":", 1) for line in setup.primary.command("INFO", "replication").splitlines() if ":" in line
    )
    return f"offset={fields['master_repl_offset']}," in fields["slave0"]


@pytest.mark.failure("another engine takes over, and has not got the newest messages")
@pytest.mark.parametrize(("kind", "run"), PAIRS, indirect=["run"])
async def test_messages_that_only_an_old_primary_has_are_told_as_lost(kind: str) -> None:
    """Only the Sentinels lose it. It takes messages that the new primary never gets."""
    with running_sentinels(kind, is_proxied=True) as setup:
        async with (
            history_node(broker_of(setup)) as one,
            history_node(broker_of(setup)) as two,
            client_of(two) as member,
        ):
            await one.hub.publish("0", room=ROOM)
            # The nodes do not ask the Sentinels before the messages are published that are lost.
            for each in (one, two):
                each.clock.hold()
                # A question that is due is asked before.
                each.skip()
            followers = [each.hub.broker._session._follower for each in (one, two)]  # type: ignore[union-attr]
            await until(lambda: all(each._task is None for each in followers))
            old = setup.primary
            setup.lose_first_engine()
            await asyncio.to_thread(setup.wait_for_failover, old)
            await until(lambda: "role:master" in setup.primary.command("INFO", "replication"))
            for number in range(3):
                await one.hub.publish(f"lost {number}", room=ROOM)
            await until(lambda: member.data == ["0", "lost 0", "lost 1", "lost 2"])
            for each in (one, two):
                each.clock.go_on()
                each.clock.skipped += 5
            await until(lambda: one.skip() or two.skip() or subscribers(old) == 0)
            # More than were lost: the offsets alone do not tell.
            for number in range(5):
                await publish_at_last(one, f"new {number}")
            await until(lambda: one.skip() or two.skip() or member.gaps)
            last = await publish_at_last(one, "end")
            await until(lambda: member.data[-1:] == ["end"])
            assert member.gaps == ["epoch"]
            assert member.position == last
            history = await two.hub.history(ROOM)
            assert not any("lost" in str(each.data) for each in history.publications)
