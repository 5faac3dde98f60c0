"""Reading the messages of one subject, or of several, from a JetStream stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from wshub.brokers.nats_requests import ApiError, NoResponderError, Requests, status_of
from wshub.brokers.nats_streams import NO_STREAM, seconds_of
from wshub.errors import BrokerUnavailable

__all__ = ["Page", "StoredMessage", "StreamReader"]

# Messages that are asked for at a time.
BATCH = 256

# Seconds after which the engine forgets a consumer that nobody has deleted.
IDLE_SECONDS = 10

# How long the engine waits for messages. All are there, unless some were deleted since they were counted.
EXPIRES_NANOSECONDS = 500_000_000

# Bytes of the subject and the headers of a message, at most.
HEADERS = 4096

# The status behind the messages of a batch.
END_OF_BATCH = "204"

# The first server that reads batches by itself.
HAS_BATCHES = (2, 11)


class StoredMessage(NamedTuple):
    """A message of a stream."""

    sequence: int
    subject: str
    data: bytes
    stored_at: float
    """Seconds since 1970, by the engine's clock."""


@dataclass(slots=True)
class Page:
    """Messages, the oldest first."""

    messages: list[StoredMessage] = field(default_factory=list)
    available: int = 0
    """The number of messages that there were from the start on; more than those of the page if it was bounded."""


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
                    if not page.messages:
                        page.available = int(headers["Nats-Num-Pending"]) + 1
                    stored_at = seconds_of(headers["Nats-Time-Stamp"])
                    page.messages.append(StoredMessage(start - 1, headers["Nats-Subject"], message.data, stored_at))
                    size += len(message.data)
            if status != END_OF_BATCH or int((message.headers or {}).get("Nats-Num-Pending", 0)) == 0:
                break
        return page

    # The way of nats-server 2.9

    async def _read_consumer(
        self, stream: str, subject: str, start: int, limit: int, max_bytes: int, bound: int
    ) -> Page:
        settings = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "filter_subject": subject,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": self._replicas,
            "inactive_threshold": IDLE_SECONDS * 1_000_000_000,
        }
        consumer = await self._requests.ask(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": settings})
        page = Page(available=int(consumer.get("num_pending", 0)))
        try:
            await self._pull(f"{stream}.{consumer['name']}", page, min(limit, page.available), max_bytes, bound)
        finally:
            self._requests.tell(f"CONSUMER.DELETE.{stream}.{consumer['name']}")
        return page

    async def _pull(self, consumer: str, page: Page, limit: int, max_bytes: int, bound: int) -> None:
        size = 0
        while len(page.messages) < limit and size <= max_bytes:
            batch = min(limit - len(page.messages), BATCH)
            question = {"batch": batch, "expires": EXPIRES_NANOSECONDS, "max_bytes": bound - size}
            with self._requests.several(f"CONSUMER.MSG.NEXT.{consumer}", question) as answers:
                for _ in range(batch):
                    message = await answers.next()
                    if status_of(message) is not None:
                        # The rest is too large, or was trimmed meanwhile.
                        return
                    place = message.metadata
                    stored_at = place.timestamp.timestamp()
                    page.messages.append(StoredMessage(place.sequence.stream, message.subject, message.data, stored_at))
                    size += len(message.data)
