"""Settings are checked when they are created, and are immutable."""

from __future__ import annotations

import dataclasses

import pytest

from wshub import ConfigurationError, Hub, HubConfig, MisuseError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_connections", 0),
        ("max_connections", "many"),
        ("max_message_size", -1),
        ("max_message_size", True),
        ("ping_interval_ms", 0.5),
        ("pong_timeout_ms", None),
        ("close_timeout_ms", 0),
        ("handshake_timeout_ms", 2**40),
        ("max_send_buffer", 0),
        ("enable_compression", 1),
        ("allowed_origins", "https://example.com"),
        ("allowed_origins", ("example.com",)),
        ("allowed_origins", ("https://example.com/",)),
        ("allowed_origins", (3,)),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_the_name_of_its_setting(name, value) -> None:
    with pytest.raises(ConfigurationError, match=name):
        HubConfig(**{name: value})


def test_settings_are_frozen_and_origins_become_a_tuple() -> None:
    config = HubConfig(allowed_origins=["https://example.com"])  # type: ignore[arg-type]
    assert config.allowed_origins == ("https://example.com",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_connections = 1  # type: ignore[misc]


def test_a_hub_is_made_with_a_config_and_nothing_else() -> None:
    assert Hub().config == HubConfig()
    with pytest.raises(MisuseError, match="HubConfig"):
        Hub({"max_connections": 1})  # type: ignore[arg-type]
