"""wshub: a WebSocket hub for Python."""

from wshub.core.config import DeliveryOptions, HubConfig, HubSettings, RateLimits, RoomConfig, SlowConsumer
from wshub.core.connection import Connection, ConnectionState
from wshub.core.event_handler import EventHandler
from wshub.core.stats_types import HubStats, RoomStats
from wshub.errors import (
    ConfigurationError,
    ConnectionClosed,
    ConnectionLost,
    HandshakeError,
    InvalidMessageError,
    MisuseError,
    ProtocolError,
    WebSocketError,
)
from wshub.hub import Hub, UpgradeHook
from wshub.protocol.close_code import CloseCode
from wshub.protocol.compression.config import CompressionConfig
from wshub.protocol.frame import Frame, Opcode
from wshub.protocol.handshake.server import Handshake
from wshub.protocol.http.headers import Headers
from wshub.protocol.http.request import RequestHead
from wshub.protocol.message import Message, MessageType
from wshub.serving.server import Server

__all__ = [
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
    "Handshake",
    "HandshakeError",
    "Headers",
    "Hub",
    "HubConfig",
    "HubSettings",
    "HubStats",
    "InvalidMessageError",
    "Message",
    "MessageType",
    "MisuseError",
    "Opcode",
    "ProtocolError",
    "RateLimits",
    "RequestHead",
    "RoomConfig",
    "RoomStats",
    "Server",
    "SlowConsumer",
    "UpgradeHook",
    "WebSocketError",
]
