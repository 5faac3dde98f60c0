"""Settings of rooms by pattern: the most specific pattern counts."""

from __future__ import annotations

import pytest

from wshub import ConfigurationError, Hub, RoomConfig
from wshub.core.room_configs import RoomConfigs

CLOSE, OLDEST, LATEST = (RoomConfig(slow_consumer=policy) for policy in ("close", "drop_oldest", "latest"))


def configured(**patterns: RoomConfig) -> RoomConfigs:
    configs = RoomConfigs()
    for pattern, config in patterns.items():
        configs.set(pattern, config)
    return configs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chat:1", OLDEST),
        ("chat:", OLDEST),
        ("chat", CLOSE),
        ("chat:vip:1", LATEST),
        ("", CLOSE),
        ("*", CLOSE),
        ("chat:*", OLDEST),
    ],
)
def test_the_pattern_with_the_most_characters_counts(name: str, expected: RoomConfig) -> None:
    configs = configured(**{"*": CLOSE, "chat:*": OLDEST, "chat:vip:*": LATEST})
    assert configs.find(name) is expected


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_patterns_of_one_length_the_longer_beginning_counts(order: int) -> None:
    configs = configured(**dict([("ab*c", CLOSE), ("a*bc", OLDEST)][::order]))
    assert configs.find("ab-bc") is CLOSE


def test_a_room_with_settings_of_its_own_has_these() -> None:
    configs = configured(**{"chat:*": OLDEST, "chat:1": LATEST})
    assert configs.find("chat:1") is LATEST
    assert configs.find("chat:2") is OLDEST


def test_the_ends_of_a_pattern_do_not_overlap() -> None:
    configs = configured(**{"aba*aba": CLOSE})
    assert configs.find("aba") is None
    assert configs.find("ababa") is None
    assert configs.find("abaaba") is CLOSE


def test_the_settings_of_a_pattern_can_be_replaced() -> None:
    configs = configured(**{"a*": CLOSE})
    configs.set("a*", LATEST)
    assert configs.find("abc") is LATEST


def test_a_pattern_with_two_wildcards_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r'one "\*", not 2'):
        Hub().configure_room("a*b*", slow_consumer="close")
