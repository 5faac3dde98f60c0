"""wshub: a WebSocket hub for Python."""

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
from wshub.hub.config import HubConfig, RoomConfig
from wshub.hub.connection import Connection, ConnectionState
from wshub.hub.handler import EventHandler
from wshub.hub.hub import Hub
from wshub.hub.rates import RateLimits
from wshub.protocol.close_code import CloseCode
from wshub.protocol.compression import CompressionConfig
from wshub.protocol.frame import Frame, Opcode
from wshub.protocol.handshake import Handshake
from wshub.protocol.message import Message, MessageType

__all__ = [
    "CloseCode",
    "CompressionConfig",
    "ConfigurationError",
    "Connection",
    "ConnectionClosed",
    "ConnectionLost",
    "ConnectionState",
    "EventHandler",
    "Frame",
    "Handshake",
    "HandshakeError",
    "Hub",
    "HubConfig",
    "InvalidMessageError",
    "Message",
    "MessageType",
    "MisuseError",
    "Opcode",
    "ProtocolError",
    "RateLimits",
    "RoomConfig",
    "WebSocketError",
]
