"""Several hubs that a broker joins: messages, users, commands, surveys and counts are those of the whole cluster."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.cluster_nodes import HubNode, all_know, member, serving_node
from tests.support.serving_hub import connected
from wshub import BrokerUnavailable, ConfigurationError, EventHandler, Hub, Message, MisuseError
from wshub.brokers.envelope import encode_envelope
from wshub.brokers.memory import MemoryBroker, MemoryEngine


@contextlib.asynccontextmanager
async def node(engine: MemoryEngine, *, name: str = "hub", **settings: Any) -> AsyncIterator[HubNode]:
    async with serving_node(MemoryBroker(engine), name=name, **settings) as joined:
        yield joined


@contextlib.asynccontextmanager
async def two_nodes(**settings: Any) -> AsyncIterator[tuple[HubNode, HubNode]]:
    engine = MemoryEngine()
    async with node(engine, **settings) as one, node(engine, **settings) as two:
        await all_know(one, two)
        yield one, two


@pytest.mark.parametrize("message", ["text é", b"\x00\xff", "", b"", Message("text"), "x" * 70_000])
async def test_a_message_to_a_room_reaches_its_members_on_every_node_once(message: Any) -> None:
    async with two_nodes() as (one, two), member(one, "room") as near, member(two, "room") as far:
        assert one.hub.broadcast(message, room="room") == 1
        one.hub.broadcast("end", room="room")
        expected = message.data if isinstance(message, Message) else message
        for client in (near, far):
            assert [await client.recv(), await client.recv()] == [expected, "end"]


async def test_a_message_to_all_reaches_all_connections_of_every_node() -> None:
    async with two_nodes() as (one, two), member(one, "a") as near, member(two, "b") as far:
        assert two.hub.broadcast("all") == 1
        assert await near.recv() == await far.recv() == "all"


async def test_a_hub_without_the_room_sends_to_it_too() -> None:
    async with two_nodes() as (one, two), member(two, "room") as far:
        assert one.hub.broadcast("hello", room="room") == 0
        assert await far.recv() == "hello"


async def test_an_excluded_connection_is_left_out_on_its_own_node_only() -> None:
    async with two_nodes() as (one, two), member(one, "room") as near, member(two, "room") as far:
        # Both connections have the id 1.
        one.hub.broadcast("1", room="room", exclude=1)
        one.hub.broadcast("2", room="room")
        assert [await far.recv(), await far.recv()] == ["1", "2"]
        assert await near.recv() == "2"


async def test_messages_of_one_node_arrive_in_order() -> None:
    async with two_nodes() as (one, two), member(two, "room") as far:
        for number in range(2_000):
            one.hub.broadcast(str(number), room="room")
            if number % 100 == 0:
                await asyncio.sleep(0)
        assert [await far.recv() for _ in range(2_000)] == [str(number) for number in range(2_000)]


async def test_a_call_from_another_thread_reaches_every_node() -> None:
    async with two_nodes() as (one, two), member(two, "room") as far:
        thread = threading.Thread(target=one.hub.broadcast, args=("from a thread",), kwargs={"room": "room"})
        thread.start()
        assert await far.recv() == "from a thread"
        thread.join()


async def test_the_options_of_a_message_hold_on_the_other_node() -> None:
    async with two_nodes() as (one, two), member(two, "room") as far:
        one.hub.broadcast("old", room="room", slow_consumer="latest", key="price")
        one.hub.broadcast("new", room="room", slow_consumer="latest", key="price")
        one.hub.broadcast("other", room="room", slow_consumer="latest", key="volume")
        received = []
        while "other" not in received:
            received.append(await far.recv())
        # Whether "old" had left already is a matter of time. It does not come after "new".
        assert received in (["new", "other"], ["old", "new", "other"])


async def test_hubs_of_another_name_are_not_joined() -> None:
    engine = MemoryEngine()
    async with (
        node(engine, name="chat") as chat,
        node(engine, name="game") as game,
        member(chat, "room"),
        member(game, "room") as other,
    ):
        chat.hub.broadcast("chat", room="room")
        game.hub.broadcast("game", room="room")
        assert await other.recv() == "game"
        assert len(await chat.hub.nodes()) == 1


async def test_a_message_to_a_user_reaches_all_tabs_on_every_node() -> None:
    async with (
        two_nodes() as (one, two),
        member(one, "user:ann") as near,
        member(two, "user:ann") as far,
        member(two, "user:bob") as other,
    ):
        assert one.hub.send_to_user("ann", "for ann") == 1
        two.hub.send_to_user("bob", "for bob")
        assert await near.recv() == await far.recv() == "for ann"
        assert await other.recv() == "for bob"


async def test_disconnecting_a_user_closes_connections_on_every_node() -> None:
    async with (
        two_nodes() as (one, two),
        member(one, "user:ann") as near,
        member(two, "user:ann") as far,
        member(two, "room") as anonymous,
    ):
        assert await one.hub.disconnect_user("ann", 4001, "signed out") == 1
        for client in (near, far):
            await client.wait_closed()
            assert (client.close_code, client.close_reason) == (4001, "signed out")
        # A second time does nothing.
        assert await one.hub.disconnect_user("ann", 4001, "signed out") == 0
        assert await one.hub.disconnect_user("") == 0
        one.hub.broadcast("still here")
        assert await anonymous.recv() == "still here"


async def test_a_user_joins_and_leaves_a_room_on_every_node() -> None:
    async with two_nodes() as (one, two), member(one, "user:ann"), member(two, "user:ann"):
        assert one.hub.join_user("ann", "lobby") == 1
        async with asyncio.timeout(10):
            while await one.hub.room_count("lobby") < 2:
                await asyncio.sleep(0)
            assert one.hub.leave_user("ann", "lobby") == 1
            while await one.hub.room_count("lobby"):
                await asyncio.sleep(0)


async def test_publish_says_that_the_broker_has_the_message() -> None:
    async with two_nodes() as (one, two), member(one, "room") as near, member(two, "room") as far:
        published = await one.hub.publish("hello", room="room")
        assert published.receivers is None or published.receivers >= 1
        assert await near.recv() == await far.recv() == "hello"
        with pytest.raises(MisuseError):
            await one.hub.publish("hello", room="room", user="ann")


async def test_without_a_broker_publish_reaches_this_hub() -> None:
    hub = Hub(broker="none")
    async with (
        hub.serve("127.0.0.1", 0, EventHandler()) as server,
        connected(f"ws://127.0.0.1:{server.port}") as client,
    ):
        assert (await hub.publish("hello")).receivers == 0
        assert await client.recv() == "hello"
        assert [node.connections for node in await hub.nodes()] == [1]
        assert await hub.room_count("room") == 0
        assert hub.health().ok
        assert hub.stats().cluster is None
        hub.answer_survey("double", lambda body: body * 2)
        assert list((await hub.survey("double", 7)).answers.values()) == [14]
        assert len((await hub.survey("unknown")).missing) == 1


async def test_while_the_engine_is_away_local_members_get_messages() -> None:
    engine = MemoryEngine()
    async with node(engine) as one, member(one, "room") as near:
        engine.stop()
        async with asyncio.timeout(10):
            while one.hub.health().ok:
                await asyncio.sleep(0)
        assert one.hub.broadcast("local", room="room") == 1
        with pytest.raises(BrokerUnavailable):
            await one.hub.publish("published", room="room")
        assert [await near.recv(), await near.recv()] == ["local", "published"]
        stats = one.hub.stats().cluster
        assert stats is not None
        assert stats.rejected >= 2


async def test_all_nodes_answer_a_survey() -> None:
    async with two_nodes() as (one, two):
        one.hub.answer_survey("double", lambda body: body * 2)

        async def later(body: int) -> int:
            await asyncio.sleep(0)
            return body * 3

        two.hub.answer_survey("double", later)
        survey = await one.hub.survey("double", 7)
        assert sorted(survey.answers.values()) == [14, 21]
        assert survey.missing == ()
        with pytest.raises(MisuseError):
            one.hub.answer_survey("wshub.mine", len)


async def test_a_survey_names_the_nodes_that_do_not_answer() -> None:
    async with two_nodes() as (one, two):
        one.hub.answer_survey("topic", lambda body: "here")
        two.hub.answer_survey("topic", lambda body: 1 / 0)
        survey = await one.hub.survey("topic", timeout_ms=100)
        other = two.hub.stats().cluster
        assert other is not None
        assert list(survey.answers.values()) == ["here"]
        assert survey.missing == (other.node,)


async def test_a_node_that_closes_is_no_longer_one_of_the_nodes() -> None:
    engine = MemoryEngine()
    async with node(engine) as one:
        async with node(engine) as two:
            await all_know(one, two)
        async with asyncio.timeout(10):
            while len(await one.hub.nodes()) > 1:
                await asyncio.sleep(0)


async def test_nodes_tell_their_connections_and_programs() -> None:
    async with two_nodes() as (one, _two):
        own, other = await one.hub.nodes()
        assert (own.heard_ms, own.info.hub) == (0, "hub")
        assert own.info.pid == other.info.pid
        assert own.info.id != other.info.id


async def test_a_room_that_empties_and_fills_again_stays_subscribed() -> None:
    async with two_nodes() as (one, two), member(two, "room"):
        for connection in two.hub.room_members("room"):
            connection.leave("room")
            connection.join("room")
        one.hub.broadcast("hello", room="room")
        assert two.hub.room_size("room") == 1


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"hello",
        encode_envelope("room", "room", b"\xff", node=7),
        encode_envelope("control", "", b"no JSON", node=7),
        encode_envelope("control", "", b'{"do": "heartbeat"}', node=7),
        encode_envelope("control", "", b'{"do": "answer"}', node=7),
        encode_envelope("room", "room", b"hello", node=7)[:20],
    ],
)
async def test_an_envelope_that_cannot_be_read_is_counted(envelope: bytes) -> None:
    engine = MemoryEngine()
    async with node(engine) as one, member(one, "room") as near:
        one.hub._cluster.receive(envelope)  # type: ignore[union-attr]
        stats = one.hub.stats().cluster
        assert stats is not None
        assert stats.ignored.unreadable == 1
        assert stats.received == stats.delivered + stats.ignored.total
        one.hub.broadcast("still works", room="room")
        assert await near.recv() == "still works"


async def test_another_program_reaches_a_room() -> None:
    engine = MemoryEngine()
    async with node(engine) as one, member(one, "room") as near:
        one.hub._cluster.receive(encode_envelope("room", "room", b"from elsewhere"))  # type: ignore[union-attr]
        assert await near.recv() == "from elsewhere"


async def test_a_hub_joins_again_after_it_has_closed() -> None:
    engine = MemoryEngine()
    hub = Hub(broker=MemoryBroker(engine))
    async with node(engine) as other, member(other, "room") as far:
        for number in range(3):
            async with hub:
                await hub.broker_started()
                hub.broadcast(str(number), room="room")
                assert await far.recv() == str(number)


def test_what_is_no_broker_is_refused() -> None:
    with pytest.raises(MisuseError, match="broker"):
        Hub(broker=object())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"redis://HOST.*'http'$"):
        Hub(broker="http://:secret@localhost")


def test_the_environment_names_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSHUB_BROKER", "nothing")
    with pytest.raises(ConfigurationError, match="nothing"):
        Hub()
    assert Hub(broker="none").broker is None
