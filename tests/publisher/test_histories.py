"""Publishers and rooms with history: what they send is stored, and arrives with its position."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_node import until
from tests.support.history_nodes import ROOM, HistoryNode, as_json, client_of, gap_as_json, history_node
from tests.support.nats_engine import running_jetstream
from tests.support.redis_engine import running_engine
from wshub import BrokerUnavailable, ConfigurationError, HistoryConfig, MisuseError
from wshub.brokers.choosing import broker_from_url
from wshub.publisher import AsyncPublisher, Publisher

CONFIG = HistoryConfig(size=50, encode=as_json, encode_gap=gap_as_json)

# A publisher needs only the limits.
HISTORIES = {"room*": HistoryConfig(size=50)}


@pytest.fixture(params=["redis", "valkey", "workers", "nats"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of each broker that keeps histories between programs."""
    if request.param == "workers":
        yield f"workers:{request.getfixturevalue('socket_directory')}"
        return
    running = running_jetstream("current") if request.param == "nats" else running_engine(request.param)
    with running as engine:
        yield engine.url


@contextlib.asynccontextmanager
async def node_at(url: str) -> AsyncIterator[HistoryNode]:
    broker = broker_from_url(url)
    assert broker is not None
    async with history_node(broker, CONFIG) as node:
        yield node


async def test_members_get_what_publishers_send_with_its_position(url: str) -> None:
    async with node_at(url) as node, client_of(node) as client:
        async with AsyncPublisher(url, histories=HISTORIES) as publisher:
            await node.hub.publish("from the hub", room=ROOM)
            first = await publisher.publish("from a loop", room=ROOM, publisher="ann")
        with Publisher(url, histories=HISTORIES) as publisher:
            second = await asyncio.to_thread(publisher.publish, b"from a thread", room=ROOM)
        assert first.position is not None
        assert second.position is not None
        assert (first.position.offset, second.position.offset) == (2, 3)
        assert first.position.epoch == second.position.epoch
        history = await node.hub.history(ROOM)
        assert [found.data for found in history.publications] == ["from the hub", "from a loop", b"from a thread"]
        assert [found.publisher for found in history.publications] == [None, "ann", None]
        await until(lambda: len(client.data) >= 2)
        assert client.data[:2] == ["from the hub", "from a loop"]


async def test_a_client_that_was_away_gets_what_a_publisher_has_sent(url: str) -> None:
    async with node_at(url) as node:
        async with client_of(node) as client:
            position = client.position
        async with AsyncPublisher(url, histories=HISTORIES) as publisher:
            for number in range(60):
                await publisher.publish(str(number), room=ROOM)
                if number == 9:
                    async with client_of(node, position) as back:
                        assert back.data == [str(number) for number in range(10)]
        # The publisher has trimmed the history as a hub would have.
        assert len((await node.hub.history(ROOM)).publications) == 50
        async with client_of(node, position) as late:
            assert late.gaps == ["trimmed"]


async def test_a_message_with_an_idempotency_key_is_stored_once(url: str) -> None:
    async with node_at(url) as node, client_of(node) as client, AsyncPublisher(url, histories=HISTORIES) as publisher:
        published = await asyncio.gather(
            *(publisher.publish("once", room=ROOM, idempotency_key="order 7") for _ in range(20))
        )
        assert len({found.position for found in published}) == 1
        assert [found.is_duplicate for found in published].count(False) == 1
        by_hub = await node.hub.publish("once", room=ROOM, idempotency_key="order 7")
        assert by_hub.is_duplicate
        await publisher.publish("after it", room=ROOM)
        await until(lambda: client.data == ["once", "after it"])


async def test_other_rooms_get_plain_messages(url: str) -> None:
    async with node_at(url) as node, AsyncPublisher(url, histories=HISTORIES) as publisher:
        for receivers in ({"room": "lobby"}, {"user": "ann"}, {}):
            published = await publisher.publish("plain", **receivers)
            assert published.position is None
            with pytest.raises(MisuseError, match="histories="):
                await publisher.publish("plain", **receivers, idempotency_key="a key")
        assert (await node.hub.history(ROOM)).publications == ()


async def test_messages_of_many_publishers_have_offsets_without_holes(url: str) -> None:
    async with node_at(url) as node, client_of(node) as client:
        publishers = [AsyncPublisher(url, histories=HISTORIES) for _ in range(3)]
        published = await asyncio.gather(
            *(publisher.publish(f"{number}", room=ROOM) for number in range(40) for publisher in publishers)
        )
        for publisher in publishers:
            await publisher.close()
        assert sorted(found.position.offset for found in published if found.position) == list(range(1, 121))
        await until(lambda: len(client.data) == 120)
        assert [offset for _, offset in client.offsets] == list(range(1, 121))


async def test_a_message_that_no_worker_can_store_is_refused(socket_directory: Path) -> None:
    async with AsyncPublisher(f"workers:{socket_directory}", histories=HISTORIES) as publisher:
        with pytest.raises(BrokerUnavailable, match="no worker keeps histories"):
            await publisher.publish("nobody is there", room=ROOM)


@pytest.mark.parametrize("make", [Publisher, AsyncPublisher])
@pytest.mark.parametrize(
    ("url", "histories", "said"),
    [
        ("redis://localhost", {ROOM: {"size": 5}}, "must be a HistoryConfig"),
        ("redis://localhost", [ROOM], "must be a dict"),
        ("redis://localhost", {"*:*": HistoryConfig()}, 'one "\\*"'),
    ],
)
def test_histories_that_cannot_be_are_refused(make: Callable[..., Any], url: str, histories: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make(url, histories=histories)


async def test_what_a_publisher_without_the_settings_sends_is_dropped_and_counted(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with node_at(url) as node, client_of(node) as client, AsyncPublisher(url) as publisher:
        await publisher.publish("no position", room=ROOM)
        cluster = node.hub.stats
        await until(lambda: cluster().cluster.ignored.without_position == 1)  # type: ignore[union-attr]
        assert client.data == []
    assert "without its history" in caplog.text
