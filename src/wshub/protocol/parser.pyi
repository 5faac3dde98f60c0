from typing import Literal

from typing_extensions import Buffer

from wshub.errors import ProtocolError
from wshub.protocol.compression.negotiation import PermessageDeflate
from wshub.protocol.message import Message
from wshub.protocol.role import Role

Event = (
    tuple[Literal["message"], Message]
    | tuple[Literal["ping", "pong"], bytes]
    | tuple[Literal["close"], tuple[int, bytes]]
    | tuple[Literal["failure"], ProtocolError]
)

class FrameParser:
    def __init__(
        self, max_message_size: int = 65536, compression: PermessageDeflate | None = None, role: Role = Role.SERVER
    ) -> None: ...
    @property
    def stopped(self) -> bool: ...
    def feed(self, data: Buffer) -> list[Event]: ...
    def feed_directly(self, data: Buffer) -> list[Event]: ...
