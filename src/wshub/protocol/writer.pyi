"""Writes frames for both roles: headers, and the masking of what a client sends (RFC 6455 sections 5.2 and 5.3).

A server's frames are shared by their receivers, so nothing here touches them. A client's frame is a masked copy: each
has a new key.
"""

from collections.abc import Callable
from typing import Self

from typing_extensions import Buffer

from wshub.protocol.message import Message
from wshub.protocol.role import Role

def encode_header(first: int, mask_bit: int, length: int) -> bytes:
    """Returns the header of a frame without its masking key.

    Args:
        first: the first byte: FIN, the reserved bits and the opcode.
        mask_bit: 0x80 if a masking key follows, or 0.
        length: bytes of payload.
    """

def encode_frame(first: int, payload: Buffer, mask_key: bytes | None = None) -> bytes:
    """Returns a whole frame, masked if there is a key.

    Args:
        first: the first byte: FIN, the reserved bits and the opcode.
        payload: the payload in the clear.
        mask_key: the four bytes of the masking key, or None for an unmasked frame.
    """

def apply_mask(payload: Buffer, mask_key: bytes) -> bytes:
    """Returns ``payload`` masked with the four bytes of ``mask_key``. Masked twice, it is as before (section 5.3)."""

class FrameWriter:
    """Writes the frames of one side of a connection.

    Masking keys must be unpredictable and new for each frame (RFC 6455 section 10.3). A writer serves one connection:
    after a fork, a writer that both processes use would repeat its keys.

    Args:
        role: the side that writes.
        random_bytes: returns as many random bytes as its argument says. The default is the operating system's source;
            a test may pass another.
    """

    def __new__(cls, role: Role, random_bytes: Callable[[int], bytes] = ...) -> Self: ...
    @property
    def role(self) -> Role: ...
    def message(self, data: str | Buffer | Message) -> bytes:
        """Returns the frame of a whole message: a str as text, an object with a buffer as binary, or a Message.

        Raises TypeError and InvalidMessageError as ``Message`` does.
        """
    def control(self, opcode: int, payload: str | Buffer = b"") -> bytes:
        """Returns a close, ping or pong frame.

        Raises InvalidMessageError for another opcode and for more than 125 bytes of payload. The payload of a close
        frame is not checked: ``encode_close_payload`` makes it.
        """
