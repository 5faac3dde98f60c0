"""Histories of channels in JetStream: published, sent and stored in one step, and read since a position."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from nats.aio.client import Client
from nats.errors import Error, NoRespondersError

from wshub.brokers.nats_reading import Page, StoredMessage, StreamReader
from wshub.brokers.nats_streams import (
    API,
    GONE,
    SECONDS,
    ApiError,
    Storage,
    StreamLimits,
    StreamName,
    Streams,
    ask,
    read_answer,
    seconds_of,
)
from wshub.errors import BrokerUnavailable, BrokerUncertain

__all__ = ["JetStreamHistory", "StoredHead", "StoredMessages", "StoredPosition", "StoredPublished", "head_of"]

# The codes of errors that say that a message, or a stream, is not there; and that the stream is another one.
NO_MESSAGE = 10037
WRONG_STREAM = 10060

# Streams that are tried, if one after the other is deleted meanwhile.
ATTEMPTS = 4

# Seconds for which the engine's clock is taken to run like that of this machine.
CLOCK_SECONDS = 60.0


Gap: TypeAlias = Literal["", "epoch", "trimmed"]


class StoredPosition(NamedTuple):
    """Where an envelope stands in its channel: a greater offset is later, within one epoch."""

    offset: int
    epoch: str


class StoredHead(NamedTuple):
    """The place of an envelope that arrives: its offset, that of the one before it on its channel, and the epoch.

    ``previous`` is 0 for the first one of an epoch. If several programs publish at once, nats-server 2.9 now and then
    sends an envelope before the previous one.
    """

    offset: int
    previous: int
    epoch: str


@dataclass(frozen=True, slots=True)
class StoredPublished:
    """The outcome of ``publish_stored()``."""

    position: StoredPosition
    is_duplicate: bool


@dataclass(frozen=True, slots=True)
class StoredMessages:
    """Envelopes of a channel."""

    envelopes: tuple[tuple[int, bytes], ...]
    """Offsets and envelopes: the oldest first, or the newest first in reverse."""

    position: StoredPosition
    """The position of the newest envelope of the channel; offset 0 if there is none."""

    gap: Gap = ""
    """Why the envelopes do not begin behind ``since``; empty if they do."""


class Source(NamedTuple):
    """Where the envelopes of a channel are stored."""

    stream: StreamName
    subject: str
    limits: StreamLimits


class Last(NamedTuple):
    """The newest message of a channel."""

    offset: int = 0
    is_expired: bool = False


class JetStreamHistory:
    """The histories of the channels of one hub, over one connection. Make another one for the next connection.

    Args:
        client: a connection.
        prefix: the first token of the subjects.
        hub: the name of the hub.
        storage: where the engine keeps envelopes: ``file`` survives a restart of the server, ``memory`` does not.
        replicas: how many servers of a cluster keep them.
    """

    def __init__(self, client: Client, prefix: str, hub: str, *, storage: Storage = "file", replicas: int = 1) -> None:
        self._client = client
        self._streams = Streams(client, prefix, hub, storage, replicas)
        self._reader = StreamReader(client)
        # The engine's clock minus that of the loop, and until when that is taken to be right.
        self._clock_difference = 0.0
        self._clock_until = 0.0

    # Publishing

    async def publish_stored(
        self, channel: str, envelope: bytes, limits: StreamLimits, key: str = ""
    ) -> StoredPublished:
        """Store an envelope and send it to the nodes that have the channel, in one step. Return its position.

        Args:
            channel: its name.
            envelope: any bytes.
            limits: how much of the channel is kept. All programs must use the same.
            key: stores nothing if an envelope with this key was stored on the channel within five minutes. The result
                has the position of that one then. An empty key does nothing.

        Raises:
            BrokerUnavailable: nothing was stored.
            BrokerUncertain: the answer was lost, so it may have been stored. Try again with the same key.
            BrokerError: the engine refuses.
        """
        headers = {"Nats-Msg-Id": hashlib.sha256(f"{channel}\0{key}".encode(errors="surrogatepass")).hexdigest()}
        for attempt in range(ATTEMPTS):
            stream = await self._streams.find(limits)
            try:
                answer = await self._store(stream, channel, envelope, limits, headers if key else {})
            except ApiError as error:
                if error.code != WRONG_STREAM or attempt == ATTEMPTS - 1:
                    raise
            except NoRespondersError:
                if attempt == ATTEMPTS - 1:
                    raise BrokerUnavailable("the engine has no stream for the channel") from None
            else:
                position = StoredPosition(int(answer["seq"]), stream.epoch)
                return StoredPublished(position, bool(answer.get("duplicate")))
            # Another node has begun a new epoch. Nothing was stored.
            self._streams.forget(limits)
        raise AssertionError("unreachable")

    async def _store(
        self, stream: StreamName, channel: str, envelope: bytes, limits: StreamLimits, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        if not self._client.is_connected:
            raise BrokerUnavailable("there is no connection to the engine")
        subject = self._streams.subject(channel, limits)
        # The name of the stream has the epoch, so an envelope is never stored in another epoch than is told.
        headers = {**headers, "Nats-Expected-Stream": str(stream)}
        try:
            message = await self._client.request(subject, envelope, timeout=SECONDS, headers=headers)
        except NoRespondersError:
            raise
        except (Error, OSError) as error:
            raise BrokerUncertain(f"JetStream has not answered: {str(error) or type(error).__name__}") from None
        return read_answer(message.data)

    # Reading

    async def history(
        self,
        channel: str,
        limits: StreamLimits,
        *,
        since: StoredPosition | None = None,
        limit: int = 100,
        max_bytes: int = 1024 * 1024,
        reverse: bool = False,
        is_own: bool = False,
    ) -> StoredMessages:
        """Return what is stored of a channel.

        Args:
            channel: its name.
            limits: how much of the channel is kept.
            since: return envelopes behind this position; in reverse, before it. None begins with the oldest envelope,
                or with the newest in reverse.
            limit: maximum number of envelopes; 0 asks for the position alone.
            max_bytes: maximum number of bytes of envelopes. The first one is returned whatever its size.
            reverse: whether the newest comes first. The engine reads all envelopes of the channel for that.
            is_own: whether ``since`` is the position that this node has got to. If it is newer than all that is stored,
                the engine has lost envelopes, and a new epoch begins for all channels with these limits.

        Raises:
            BrokerUnavailable: the engine has not answered.
            BrokerError: it refuses.
        """
        for _ in range(ATTEMPTS):
            stream = await self._streams.find(limits)
            source = Source(stream, self._streams.subject(channel, limits), limits)
            try:
                last = await self._last(source)
                if is_own and since is not None and since.epoch == stream.epoch and since.offset > last.offset:
                    stream = await self._streams.renew(limits, stream)
                    return StoredMessages((), StoredPosition(0, stream.epoch), "epoch")
                read = self._newest if reverse else self._oldest
                return await read(source, last, since, limit, max_bytes)
            except ApiError as error:
                if error.code not in GONE:
                    raise
                self._streams.forget(limits)
        raise BrokerUnavailable("the stream of the channel has gone again and again")

    async def _oldest(
        self, source: Source, last: Last, since: StoredPosition | None, limit: int, max_bytes: int
    ) -> StoredMessages:
        position = StoredPosition(last.offset, source.stream.epoch)
        gap: Gap = ""
        if since is not None and (since.epoch != position.epoch or since.offset > last.offset):
            since, gap = None, "epoch"
        if since == position:
            return StoredMessages((), position)
        if last.is_expired:
            return StoredMessages((), position, gap if since is None else "trimmed")
        if limit <= 0 or not last.offset:
            return StoredMessages((), position, gap)
        # The message at the position is read too. If it is there, none behind it was trimmed.
        start = since.offset if since is not None else 0
        page = await self._reader.read(source.stream, source.subject, max(start, 1), limit + 1, max_bytes)
        found, is_trimmed = behind(page, start, source.limits.size)
        if since is not None and is_trimmed:
            gap = "trimmed"
        return StoredMessages(bounded(found, limit, max_bytes, last.offset), position, gap)

    async def _newest(
        self, source: Source, last: Last, since: StoredPosition | None, limit: int, max_bytes: int
    ) -> StoredMessages:
        """Read the newest envelopes before a position, the newest first."""
        position = StoredPosition(last.offset, source.stream.epoch)
        gap: Gap = ""
        if since is not None and since.epoch != position.epoch:
            since, gap = None, "epoch"
        if limit <= 0 or last.is_expired:
            return StoredMessages((), position, gap)
        # A stream cannot be read backwards by subject. So all is read, in pieces of the bytes that are wanted.
        kept: deque[StoredMessage] = deque(maxlen=limit)
        start, end = 1, since.offset if since is not None else last.offset + 1
        while start < end:
            page = await self._reader.read(source.stream, source.subject, start, source.limits.size + 1, max_bytes)
            if not page.messages:
                break
            found, _ = behind(page, 0, source.limits.size) if start == 1 else (page.messages, False)
            kept.extend(message for message in found if message.sequence < end)
            start = page.messages[-1].sequence + 1
        return StoredMessages(bounded(reversed(kept), limit, max_bytes, last.offset), position, gap)

    async def _last(self, source: Source) -> Last:
        """Return the newest message of a subject, as the leader of the stream knows it."""
        question = {"last_by_subj": source.subject}
        try:
            answer = await ask(self._client, f"{API}.STREAM.MSG.GET.{source.stream}", question)
        except ApiError as error:
            if error.code == NO_MESSAGE:
                return Last()
            raise
        message = answer["message"]
        age = await self._engine_time(source.stream) - seconds_of(message["time"])
        return Last(int(message["seq"]), age > source.limits.ttl_ms / 1000)

    async def _engine_time(self, stream: StreamName) -> float:
        """Return the time by the clock of the engine, which also stamps the messages."""
        now = asyncio.get_running_loop().time()
        if now >= self._clock_until:
            info = await ask(self._client, f"{API}.STREAM.INFO.{stream}", {})
            text = info.get("ts")
            if text is None:
                # nats-server 2.9 tells its time only to those who make something.
                settings = {"ack_policy": "none", "deliver_policy": "new", "mem_storage": True, "num_replicas": 1}
                question = {"stream_name": str(stream), "config": {**settings, "inactive_threshold": 1_000_000_000}}
                made = await ask(self._client, f"{API}.CONSUMER.CREATE.{stream}", question)
                text = made["created"]
                await self._client.publish(f"{API}.CONSUMER.DELETE.{stream}.{made['name']}")
            self._clock_difference = seconds_of(text) - now
            self._clock_until = now + CLOCK_SECONDS
        return now + self._clock_difference


def head_of(headers: Mapping[str, str] | None) -> StoredHead | None:
    """Return the place of a message that the engine has sent from a stream, or None for a plain one."""
    if headers is None or "Nats-Sequence" not in headers:
        return None
    try:
        offset, previous = int(headers["Nats-Sequence"]), int(headers.get("Nats-Last-Sequence", 0))
    except ValueError:
        return None
    return StoredHead(offset, previous, StreamName.parse(headers.get("Nats-Stream", "")).epoch)


def behind(page: Page, start: int, size: int) -> tuple[list[StoredMessage], bool]:
    """Return the messages of a page behind an offset, and whether some that were there are not kept any more."""
    if start and page.messages and page.messages[0].sequence == start:
        return page.messages[1:], False
    # The engine keeps one more than is promised.
    surplus = page.available - size
    return page.messages[max(surplus, 0) :], bool(start) or surplus > 0


def bounded(messages: Iterable[StoredMessage], limit: int, max_bytes: int, last: int) -> tuple[tuple[int, bytes], ...]:
    """Return the first of some messages: at most so many, and so many bytes beside the first one."""
    found: list[tuple[int, bytes]] = []
    size = 0
    for message in messages:
        size += len(message.data)
        # Envelopes that were stored after the position was read belong to a later answer.
        if len(found) >= limit or (found and size > max_bytes) or message.sequence > last:
            break
        found.append((message.sequence, message.data))
    return tuple(found)
