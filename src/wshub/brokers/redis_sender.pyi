from collections import Counter
from collections.abc import Callable
from typing import Any

from wshub.brokers.redis_commands import ChannelNames
from wshub.brokers.redis_reader import RedisReader
from wshub.links.byte_stream import ByteStream

class EnvelopeSender:
    dropped: Counter[str]
    why_dropped: str

    def __init__(self, names: ChannelNames, max_pending: int) -> None: ...
    def attach(self, stream: ByteStream, reader: RedisReader) -> None: ...
    def detach(self) -> None: ...
    def send_command(
        self, head: bytes, envelope: bytes, on_answer: Callable[[Any], None] | tuple[Any, ...] | None = None
    ) -> bool:
        """Send a command whose last word is an envelope. Return False if it was dropped.

        Args:
            head: the bytes of the command before the last word.
            envelope: the last word.
            on_answer: as for ``send``.
        """
    def send(
        self, channel: str, envelope: bytes, on_answer: Callable[[Any], None] | tuple[Any, ...] | None = None
    ) -> bool: ...
