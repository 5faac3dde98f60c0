"""The incremental parser of frames, for both roles (RFC 6455 sections 5 and 8.1, RFC 7692 section 6).

The rules of this file:

- It takes any bytes and gives events. Only :class:`FrameParser` calls into Python.
- A length from the network is compared while it is unsigned, before it is added to anything or allocated.
- After a failure or a close frame it ignores all bytes.
- A role costs a server nothing: what differs between the roles stands in the struct, as values to compare with.
"""

from typing import Literal, Self, TypeAlias

from typing_extensions import Buffer

from wshub.errors import ProtocolError
from wshub.protocol.compression.negotiation import PermessageDeflate
from wshub.protocol.message import Message
from wshub.protocol.role import Role

_Event: TypeAlias = (
    tuple[Literal["message"], Message]
    | tuple[Literal["ping", "pong"], bytes]
    | tuple[Literal["close"], tuple[int, bytes]]
    | tuple[Literal["failure"], ProtocolError]
)

class FrameParser:
    """The native parser for programs without I/O, and for tests: bytes in, events out.

    Args:
        max_message_size: maximum bytes of a message's payload.
        compression: the PermessageDeflate that was negotiated, or None.
        role: the side that reads. A server refuses unmasked frames with 1002, a client masked ones.
    """

    def __new__(
        cls, max_message_size: int = 65536, compression: PermessageDeflate | None = None, role: Role = Role.SERVER
    ) -> Self: ...
    @property
    def stopped(self) -> bool:
        """Whether the parser has read a close frame or a failure. It ignores all bytes that follow."""
    def feed(self, data: Buffer) -> list[_Event]:
        """Reads `data` and returns the events that it completes, in order, as pairs of a name and a value.

        The events are ``("message", Message)``, ``("ping", bytes)``, ``("pong", bytes)`` and
        ``("close", (code, payload))``. ``("failure", ProtocolError)`` is always the last one.
        """
    def feed_directly(self, data: Buffer) -> list[_Event]:
        """Reads `data` as :meth:`feed` does, but puts a large payload straight into its place, as a link would."""
