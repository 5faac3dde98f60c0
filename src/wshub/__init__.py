"""wshub: a WebSocket hub for Python."""

from wshub.brokers.interface import Gap, History, HistoryConfig, Position, Publication, Published
from wshub.brokers.presence_interface import Member, PresenceConfig, PresenceCounts, PresencePage
from wshub.core.cluster_types import HubHealth, Node, Survey
from wshub.core.config import DeliveryOptions, HubConfig, HubSettings, RateLimits, RoomConfig, SlowConsumer
from wshub.core.connection import Connection, ConnectionState
from wshub.core.event_handler import EventHandler
from wshub.core.history_types import Recovery
from wshub.core.stats_types import HubStats, RoomStats
from wshub.core.watches import RoomMessage, Watch
from wshub.errors import (
    BrokerError,
    BrokerUnavailable,
    BrokerUncertain,
    ConfigurationError,
    ConnectionClosed,
    ConnectionLost,
    HandshakeError,
    InvalidMessageError,
    MisuseError,
    ProtocolError,
    UnexpectedMessageError,
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

__version__ = "0.1.0"
