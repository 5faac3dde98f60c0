"""Reading the messages of one subject, or of several, from a JetStream stream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import NamedTuple

from nats.aio.msg import Msg

from wshub.brokers.nats_requests import ApiError, NoResponderError, Requests, status_of
from wshub.brokers.nats_streams import NO_STREAM, seconds_of
from wshub.errors import BrokerUnavailable

__all__ = ["BATCH", "HAS_BATCHES", "MessageSize", "Page", "StoredMessage", "StreamReader"]

BATCH = 256
"""Messages that are asked for at a time."""

# Seconds after which the engine forgets a consumer that nobody has deleted.
IDLE_SECONDS = 10

# How long the engine waits for the first message. It is there, unless it was deleted since it was counted.
EXPIRES_NANOSECONDS = 500_000_000

# Attempts to read from a consumer that gives nothing.
ATTEMPTS = 4

# Bytes of the subject and the headers of a message, at most.
HEADERS = 4096

# The status behind the messages of a batch.
END_OF_BATCH = "204"

HAS_BATCHES = (2, 11)
"""The first version of the server that reads batches by itself. Before it, each reading has a consumer."""


class StoredMessage(NamedTuple):
    """A message of a stream."""

    sequence: int
    subject: str
    data: bytes
    stored_at: float
    """Seconds since 1970, by the engine's clock."""


class MessageSize(NamedTuple):
    """How large a message of a stream is."""

    sequence: int
    size: int
    """Bytes without the headers."""


@dataclass(slots=True)
class Page:
    """Messages, the oldest first."""

    messages: list[StoredMessage] = field(default_factory=list)
    available: int = 0
    """The number of messages from the start on; more than those of the page if it was bounded.

    A message that is replaced while it is read moves to the end. It is on the page, or counts as one behind it. Before
    nats-server 2.11, some that are gone may count too. Then the page behind this one is empty.
    """


