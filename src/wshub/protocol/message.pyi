"""A text or binary message, kept as the frame that travels (RFC 6455 section 5.6)."""

import enum
from typing import Any, final

from typing_extensions import Buffer

class MessageType(enum.Enum):
    """The type of a message's payload. The values are the opcodes of RFC 6455 section 5.2."""

    TEXT = 1
    BINARY = 2

@final
class Message:
    """One whole message, received or to be sent.

    It holds its payload once, as the frame that goes over the wire. So ``send`` and ``broadcast`` pass a received
    message on without decoding or copying it. A message is immutable, and you may keep it.

    Args:
        data: a str makes a text message. Bytes, or any object with a contiguous buffer, make a binary one.

    Raises:
        TypeError: ``data`` is neither.
        InvalidMessageError: ``data`` is a str with a lone surrogate, or a buffer that is not contiguous.
    """

    def __init__(self, data: str | Buffer) -> None: ...
    @property
    def data(self) -> str | bytes:
        """The payload: a str for a text message, bytes for a binary one. It is decoded at the first use and kept."""
    @property
    def type(self) -> MessageType:
        """MessageType.TEXT or MessageType.BINARY."""
    def json(self) -> Any:
        """Return the value of a text message that is JSON.

        Raises:
            UnexpectedMessageError: the message is binary, or its text is no JSON. If a handler does not catch the
                error, the hub closes the connection with 1003 or 1007.
        """
    @property
    def frame_bytes(self) -> bytes:
        """The unmasked frame, header and payload, as it goes over the wire."""
    def __bytes__(self) -> bytes: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
