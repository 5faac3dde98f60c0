"""The messages of one node to one room are taken in the order in which it has sent them, whatever way they came."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import websockets

from tests.support.cluster_nodes import HubNode, member, receive, serving_node
from wshub import Hub
from wshub.brokers.envelope import decode_envelope, encode_envelope
from wshub.brokers.memory import MemoryBroker
from wshub.brokers.memory_engine import MemoryEngine

LARGEST_NUMBER = 0xFFFF_FFFF
MANY_NODES = 10_000


@contextlib.asynccontextmanager
async def node_with_a_member(room: str = "room") -> AsyncIterator[tuple[HubNode, websockets.ClientConnection]]:
    async with serving_node(MemoryBroker(MemoryEngine())) as node, member(node, room) as client:
        yield node, client


def arrive(node: HubNode, text: str, number: int, sender: int = 7, *, kind: str = "room", room: str = "room") -> None:
    name = {"room": room, "user": "ann", "all": ""}[kind]
    node.hub._cluster.receive(encode_envelope(kind, name, text.encode(), node=sender, number=number))


@pytest.mark.parametrize("kind", ["room", "user", "all"])
async def test_an_envelope_does_not_follow_a_later_one_of_its_node(kind: str) -> None:
    async with node_with_a_member("user:ann" if kind == "user" else "room") as (node, client):
        for text, number in (("5", 5), ("4", 4), ("5 again", 5), ("9", 9), ("6", 6), ("10", 10)):
            arrive(node, text, number, kind=kind)
        assert await receive(client, 3) == ["5", "9", "10"]
        assert node.stats.ignored.late == 3
        assert node.stats.received == node.stats.delivered + node.stats.ignored.total


async def test_each_node_has_numbers_of_its_own_and_programs_without_a_hub_have_none() -> None:
    async with node_with_a_member() as (node, client):
        arrive(node, "7: 5", 5)
        arrive(node, "8: 1", 1, sender=8)
        # Both nodes have the same place in a table.
        arrive(node, "far: 2", 2, sender=7 + (1 << 40))
        for text in ("first", "second"):
            arrive(node, text, 0, sender=0)
        assert await receive(client, 5) == ["7: 5", "8: 1", "far: 2", "first", "second"]
        assert node.stats.ignored.late == 0


async def test_between_two_rooms_there_is_no_order() -> None:
    # A broker may have several connections.
    async with node_with_a_member() as (node, client), member(node, "other") as other:
        arrive(node, "2", 2)
        arrive(node, "1", 1, room="other")
        arrive(node, "0", 0, kind="all")
        assert await receive(client, 2) == ["2", "0"]
        assert await receive(other, 2) == ["1", "0"]


async def test_numbers_begin_again_after_the_largest_one() -> None:
    async with node_with_a_member() as (node, client):
        for number in (LARGEST_NUMBER - 1, LARGEST_NUMBER, 0, LARGEST_NUMBER, 1):
            arrive(node, str(number), number)
        assert await receive(client, 4) == [str(LARGEST_NUMBER - 1), str(LARGEST_NUMBER), "0", "1"]
        assert node.stats.ignored.late == 1


async def test_any_number_of_nodes_is_heard() -> None:
    async with node_with_a_member() as (node, client):
        for sender in range(1, MANY_NODES + 1):
            arrive(node, str(sender), 1, sender)
        assert await receive(client, MANY_NODES) == [str(sender) for sender in range(1, MANY_NODES + 1)]


async def test_what_was_published_before_the_start_does_not_count_as_late() -> None:
    engine = MemoryEngine()
    async with serving_node(MemoryBroker(engine)) as node, member(node, "room") as client:
        hub = Hub(broker=MemoryBroker(engine), name="hub")
        hub.bind()
        published = asyncio.create_task(hub.publish("before", room="room"))
        await asyncio.sleep(0)
        await published
        hub.broadcast("after", room="room")
        assert await receive(client, 2) == ["before", "after"]
        await hub.close()


@pytest.mark.parametrize("number", [0, 1, LARGEST_NUMBER])
async def test_an_envelope_that_has_waited_gets_the_next_number_and_stays_as_it_was(number: int) -> None:
    async with node_with_a_member() as (node, _):
        made = encode_envelope("user", "ann", b"x", node=3, number=number, sent_at=4, key="k")
        expected = node.hub._cluster.next_number() + 1
        changed = decode_envelope(node.hub._cluster.renumbered(made))
        assert changed == decode_envelope(made)._replace(number=expected)
