"""``Hub.stats``: an immutable value with typed fields."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest

from tests.support.serving_hub import connected, serving
from wshub import EventHandler, Hub, HubStats, RoomStats


def test_the_counts_of_a_new_hub_are_zero() -> None:
    stats = Hub().stats()
    assert isinstance(stats, HubStats)
    assert stats.connections == stats.connections_opened == stats.rooms == 0
    assert stats.messages_accepted == stats.dropped.total == 0
    assert stats.bytes_pending == 0
    assert stats.closes == stats.refused == {}
    assert stats.cluster is None
    assert stats.handshake_seconds is stats.handler_seconds is stats.ping_seconds is None


def test_the_counts_of_an_unknown_room_are_zero() -> None:
    stats = Hub().stats(room="somewhere")
    assert isinstance(stats, RoomStats)
    assert stats.connections == stats.messages_accepted == stats.dropped.total == 0


def test_counts_cannot_be_changed() -> None:
    hub = Hub()
    stats = hub.stats()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.connections = 5  # type: ignore[misc]
    assert stats.refused is not hub.stats().refused


def test_counts_become_a_dict_that_json_takes() -> None:
    counts = Hub().stats().asdict()
    assert counts["dropped"] == {"closed": 0, "slow": 0, "newest": 0, "oldest": 0, "replaced": 0}
    assert json.loads(json.dumps(counts))["compression"] == {"compressions": 0, "bytes_in": 0, "bytes_out": 0}


async def test_a_connection_counts_as_opened_after_it_has_closed_too() -> None:
    async with serving(EventHandler()) as (hub, url):
        async with connected(url), connected(url):
            assert (hub.stats().connections_opened, hub.stats().connections) == (2, 2)
        while hub.connection_count:
            await asyncio.sleep(0)
        assert (hub.stats().connections_opened, hub.stats().connections) == (2, 0)