class StreamReader:
    """Reads with few requests: a batch of direct gets from nats-server 2.11 on, and an ephemeral consumer before.

    Args:
        requests: asks the engine.
        replicas: how many servers of a cluster keep the messages, and each consumer. One server alone may be away.
    """

    def __init__(self, requests: Requests, replicas: int) -> None:
        self._requests = requests
        self._replicas = replicas

    async def read(self, stream: str, subject: str, start: int, limit: int, max_bytes: int) -> Page:
        """Return messages from a sequence on: at most so many, and at most so many bytes beside the first two.

        Args:
            stream: its name.
            subject: of the messages; a wildcard is allowed.
            start, limit, max_bytes: what to read.

        Raises:
            BrokerUnavailable: the engine has not answered.
            ApiError: it has answered with an error, for example because the stream is gone.
        """
        connection = self._requests.connection
        if connection is None:
            raise BrokerUnavailable("there is no connection to the engine")
        # The bound leaves room for one message of any size.
        bound = max_bytes + connection.largest_message + HEADERS
        read = self._read_batches if connection.server_version >= HAS_BATCHES else self._read_consumer
        try:
            return await read(stream, subject, max(start, 1), limit, max_bytes, bound)
        except NoResponderError:
            raise ApiError(f"the stream {stream} is gone", NO_STREAM) from None

    # The way of nats-server 2.11

    async def _read_batches(
        self, stream: str, subject: str, start: int, limit: int, max_bytes: int, bound: int
    ) -> Page:
        page = Page()
        size = 0
        while len(page.messages) < limit and size <= max_bytes:
            batch = min(limit - len(page.messages), BATCH)
            question = {"seq": start, "next_by_subj": subject, "batch": batch, "max_bytes": bound - size}
            with self._requests.several(f"DIRECT.GET.{stream}", question) as answers:
                # A batch ends with a status.
                while (status := status_of(message := await answers.next())) is None:
                    headers = message.headers or {}
                    start = int(headers["Nats-Sequence"]) + 1
                    stored_at = seconds_of(headers["Nats-Time-Stamp"])
                    page.messages.append(StoredMessage(start - 1, headers["Nats-Subject"], message.data, stored_at))
                    size += len(message.data)
            pending = int((message.headers or {}).get("Nats-Num-Pending", 0))
            page.available = len(page.messages) + pending
            if status != END_OF_BATCH or pending == 0:
                break
        return page

    # The way of nats-server 2.9

    async def _read_consumer(
        self, stream: str, subject: str, start: int, limit: int, max_bytes: int, bound: int
    ) -> Page:
        for _ in range(ATTEMPTS):
            page = await self._read_consumer_once(stream, subject, start, limit, max_bytes, bound)
            if page.messages or not page.available or limit <= 0:
                return page
            # The messages were deleted meanwhile. Or one of them was: when a subject is purged, nats-server 2.9 has the
            # consumers of that subject skip all other messages too.
        raise BrokerUnavailable("the engine gives no messages, since some are deleted all the time")

    async def _read_consumer_once(
        self, stream: str, subject: str, start: int, limit: int, max_bytes: int, bound: int
    ) -> Page:
        async with self._consumer(stream, subject, start) as (consumer, available):
            page = Page(available=available)
            size = 0
            while len(page.messages) < min(limit, page.available) and size <= max_bytes:
                # nats-server 2.9 goes on counting a message that was replaced meanwhile, so there may be fewer.
                batch = min(limit - len(page.messages), BATCH)
                messages = await self._pull(consumer, {"batch": batch, "max_bytes": bound - size})
                for message in messages:
                    place = message.metadata
                    stored_at = place.timestamp.timestamp()
                    page.messages.append(StoredMessage(place.sequence.stream, message.subject, message.data, stored_at))
                    size += len(message.data)
                if messages:
                    page.available = len(page.messages) + messages[-1].metadata.num_pending
                if len(messages) < batch:
                    # There are no more, or the rest is too large.
                    break
        return page

    # Consumers

    async def read_sizes(self, stream: str, subject: str, limit: int) -> list[MessageSize]:
        """Return the sizes of the first messages of a subject, the oldest first. The errors are those of ``read()``."""
        sizes: list[MessageSize] = []
        async with self._consumer(stream, subject, 1, headers_only=True) as (consumer, available):
            while len(sizes) < min(limit, available):
                batch = min(limit - len(sizes), BATCH)
                messages = await self._pull(consumer, {"batch": batch})
                for message in messages:
                    size = int((message.headers or {}).get("Nats-Msg-Size", 0))
                    sizes.append(MessageSize(message.metadata.sequence.stream, size))
                if len(messages) < batch:
                    break
        return sizes

    @contextlib.asynccontextmanager
    async def _consumer(
        self, stream: str, subject: str, start: int, **further: object
    ) -> AsyncIterator[tuple[str, int]]:
        """Make a consumer. Yield its name behind that of the stream, and the number of messages that it has."""
        settings = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "filter_subject": subject,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": self._replicas,
            "inactive_threshold": IDLE_SECONDS * 1_000_000_000,
            **further,
        }
        made = await self._requests.ask(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": settings})
        try:
            yield f"{stream}.{made['name']}", int(made.get("num_pending", 0))
        finally:
            self._requests.tell(f"CONSUMER.DELETE.{stream}.{made['name']}")

    async def _pull(self, consumer: str, question: dict[str, int]) -> list[Msg]:
        """Return a batch of messages. There are fewer if the consumer has no more now, or the rest is too large."""
        messages: list[Msg] = []
        # Otherwise the engine would wait for messages that nodes are yet to store.
        question = {**question, "no_wait": True, "expires": EXPIRES_NANOSECONDS}
        with self._requests.several(f"CONSUMER.MSG.NEXT.{consumer}", question) as answers:
            while len(messages) < question["batch"]:
                message = await answers.next()
                if status_of(message) is not None:
                    break
                messages.append(message)
        return messages
