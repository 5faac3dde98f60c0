"""Deletes what JetStream stores of a channel beyond the ``max_bytes`` of its history.

A stream bounds the number of messages of each channel, and not their bytes. So each node counts the bytes that it
stores. Once these are more than ``max_bytes`` on a channel, it deletes the oldest messages there.

One message more than is promised stays. So a channel of which something was deleted still has more than ``max_bytes``,
or a message that readers leave out. That tells them that older ones may be missing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable
from typing import NamedTuple

from wshub.brokers.nats_reading import MessageSize, StreamReader
from wshub.brokers.nats_requests import Requests
from wshub.brokers.nats_streams import Stream
from wshub.errors import BrokerError

__all__ = ["Trimming"]

logger = logging.getLogger("wshub.broker")

# Channels whose bytes are counted. The count that was used the longest time ago is forgotten for another one.
MAX_COUNTED = 10_000

# Seconds without an attempt after one that has failed. They double with each further one.
RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0


class Stored(NamedTuple):
    """The count of a channel since the last deletion."""

    size: int
    """The bytes that were stored."""

    stream: Stream
    max_bytes: int
    """The bytes to keep."""


class Trimming:
    """Counts what is stored, and deletes the oldest messages of a channel.

    Args:
        requests: asks the engine.
        reader: reads the sizes of messages.
    """

    def __init__(self, requests: Requests, reader: StreamReader) -> None:
        self._requests = requests
        self._reader = reader
        # By the tokens of the channel.
        self._stored: dict[str, Stored] = {}
        # The channels where something is to be deleted.
        self._due: dict[str, Stored] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        # How long no attempt is made after the last one, which has failed; 0 if it has not. And the end of that time.
        self._delay = 0.0
        self._retry_at = 0.0

    def count(self, stream: Stream, tokens: str, size: int, max_bytes: int) -> None:
        """Count a message that was stored on a channel. Delete others if there are too many bytes."""
        former = self._stored.pop(tokens, None)
        stored = Stored(size if former is None else former.size + size, stream, max_bytes)
        if stored.size > max_bytes and not self._is_pausing:
            self._trim_soon(tokens, stored)
            return
        if len(self._stored) >= MAX_COUNTED:
            self._forget_one()
        self._stored[tokens] = stored

    def _forget_one(self) -> None:
        """Forget a count. The larger it is, the more probable is a deletion all the same.

        So there is one for each ``max_bytes`` on average, on however many channels the node stores in turn.
        """
        tokens = next(iter(self._stored))
        stored = self._stored.pop(tokens)
        if random.random() * stored.max_bytes < stored.size and not self._is_pausing:
            self._trim_soon(tokens, stored)

    @property
    def _is_pausing(self) -> bool:
        """Whether no attempt is made, because the last one has failed."""
        return self._delay > 0 and asyncio.get_running_loop().time() < self._retry_at

    def _trim_soon(self, tokens: str, stored: Stored) -> None:
        self._due[tokens] = stored
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
                stored = self._due.pop(tokens)
                try:
                    await self._trim(stored.stream, tokens, stored.max_bytes)
                except BrokerError as error:
                    self._failed(error)
                    # The first message on a channel after the pause has it tried again.
                    for each, waiting in ((tokens, stored), *self._due.items()):
                        if len(self._stored) < MAX_COUNTED:
                            self._stored[each] = waiting._replace(size=waiting.max_bytes)
                    self._due.clear()
                else:
                    self._succeeded()
        except Exception:
            logger.exception("the oldest messages of a history could not be deleted")
        finally:
            self._task = None

    def _failed(self, error: BrokerError) -> None:
        """Make no attempt for a while. The first of several failures is logged."""
        if not self._delay:
            logger.warning("the oldest messages of histories cannot be deleted, it is tried again: %s", error)
        self._delay = min(2 * self._delay or RETRY_SECONDS, MAX_RETRY_SECONDS)
        self._retry_at = asyncio.get_running_loop().time() + self._delay

    def _succeeded(self) -> None:
        if self._delay:
            self._delay = 0.0
            logger.info("the oldest messages of histories are deleted again")

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
