"""The envelopes of publishers: messages, and commands to hubs."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from wshub.brokers.envelope import encode_envelope
from wshub.brokers.interface import ALL_NODES, room_channel, user_channel
from wshub.errors import ConfigurationError, InvalidMessageError, MisuseError
from wshub.protocol.close_code import encode_close_payload
from wshub.protocol.validation import check_choice, exact_str

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["disconnect_command", "message_to"]

POLICIES = ("close", "drop_newest", "drop_oldest", "latest")


def message_to(
    message: str | Buffer,
    room: str | None,
    user: str | None,
    compress: bool | None,
    slow_consumer: str | None,
    key: str | None,
    publisher: str | None = None,
) -> tuple[str, bytes]:
    """Return the channel and the envelope of a message."""
    if room is not None and user is not None:
        raise MisuseError("give publish() a room or a user, not both")
    kind, name = ("room", room) if room is not None else ("user", user) if user is not None else ("all", "")
    # A str of a subclass, such as StrEnum, may have another __str__.
    name = exact_str(f"the name of a {kind} must be a str", name)
    if kind == "user" and not name:
        raise MisuseError("an empty name is no user")
    if compress is not None and not isinstance(compress, bool):
        raise MisuseError(f"compress must be True, False or None, not {compress!r}")
    if key is not None and not isinstance(key, str):
        raise MisuseError(f"key must be a str or None, not {type(key).__name__}")
    if publisher is not None and not isinstance(publisher, str):
        raise MisuseError(f"publisher must be a str or None, not {type(publisher).__name__}")
    if slow_consumer is not None:
        try:
            slow_consumer = check_choice("slow_consumer", slow_consumer, POLICIES)
        except ConfigurationError as error:
            raise MisuseError(str(error)) from None
    is_binary = not isinstance(message, str)
    try:
        envelope = encode_envelope(
            kind,  # type: ignore[arg-type]
            name,
            str.encode(message) if isinstance(message, str) else bytes(memoryview(message)),
            is_binary=is_binary,
            sent_at=time.time_ns() // 1000,
            compress=compress,
            slow_consumer=slow_consumer,
            key=str.__str__(key) if key is not None else None,
            publisher=str.__str__(publisher) if publisher is not None else None,
        )
    except UnicodeEncodeError as error:
        raise InvalidMessageError(f"the message cannot be sent: {error}") from None
    if room is not None:
        return room_channel(name), envelope
    return (user_channel(name) if user is not None else ALL_NODES), envelope


def disconnect_command(user: str, code: int, reason: str) -> tuple[str, bytes]:
    """Return the channel and the envelope of the command to close the connections of a user.

    Raises:
        InvalidMessageError: the code or the reason cannot be sent.
        MisuseError: the user is empty.
        TypeError: the user or the reason is no str.
    """
    user = exact_str("the name of a user must be a str", user)
    reason = exact_str("the reason must be a str", reason)
    encode_close_payload(code, reason)
    if not user:
        raise MisuseError("an empty name is no user")
    command = {"do": "disconnect", "user": user, "code": int(code), "reason": reason}
    payload = json.dumps(command, separators=(",", ":")).encode()
    return user_channel(user), encode_envelope("control", "", payload, sent_at=time.time_ns() // 1000)
