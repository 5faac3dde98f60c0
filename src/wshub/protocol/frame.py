"""Frames as values (RFC 6455 section 5.2).

Tests and tools use them. A server does not: nothing here runs per message. ``Frame.decode`` is the readable twin of the
native parser, which is tested against it. ``Frame.encode`` calls the native writer.
"""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass, replace
from enum import IntEnum
from typing import TypeAlias

from wshub.errors import InvalidMessageError, ProtocolError
from wshub.protocol.close_code import CloseCode, encode_close_payload
from wshub.protocol.writer import apply_mask, encode_frame

__all__ = ["MAX_CONTROL_PAYLOAD", "BytesLike", "Frame", "Opcode"]

BytesLike: TypeAlias = bytes | bytearray | memoryview

MAX_CONTROL_PAYLOAD = 125
"""Maximum bytes of payload in a control frame (RFC 6455 section 5.5)."""

_FIN = 0x80
_RSV1 = 0x40
_RSV2 = 0x20
_RSV3 = 0x10
_MASKED = 0x80
_LENGTH_OF_16_BITS = 126
_LENGTH_OF_64_BITS = 127


class Opcode(IntEnum):
    """The kind of a frame. The other ten values of the four bits are reserved (RFC 6455 section 5.2)."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA

    @property
    def is_control(self) -> bool:
        """Whether this is a close, ping or pong: never fragmented, at most 125 bytes."""
        return self >= Opcode.CLOSE


# int(value) in Opcode works only from Python 3.12.
_OPCODES = {int(opcode): opcode for opcode in Opcode}


@dataclass(frozen=True, slots=True, repr=False)
class Frame:
    """One frame, with its payload in the clear: ``encode`` masks it, and ``decode`` unmasks it.

    Making a frame checks it. It raises ``InvalidMessageError`` for a frame that RFC 6455 does not allow. The caller
    checks the rest: the order of fragments and UTF-8 across them, the roles (clients mask, servers do not), and the
    reserved bits, whose meaning extensions define.
    """

    opcode: Opcode
    """The kind of the frame."""

    payload: bytes = b""
    """The payload, not masked. It may be any bytes-like object, and is copied."""

    _: KW_ONLY

    fin: bool = True
    """Whether this is the last or only fragment of its message."""

    rsv1: bool = False
    """The first reserved bit: with permessage-deflate, a compressed message starts here."""

    rsv2: bool = False
    rsv3: bool = False

    masked: bool = False
    """Whether the payload travels masked: always from client to server, never back."""

    mask_key: bytes | None = None
    """The four bytes of the masking key of a masked frame; else ``None``."""

    def __post_init__(self) -> None:
        opcode = _OPCODES.get(self.opcode)
        if opcode is None:
            raise InvalidMessageError(f"{self.opcode!r} is not an opcode of RFC 6455")
        object.__setattr__(self, "opcode", opcode)
        object.__setattr__(self, "payload", _to_bytes(self.payload, "a payload"))
        if opcode.is_control:
            if not self.fin:
                raise InvalidMessageError("a control frame cannot be a fragment")
            if len(self.payload) > MAX_CONTROL_PAYLOAD:
                raise InvalidMessageError(
                    f"a control frame has at most {MAX_CONTROL_PAYLOAD} bytes, not {len(self.payload)}"
                )
        if self.mask_key is not None:
            object.__setattr__(self, "mask_key", _to_bytes(self.mask_key, "a mask key"))
            if len(self.mask_key) != 4:
                raise InvalidMessageError(f"a mask key has 4 bytes, not {len(self.mask_key)}")
        if self.masked and self.mask_key is None:
            raise InvalidMessageError("a masked frame needs a mask key")
        if self.mask_key is not None and not self.masked:
            raise InvalidMessageError("a mask key without masked=True would not be used")

    def __repr__(self) -> str:
        """Show all but the payload and the masking key."""
        flags = [name for name in ("rsv1", "rsv2", "rsv3", "masked") if getattr(self, name)]
        ending = [] if self.fin else ["more to come"]
        return f"<Frame {', '.join([self.opcode.name.lower(), f'{len(self.payload)} bytes', *flags, *ending])}>"

    @classmethod
    def text(cls, payload: str | BytesLike) -> Frame:
        """Return a whole text message; raises ``InvalidMessageError`` if it is not text or not UTF-8."""
        try:
            if isinstance(payload, str):
                encoded = str.encode(payload, "utf-8")
            else:
                encoded = _to_bytes(payload, "a payload")
                encoded.decode("utf-8")
        except UnicodeError:
            raise InvalidMessageError("a text message must be text that UTF-8 can express") from None
        return cls(Opcode.TEXT, encoded)

    @classmethod
    def binary(cls, payload: str | BytesLike) -> Frame:
        """Return a whole binary message; a ``str`` is sent as its UTF-8."""
        return cls(Opcode.BINARY, _encode_payload(payload))

    @classmethod
    def ping(cls, payload: str | BytesLike = b"") -> Frame:
        """Return a ping; raises ``InvalidMessageError`` if the payload is longer than 125 bytes."""
        return cls(Opcode.PING, _encode_payload(payload))

    @classmethod
    def pong(cls, payload: str | BytesLike = b"") -> Frame:
        """Return a pong; raises ``InvalidMessageError`` if the payload is longer than 125 bytes."""
        return cls(Opcode.PONG, _encode_payload(payload))

    @classmethod
    def close(cls, code: int = CloseCode.NORMAL, reason: str | bytes = "") -> Frame:
        """Return a close frame; raises ``InvalidMessageError`` as ``encode_close_payload`` does.

        A close frame without a code, as RFC 6455 section 5.5.1 allows, is ``Frame(Opcode.CLOSE)``.
        """
        return cls(Opcode.CLOSE, encode_close_payload(code, reason))

    def with_mask(self, mask_key: BytesLike | None = None) -> Frame:
        """Return this frame masked with the four bytes of ``mask_key``.

        By default the key is new and comes from the operating system, as RFC 6455 section 10.3 asks. Tests may pass
        one.
        """
        key = os.urandom(4) if mask_key is None else _to_bytes(mask_key, "a mask key")
        return replace(self, masked=True, mask_key=key)

    def encode(self) -> bytes:
        """Return the bytes of this frame, with its length in the shortest form (RFC 6455 section 5.2)."""
        first = self.opcode | (_FIN if self.fin else 0)
        first |= (_RSV1 if self.rsv1 else 0) | (_RSV2 if self.rsv2 else 0) | (_RSV3 if self.rsv3 else 0)
        return encode_frame(first, self.payload, self.mask_key)

    @classmethod
    def decode(cls, data: BytesLike) -> tuple[Frame, int] | None:
        """Return the frame that ``data`` starts with, and its length in bytes.

        ``None`` means that the frame is not complete: call again with the same bytes and more. A payload that has not
        arrived allocates nothing, but its length is not limited: the caller does that.

        Raises ``ProtocolError`` with 1002 as soon as the bytes show one of these: a reserved opcode, a control frame
        that is a fragment or longer than 125 bytes, a length that has its top bit set or is not in its shortest form.
        """
        if not data:
            return None
        first = data[0]
        opcode = _OPCODES.get(first & 0x0F)
        if opcode is None:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, f"the reserved opcode {first & 0x0F}")
        if opcode.is_control and not first & _FIN:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a fragmented control frame")
        if len(data) < 2:
            return None
        second = data[1]
        length = second & 0x7F
        position = 2
        if opcode.is_control and length > MAX_CONTROL_PAYLOAD:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a control frame of more than 125 bytes")
        if length >= _LENGTH_OF_16_BITS:
            position += 2 if length == _LENGTH_OF_16_BITS else 8
            if len(data) < position:
                return None
            shortest = _LENGTH_OF_16_BITS if length == _LENGTH_OF_16_BITS else 1 << 16
            length = int.from_bytes(data[2:position], "big")
            if length < shortest:
                raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a length that is not in its shortest form")
            if length >= 1 << 63:
                raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a length with its top bit set")
        masked = bool(second & _MASKED)
        start = position + 4 if masked else position
        end = start + length
        if len(data) < end:
            return None
        payload = bytes(data[start:end])
        mask_key = bytes(data[position:start]) if masked else None
        frame = cls(
            opcode,
            payload if mask_key is None else apply_mask(payload, mask_key),
            fin=bool(first & _FIN),
            rsv1=bool(first & _RSV1),
            rsv2=bool(first & _RSV2),
            rsv3=bool(first & _RSV3),
            masked=masked,
            mask_key=mask_key,
        )
        return frame, end


def _to_bytes(value: BytesLike, what: str) -> bytes:
    # bytes() would also take an integer (as a length) and a list.
    if not isinstance(value, bytes | bytearray | memoryview):
        raise InvalidMessageError(f"{what} must be bytes-like, not {type(value).__name__}")
    return bytes(value)


def _encode_payload(value: str | BytesLike) -> bytes:
    if not isinstance(value, str):
        return _to_bytes(value, "a payload")
    try:
        return str.encode(value, "utf-8")
    except UnicodeEncodeError:
        raise InvalidMessageError("a str payload must be text that UTF-8 can express") from None
