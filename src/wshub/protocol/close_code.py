"""Close codes and the payload of close frames (RFC 6455 sections 5.5.1 and 7.4)."""

from __future__ import annotations

import operator
from enum import IntEnum

from wshub.errors import InvalidMessageError, ProtocolError

__all__ = [
    "MAX_REASON_LENGTH",
    "CloseCode",
    "decode_close_payload",
    "encode_close_payload",
    "is_valid_on_wire",
]

MAX_REASON_LENGTH = 123
"""Maximum bytes of UTF-8 in a close reason: a control frame's 125 less the two of the code."""


class CloseCode(IntEnum):
    """The close codes that have a registered meaning (RFC 6455 section 7.4.1 and the IANA registry).

    ``NO_STATUS``, ``ABNORMAL`` and ``TLS_HANDSHAKE`` are only reported to the application, when no close frame had a
    code. No close frame may carry them.
    """

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED = 1003
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    EXTENSION_REQUIRED = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


def is_valid_on_wire(code: int) -> bool:
    """Whether a close frame may carry ``code``: 1000-1003, 1007-1014 and 3000-4999 (RFC 6455 section 7.4)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def encode_close_payload(code: int, reason: str | bytes) -> bytes:
    """Return the payload of a close frame: the code in network order, then the reason as UTF-8.

    Raises ``InvalidMessageError`` for a code that no close frame may carry, and for a reason that is not UTF-8 or is
    longer than ``MAX_REASON_LENGTH`` bytes. Shorten it yourself: only the caller knows what can be left out. Raises
    ``TypeError`` for a reason that is neither ``str`` nor ``bytes``.
    """
    if isinstance(code, bool) or not hasattr(code, "__index__"):
        raise InvalidMessageError(f"a close code must be an int, such as 1000 or 4000, not {code!r}")
    code = operator.index(code)
    if not is_valid_on_wire(code):
        raise InvalidMessageError(f"close code {code} cannot be sent: use 1000-1003, 1007-1014 or one of 3000-4999")
    try:
        if isinstance(reason, str):
            encoded = str.encode(reason, "utf-8")
        else:
            # bytes() would also take an integer (as a length) and a list.
            encoded = bytes(memoryview(reason))
            encoded.decode("utf-8")
    except TypeError:
        raise TypeError(f"a close reason must be a str or bytes, not {type(reason).__name__}") from None
    except UnicodeError:
        raise InvalidMessageError("a close reason must be text that UTF-8 can express") from None
    if len(encoded) > MAX_REASON_LENGTH:
        raise InvalidMessageError(f"a close reason has at most {MAX_REASON_LENGTH} bytes of UTF-8, not {len(encoded)}")
    return code.to_bytes(2, "big") + encoded


def decode_close_payload(payload: bytes) -> tuple[int, str]:
    """Return the code and reason in the payload of a received close frame.

    An empty payload is ``(1005, "")`` (RFC 6455 section 7.1.5). Raises ``ProtocolError`` with 1002 for half a code or a
    code that may not be sent, and with 1007 for a reason that is not UTF-8.
    """
    if not payload:
        return CloseCode.NO_STATUS, ""
    if len(payload) == 1:
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a close frame with one byte of payload")
    code = int.from_bytes(payload[:2], "big")
    if not is_valid_on_wire(code):
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, f"a close frame with the code {code}")
    try:
        return code, bytes(payload[2:]).decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(CloseCode.INVALID_DATA, "a close reason that is not UTF-8") from None
