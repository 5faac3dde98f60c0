"""The incremental parser of what a client sends (RFC 6455 sections 5 and 8.1, RFC 7692 section 6).

The rules of this file: it takes octets and gives events, whatever the octets are; it never calls into Python
before :class:`FrameParser`; a length from the network is compared while it is unsigned, before it is added to
anything or allocated; after a failure or a close frame it takes nothing more.
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
    """The native parser for programs without I/O, and for tests: octets in, events out."""

    def __new__(
        cls, max_message_size: int = 65536, compression: PermessageDeflate | None = None, role: Role = Role.SERVER
    ) -> Self: ...
    @property
    def stopped(self) -> bool:
        """Whether a close frame or a failure has been read, after which all octets are ignored."""
    def feed(self, data: Buffer) -> list[_Event]:
        """Reads `data` and returns the events that it completes, in order, as pairs of a name and a value.

        ``("message", Message)``, ``("ping", bytes)``, ``("pong", bytes)``, ``("close", (code, payload))``, and, as the
        last event of all, ``("failure", ProtocolError)``.
        """
    def feed_directly(self, data: Buffer) -> list[_Event]:
        """Reads `data` as :meth:`feed` does, but a large payload straight into its place, as a link would."""
