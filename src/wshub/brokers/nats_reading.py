"""Reading the messages of one subject from a JetStream stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error

from wshub.brokers.nats_connection import MessageSink
from wshub.brokers.nats_streams import API, NO_STREAM, SECONDS, ApiError, StreamName, ask
from wshub.errors import BrokerUnavailable

__all__ = ["Page", "StoredMessage", "StreamReader"]

# Messages that are asked for at a time.
BATCH = 256

# Seconds after which the engine forgets a consumer that nobody has deleted.
IDLE_SECONDS = 10

# Bytes of the subject and the headers of a message, at most.
HEADERS = 4096

# The status behind the messages of a batch.
END_OF_BATCH = "204"

# The status that stands for a stream that is not there.
NO_RESPONDERS = "503"


class StoredMessage(NamedTuple):
    """A message of a stream."""

    sequence: int
    data: bytes


@dataclass(slots=True)
class Page:
    """Messages of a subject, the oldest first."""

    messages: list[StoredMessage] = field(default_factory=list)
    available: int = 0
    """The number of messages that there were from the start on; more than those of the page if it was bounded."""


class StreamReader:
    """Reads with few requests: a batch of direct gets from nats-server 2.11 on, and an ephemeral consumer before.

    Args:
        client: a connection.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def read(self, stream: StreamName, subject: str, start: int, limit: int, max_bytes: int) -> Page:
        """Return messages from a sequence on: at most so many, and at most so many bytes beside the first two.

        Raises:
            BrokerUnavailable: the engine has not answered.
            ApiError: it has answered with an error, for example because the stream is gone.
        """
        read = self._read_batches if self._has_batches() else self._read_consumer
        try:
            async with asyncio.timeout(SECONDS):
                return await read(stream, subject, start, limit, max_bytes)
        except TimeoutError:
            raise BrokerUnavailable(f"JetStream has not answered within {SECONDS:g} s") from None
        except (Error, OSError) as error:
            raise BrokerUnavailable(f"JetStream does not answer: {str(error) or type(error).__name__}") from None

    def _has_batches(self) -> bool:
        version = self._client.connected_server_version
        return (version.major, version.minor) >= (2, 11)

    # The way of nats-server 2.11

    async def _read_batches(self, stream: StreamName, subject: str, start: int, limit: int, max_bytes: int) -> Page:
        page = Page()
        size = 0
        while len(page.messages) < limit and size <= max_bytes:
            question = {
                "seq": start,
                "next_by_subj": subject,
                "batch": min(limit - len(page.messages), BATCH),
                "max_bytes": self._bytes_to_ask_for(max_bytes - size),
            }
            async with self._answers() as (inbox, answers):
                await self._client.publish(f"{API}.DIRECT.GET.{stream}", json.dumps(question).encode(), inbox)
                # A batch ends with a status.
                while (status := status_of(message := await answers.get())) is None:
                    headers = message.headers or {}
                    start = int(headers["Nats-Sequence"]) + 1
                    if not page.messages:
                        page.available = int(headers["Nats-Num-Pending"]) + 1
                    page.messages.append(StoredMessage(start - 1, message.data))
                    size += len(message.data)
            if status == NO_RESPONDERS:
                raise ApiError("the stream is gone", NO_STREAM)
            if status != END_OF_BATCH or int((message.headers or {}).get("Nats-Num-Pending", 0)) == 0:
                break
        return page

    # The way of nats-server 2.9

    async def _read_consumer(self, stream: StreamName, subject: str, start: int, limit: int, max_bytes: int) -> Page:
        settings = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "filter_subject": subject,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": IDLE_SECONDS * 1_000_000_000,
        }
        question = {"stream_name": str(stream), "config": settings}
        consumer = await ask(self._client, f"{API}.CONSUMER.CREATE.{stream}", question)
        page = Page(available=int(consumer.get("num_pending", 0)))
        try:
            await self._pull(f"{stream}.{consumer['name']}", page, min(limit, page.available), max_bytes)
        finally:
            await self._client.publish(f"{API}.CONSUMER.DELETE.{stream}.{consumer['name']}")
        return page

    async def _pull(self, consumer: str, page: Page, limit: int, max_bytes: int) -> None:
        size = 0
        while len(page.messages) < limit and size <= max_bytes:
            batch = min(limit - len(page.messages), BATCH)
            question = {"batch": batch, "no_wait": True, "max_bytes": self._bytes_to_ask_for(max_bytes - size)}
            async with self._answers() as (inbox, answers):
                await self._client.publish(f"{API}.CONSUMER.MSG.NEXT.{consumer}", json.dumps(question).encode(), inbox)
                for _ in range(batch):
                    message = await answers.get()
                    if status_of(message) is not None:
                        # The rest is too large, or was trimmed meanwhile.
                        return
                    page.messages.append(StoredMessage(message.metadata.sequence.stream, message.data))
                    size += len(message.data)

    def _bytes_to_ask_for(self, max_bytes: int) -> int:
        """Return a bound that leaves room for one message of any size."""
        return max_bytes + self._client.max_payload + HEADERS

    # Questions with several answers

    @contextlib.asynccontextmanager
    async def _answers(self) -> AsyncIterator[tuple[str, asyncio.Queue[Msg]]]:
        """Yield a subject for answers, and the queue that gets them."""
        inbox = self._client.new_inbox()
        answers: asyncio.Queue[Msg] = asyncio.Queue()
        # The subjects of the answers are those of the messages, so each question has a subscription.
        subscription = await self._client.subscribe(inbox, future=MessageSink(answers.put_nowait))
        try:
            yield inbox, answers
        finally:
            if self._client.is_connected:
                await subscription.unsubscribe()


def status_of(message: Msg) -> str | None:
    """Return the status of an answer that is no message of the stream."""
    return message.headers.get("Status") if message.headers is not None else None
