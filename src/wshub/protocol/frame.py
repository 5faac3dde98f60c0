"""Frames as values (RFC 6455 section 5.2): the readable twin of the native parser and frame writer.

Nothing here runs per message in a server. The client, tests and tools use it, and the native code is tested
against it.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from enum import IntEnum
from typing import TypeAlias

from wshub.errors import InvalidMessageError, ProtocolError
from wshub.protocol.close_code import CloseCode, encode_close_payload

__all__ = ["MAX_CONTROL_PAYLOAD", "BytesLike", "Frame", "Opcode", "apply_mask"]

BytesLike: TypeAlias = bytes | bytearray | memoryview

MAX_CONTROL_PAYLOAD = 125
"""Octets of payload in a control frame, at most (RFC 6455 section 5.5)."""

_FIN = 0x80
_RSV1 = 0x40
_RSV2 = 0x20
_RSV3 = 0x10
_MASKED = 0x80
_LENGTH_OF_16_BITS = 126
_LENGTH_OF_64_BITS = 127


class Opcode(IntEnum):
    """What a frame is; the other ten values of the four bits are reserved (RFC 6455 section 5.2)."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA

    @property
    def is_control(self) -> bool:
        """Whether this is a close, ping or pong: never fragmented, at most 125 octets."""
        return self >= Opcode.CLOSE


# int(value) in Opcode works only from Python 3.12.
_OPCODES = {int(opcode): opcode for opcode in Opcode}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, with its payload in the clear: masking is applied by ``encode`` and undone by ``decode``.

    A frame is checked when made, and ``InvalidMessageError`` tells what RFC 6455 does not allow in one. What
    takes more than one frame to see (the order of fragments, UTF-8 across them), what depends on who sends
    (clients mask, servers do not) and the meaning of the reserved bits, which extensions give them, is for
    the caller to check.
    """

    opcode: Opcode
    """What the frame is."""

    payload: bytes = b""
    """The payload, not masked. Any bytes-like object is accepted, and copied."""

    _: KW_ONLY

    fin: bool = True
    """Whether this is the last, or only, fragment of its message."""

    rsv1: bool = False
    """The first reserved bit: with permessage-deflate, a compressed message starts here."""

    rsv2: bool = False
    rsv3: bool = False

    masked: bool = False
    """Whether the payload travels masked: always from client to server, never back."""

    mask_key: bytes | None = None
    """The four octets of the masking key; there exactly if the frame is masked."""

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
                    f"a control frame has at most {MAX_CONTROL_PAYLOAD} octets, not {len(self.payload)}"
                )
        if self.mask_key is not None:
            object.__setattr__(self, "mask_key", _to_bytes(self.mask_key, "a mask key"))
            if len(self.mask_key) != 4:
                raise InvalidMessageError(f"a mask key has 4 octets, not {len(self.mask_key)}")
        if self.masked and self.mask_key is None:
            raise InvalidMessageError("a masked frame needs a mask key")
        if self.mask_key is not None and not self.masked:
            raise InvalidMessageError("a mask key without masked=True would not be used")

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
        return cls(Opcode.BINARY, _to_octets(payload))

    @classmethod
    def ping(cls, payload: str | BytesLike = b"") -> Frame:
        """Return a ping; raises ``InvalidMessageError`` if the payload is longer than 125 octets."""
        return cls(Opcode.PING, _to_octets(payload))

    @classmethod
    def pong(cls, payload: str | BytesLike = b"") -> Frame:
        """Return a pong; raises ``InvalidMessageError`` if the payload is longer than 125 octets."""
        return cls(Opcode.PONG, _to_octets(payload))

    @classmethod
    def close(cls, code: int = CloseCode.NORMAL, reason: str | bytes = "") -> Frame:
        """Return a close frame; raises ``InvalidMessageError`` as ``encode_close_payload`` does.

        A close frame without a code, as RFC 6455 section 5.5.1 allows, is ``Frame(Opcode.CLOSE)``.
        """
        return cls(Opcode.CLOSE, encode_close_payload(code, reason))

    def with_mask(self, mask_key: BytesLike) -> Frame:
        """Return this frame masked with the four octets of ``mask_key``.

        For what is sent to a peer that does not trust the sender, the key must be new for each frame and come
        from the operating system's randomness (RFC 6455 section 10.3).
        """
        return replace(self, masked=True, mask_key=_to_bytes(mask_key, "a mask key"))

    def encode(self) -> bytes:
        """Return the octets of this frame, with its length in the shortest form (RFC 6455 section 5.2)."""
        first = self.opcode | (_FIN if self.fin else 0)
        first |= (_RSV1 if self.rsv1 else 0) | (_RSV2 if self.rsv2 else 0) | (_RSV3 if self.rsv3 else 0)
        second = _MASKED if self.masked else 0
        header = encode_header(first, second, len(self.payload))
        if self.mask_key is None:
            return header + self.payload
        return header + self.mask_key + apply_mask(self.payload, self.mask_key)

    @classmethod
    def decode(cls, data: BytesLike) -> tuple[Frame, int] | None:
        """Return the frame that ``data`` starts with and the number of octets it takes.

        ``None`` means that the frame is not complete: call again with the same octets and more. Nothing is
        allocated for a payload that is not there yet; a bound on it is the caller's. Raises ``ProtocolError``
        with 1002, as soon as the octets that show it are there, for a reserved opcode, a control frame that
        is a fragment or longer than 125 octets, and a length whose top bit is set or that is not in its
        shortest form.
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
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a control frame of more than 125 octets")
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


def encode_header(first: int, mask_bit: int, length: int) -> bytes:
    """Return the header of a frame, without a mask key, for a payload of ``length`` octets.

    ``first`` is its first octet, ``mask_bit`` 0x80 for a masked frame, or 0.
    """
    if length < _LENGTH_OF_16_BITS:
        return bytes((first, mask_bit | length))
    if length < 1 << 16:
        return bytes((first, mask_bit | _LENGTH_OF_16_BITS)) + length.to_bytes(2, "big")
    return bytes((first, mask_bit | _LENGTH_OF_64_BITS)) + length.to_bytes(8, "big")


def apply_mask(payload: bytes, mask_key: bytes) -> bytes:
    """Return ``payload`` with the four octets of ``mask_key`` applied; twice gives it back (section 5.3)."""
    length = len(payload)
    repeated = (mask_key * (length // 4 + 1))[:length]
    # One exclusive or of two long integers: linear, and without a Python loop over octets.
    masked = int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")
    return masked.to_bytes(length, "little")


def _to_bytes(value: BytesLike, what: str) -> bytes:
    # bytes() would also take an integer (as a length) and a list.
    if not isinstance(value, bytes | bytearray | memoryview):
        raise InvalidMessageError(f"{what} must be bytes-like, not {type(value).__name__}")
    return bytes(value)


def _to_octets(value: str | BytesLike) -> bytes:
    if not isinstance(value, str):
        return _to_bytes(value, "a payload")
    try:
        return str.encode(value, "utf-8")
    except UnicodeEncodeError:
        raise InvalidMessageError("a str payload must be text that UTF-8 can express") from None
