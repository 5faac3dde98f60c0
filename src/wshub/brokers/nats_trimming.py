"""Deletes what JetStream stores of a channel beyond the ``max_bytes`` of its history.

A stream bounds the number of messages of each channel, and not their bytes. So each node counts the bytes that it
stores. Once these are more than ``max_bytes`` on a channel, it deletes the oldest messages there.

One message more than is promised stays. So a channel of which something was deleted still has more than ``max_bytes``,
or a message that readers leave out. That tells them that older ones may be missing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from wshub.brokers.nats_reading import MessageSize, StreamReader
from wshub.brokers.nats_requests import Requests
from wshub.brokers.nats_streams import Stream
from wshub.errors import BrokerError

__all__ = ["Trimming"]

logger = logging.getLogger("wshub.broker")

# Channels whose bytes are counted. The count of the one that was begun first is forgotten for another one.
MAX_COUNTED = 10_000


class Trimming:
    """Counts what is stored, and deletes the oldest messages of a channel.

    Args:
        requests: asks the engine.
        reader: reads the sizes of messages.
    """

    def __init__(self, requests: Requests, reader: StreamReader) -> None:
        self._requests = requests
        self._reader = reader
        # The bytes that were stored since the last deletion, by the tokens of the channel.
        self._stored: dict[str, int] = {}
        # The streams, and the bytes to keep, of the channels where something is to be deleted.
        self._due: dict[str, tuple[Stream, int]] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    def count(self, stream: Stream, tokens: str, size: int, max_bytes: int) -> None:
        """Count a message that was stored on a channel. Delete others if there are too many bytes."""
        stored = self._stored.get(tokens, 0) + size
        if stored <= max_bytes:
            if stored == size and len(self._stored) >= MAX_COUNTED:
                del self._stored[next(iter(self._stored))]
            self._stored[tokens] = stored
            return
        self._stored.pop(tokens, None)
        self._due[tokens] = stream, max_bytes
        if self._task is None and not self._is_closed:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """End the task."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while self._due:
                tokens = next(iter(self._due))
                stream, max_bytes = self._due.pop(tokens)
                try:
                    await self._trim(stream, tokens, max_bytes)
                except BrokerError:
                    # The next message on the channel has it tried again.
                    self._stored[tokens] = max_bytes
        except Exception:
            logger.exception("the oldest messages of a history could not be deleted")
        finally:
            self._task = None

    async def _trim(self, stream: Stream, tokens: str, max_bytes: int) -> None:
        """Delete the messages of a channel before the newest one that is not promised any more."""
        subject = stream.subjects + tokens
        sizes = await self._reader.read_sizes(stream.name, subject, stream.limits.size + 1)
        first = first_to_keep(reversed(sizes), max_bytes)
        if sizes and first > sizes[0].sequence:
            await self._requests.ask(f"STREAM.PURGE.{stream.name}", {"filter": subject, "seq": first})


def first_to_keep(newest_first: Iterable[MessageSize], max_bytes: int) -> int:
    """Return the sequence of the oldest message to keep: the one behind the newest ``max_bytes``; 0 if there is none.

    The newest message is promised whatever its size.
    """
    total = 0
    for index, message in enumerate(newest_first):
        total += message.size
        if index and total > max_bytes:
            return message.sequence
    return 0
