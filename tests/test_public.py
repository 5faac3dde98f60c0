"""The public names: exactly the documented ones."""

from __future__ import annotations

import inspect
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import wshub
from wshub import (
    CloseCode,
    Connection,
    EventHandler,
    Frame,
    Handshake,
    Hub,
    HubConfig,
    HubSettings,
    Message,
    MessageType,
    Opcode,
    Server,
)
from wshub.core.event_handler import Handlers
from wshub.core.handler_checks import EVENTS

# Types of arguments, and a constant. They cannot have a docstring at run time.
ALIASES = {"Gap", "SlowConsumer", "UpgradeHook", "__version__"}


def test_the_package_exports_exactly_this() -> None:
    assert sorted(wshub.__all__) == [
        "BrokerError",
        "BrokerUnavailable",
        "BrokerUncertain",
        "CloseCode",
        "CompressionConfig",
        "ConfigurationError",
        "Connection",
        "ConnectionClosed",
        "ConnectionLost",
        "ConnectionState",
        "DeliveryOptions",
        "EventHandler",
        "Frame",
        "Gap",
        "Handshake",
        "HandshakeError",
        "Headers",
        "History",
        "HistoryConfig",
        "Hub",
        "HubConfig",
        "HubHealth",
        "HubSettings",
        "HubStats",
        "InvalidMessageError",
        "Member",
        "Message",
        "MessageType",
        "MisuseError",
        "Node",
        "Opcode",
        "Position",
        "PresenceConfig",
        "PresenceCounts",
        "PresencePage",
        "ProtocolError",
        "Publication",
        "Published",
        "RateLimits",
        "Recovery",
        "RequestHead",
        "RoomConfig",
        "RoomMessage",
        "RoomStats",
        "Server",
        "SlowConsumer",
        "Survey",
        "UnexpectedMessageError",
        "UpgradeHook",
        "Watch",
        "WebSocketError",
        "__version__",
    ]
    assert all(hasattr(wshub, name) for name in wshub.__all__)


def test_the_version_of_the_distribution_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "wshub.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", wshub.__version__)


def test_the_settings_have_the_described_defaults() -> None:
    config = HubConfig()
    assert config.max_connections == 10_000
    assert config.max_message_size == 64 * 1024
    assert config.ping_interval_ms == 30_000
    assert config.pong_timeout_ms == 10_000
    assert config.enable_compression is False
    assert config.allowed_origins == ()


def test_settings_by_keyword_are_the_fields_of_a_config() -> None:
    assert get_type_hints(HubSettings) == {
        field.name: get_type_hints(HubConfig)[field.name] for field in fields(HubConfig)
    }


def test_handlers_by_keyword_are_the_events() -> None:
    parameters = inspect.signature(EventHandler).parameters
    *named, rest = parameters.values()
    assert [parameter.name for parameter in named] == list(EVENTS) == list(Handlers.__annotations__)
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in named)
    for parameter in named:
        assert parameter.annotation == Handlers.__annotations__[parameter.name].__forward_arg__
    # A wrong name raises MisuseError, and the message has the right name.
    assert rest.kind is rest.VAR_KEYWORD


def test_every_described_method_is_there() -> None:
    described = {
        Connection: "id handler state rooms metadata last_ping_time last_pong_time send_text send_binary send_ping "
        "send_pong close in_room set_metadata get_metadata send send_json receive wait_closed join leave drain "
        "send_bytes receive_text receive_bytes receive_json iter_json latency_ms wait_writable",
        Hub: "register unregister join_room leave_room broadcast broadcast_except broadcast_to_room "
        "broadcast_to_room_except room_size rooms get_connection connection_count connections close serve stats",
        Server: "start_serving serve_forever close wait_closed is_serving sockets get_loop port",
        EventHandler: "on_open on_message on_close on_error on_ping on_pong on_drain",
        Message: "data type json",
        Frame: "fin rsv1 rsv2 rsv3 opcode masked mask_key payload text binary ping pong close encode decode",
        Handshake: "validate_request generate_accept_key create_response",
    }
    for owner, names in described.items():
        for name in names.split():
            assert hasattr(owner, name), f"{owner.__name__}.{name}"
    assert [member.name for member in MessageType] == ["TEXT", "BINARY"]
    assert [int(opcode) for opcode in Opcode] == [0x0, 0x1, 0x2, 0x8, 0x9, 0xA]
    assert {1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 1015} == set(CloseCode)


def test_every_public_name_has_a_docstring() -> None:
    for name in wshub.__all__:
        value = getattr(wshub, name)
        if not isinstance(value, type):
            assert name in ALIASES
            continue
        assert inspect.getdoc(value), name
        for attribute, member in vars(value).items():
            if not attribute.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
                assert inspect.getdoc(getattr(value, attribute)), f"{name}.{attribute}"
