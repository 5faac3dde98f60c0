"""Rooms with history at a Redis engine that refuses to write, because it loads its data or is a replica."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.support.broker_node import until
from tests.support.history_nodes import ROOM, HistoryNode, client_of, history_node, publish_at_last
from tests.support.redis_engine import ENGINES_AND_LOOPS, RedisEngine, running_engine
from wshub.brokers.redis import RedisBroker
from wshub.errors import BrokerError

KEYS = 2000


async def refusal(node: HistoryNode, beginning: str) -> None:
    """Publish until the engine refuses it, with an error that begins so."""
    while True:
        try:
            await node.hub.publish("refused", room=ROOM)
        except BrokerError as error:
            if str(error).startswith(beginning):
                return
        else:
            raise AssertionError("the engine has taken a message")
        node.skip()
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(("kind", "run"), ENGINES_AND_LOOPS, indirect=["run"])
async def test_members_get_everything_from_an_engine_that_loads_its_data(kind: str) -> None:
    # It loads one key in a millisecond, and answers meanwhile.
    slowly = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    with running_engine(kind, *slowly) as engine:
        async with history_node(RedisBroker(engine.url)) as node, client_of(node) as member:
            for text in "123":
                await node.hub.publish(text, room=ROOM)
            await until(lambda: member.data == ["1", "2", "3"])
            engine.command("DEBUG", "POPULATE", KEYS)
            engine.command("SAVE")
            engine.stop(signal.SIGKILL)
            starting = asyncio.create_task(asyncio.to_thread(engine.start))
            await refusal(node, "LOADING")
            await starting
            await publish_at_last(node, "4")
            await until(lambda: node.skip() or member.data[-1:] == ["4"])
            assert member.data == ["1", "2", "3", "4"]
            assert not member.gaps
            assert node.hub.stats().cluster.broker.dropped["refused"] > 0
            # Nothing is left of the refusals.
            await until(lambda: node.skip() or not node.hub._histories._failed)


async def test_a_replica_refuses_messages_until_it_is_a_primary_again(own_engine: RedisEngine) -> None:
    async with history_node(RedisBroker(own_engine.url)) as node, client_of(node) as member:
        await node.hub.publish("1", room=ROOM)
        # Nobody answers there, so it keeps its data.
        own_engine.command("REPLICAOF", "127.0.0.1", "1")
        rejected = node.hub.stats().cluster.rejected
        with pytest.raises(BrokerError, match="READONLY"):
            await node.hub.publish("2", room=ROOM)
        assert node.hub.stats().cluster.rejected == rejected + 1
        own_engine.command("REPLICAOF", "NO", "ONE")
        await publish_at_last(node, "3")
        await until(lambda: node.skip() or member.data[-1:] == ["3"])
        assert member.data == ["1", "3"]
        assert not member.gaps
