"""Compresses a message once for all its receivers, with states that all connections of a hub share."""

from typing import Self

from wshub.protocol.compression.config import CompressionConfig
from wshub.protocol.message import Message

class DeflatePool:
    """The states that all connections of a hub share to compress and decompress, and their statistics.

    Args:
        config: a CompressionConfig.
    """

    def __new__(cls, config: CompressionConfig) -> Self: ...
    @property
    def config(self) -> CompressionConfig: ...
    @property
    def compressions(self) -> int: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def bytes_out(self) -> int: ...
    def compress_message(self, message: Message, window_bits: int = 15) -> bytes | None:
        """Returns the payload of the form without history, or None if the message goes plain."""
