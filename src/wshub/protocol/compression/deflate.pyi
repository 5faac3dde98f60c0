"""Compresses and decompresses the payload of messages (RFC 7692 section 7.2).

The rules of this file: a state is made when it is first needed, and a failure leaves it as it was before or forgets
its history; what is decompressed is bounded before it is written; nothing is shared between two messages but what their
sender means to share: a state that serves many connections forgets before each message.
"""

from typing import Self

from wshub.protocol.compression.config import CompressionConfig
from wshub.protocol.message import Message

class DeflatePool:
    """The states that all connections of a hub share to compress and decompress, and what was done with them.

    Args:
        config: a CompressionConfig.
    """

    def __new__(cls, config: CompressionConfig) -> Self: ...
    @property
    def config(self) -> CompressionConfig: ...
    @property
    def compressions(self) -> int: ...
    @property
    def octets_in(self) -> int: ...
    @property
    def octets_out(self) -> int: ...
    def compress_message(self, message: Message, window_bits: int = 15) -> bytes | None:
        """The payload of the form without history, or None where the message goes plain. For programs without I/O."""
