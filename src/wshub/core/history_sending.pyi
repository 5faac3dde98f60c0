"""Messages to rooms with history: they are stored first, and go to the members when they come back with an offset."""

from typing import Any

from typing_extensions import Buffer

from wshub.core.config import SlowConsumer
from wshub.core.connection import Connection
from wshub.protocol.message import Message

def is_kept(hub: Any, room: str) -> bool:
    """Whether a hub keeps the messages to a room."""

def make_history_envelope(
    hub: Any,
    room: str,
    message: str | Buffer | Message,
    exclude: Connection | int | None,
    compress: bool | None,
    slow_consumer: SlowConsumer | None,
    key: str | None,
    publisher: Connection | str | None,
) -> bytes:
    """Return the envelope of a message to a room with history. The arguments are those of ``Hub.publish``."""
