"""wshub: a WebSocket hub for Python."""

from wshub.core.config import HubConfig, RoomConfig
from wshub.core.connection import Connection, ConnectionState
from wshub.core.event_handler import EventHandler
from wshub.core.rate_limits import RateLimits
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
from wshub.hub import Hub
from wshub.protocol.close_code import CloseCode
from wshub.protocol.compression.config import CompressionConfig
from wshub.protocol.frame import Frame, Opcode
from wshub.protocol.handshake.server import Handshake
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
