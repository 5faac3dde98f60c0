"""``Hub.stats`` returns exactly the counters that ``wshub.core.stats_types`` describes."""

from __future__ import annotations

from wshub import Hub
from wshub.core.stats_types import CompressionStats, DroppedMessages, HubStats, RoomStats


def test_every_counter_of_a_hub_is_described() -> None:
    stats = Hub().stats()
    assert stats.keys() == HubStats.__required_keys__
    assert stats["dropped"].keys() == DroppedMessages.__required_keys__
    assert stats["compression"].keys() == CompressionStats.__required_keys__


def test_every_counter_of_a_room_is_described() -> None:
    stats = Hub().stats(room="somewhere")
    assert stats.keys() == RoomStats.__required_keys__
    assert stats["dropped"].keys() == DroppedMessages.__required_keys__
