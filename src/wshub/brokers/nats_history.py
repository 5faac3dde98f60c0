"""The histories of channels in JetStream: read since a position, backwards, and bounded.

The offset of an envelope is its sequence in the stream, which all channels with the same limits share. So within a
channel offsets grow, and have holes. An envelope names the offset of the one before it on its channel.

A stream keeps a number of messages of each channel, one more than is promised. A reader leaves out messages that
are too old, or too many bytes.
"""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from wshub.brokers.envelope import mark_of
from wshub.brokers.history_interface import HistoryQuery, StoredEnvelope, StoredHistory
from wshub.brokers.history_store import select
from wshub.brokers.interface import Gap, HistoryConfig, Position
from wshub.brokers.nats_epochs import ChannelEpochs
from wshub.brokers.nats_reading import StoredMessage, StreamReader
from wshub.brokers.nats_requests import ApiError, Requests
from wshub.brokers.nats_storing import Storing
from wshub.brokers.nats_streams import GONE, NO_MESSAGE, Stream, StreamLimits, Streams, seconds_of
from wshub.errors import BrokerError, BrokerUnavailable

__all__ = ["NatsHistories"]

# Attempts to read, if streams are deleted meanwhile or a replica is behind; and seconds between them.
ATTEMPTS = 8
PAUSE = 0.02

# Seconds for which the engine's clock is taken to run like that of this machine.
CLOCK_SECONDS = 60.0

# Bytes of one reading of all that is kept.
PAGE_BYTES = 4 * 1024 * 1024


class BehindError(BrokerUnavailable):
    """A replica has not got all messages yet, or those that were read are gone by now."""


class Source(NamedTuple):
    """Where the envelopes of a channel are stored."""

    stream: Stream
    subject: str
    epoch: str
    config: HistoryConfig


class Last(NamedTuple):
    """The newest message of a channel."""

    offset: int
    is_expired: bool
    mark: bytes


class Kept(NamedTuple):
    """Messages of a channel, the oldest first."""

    messages: list[StoredMessage]
    previous: int
    """The offset behind which none is missing."""


class NatsHistories:
    """The histories of one hub.

    Args:
        requests: asks the engine.
        streams: finds the streams.
        epochs: of channels.
        reader: reads messages.
        storing: stores what is published.
    """

    def __init__(
        self, requests: Requests, streams: Streams, epochs: ChannelEpochs, reader: StreamReader, storing: Storing
    ) -> None:
        self.send = storing.send
        self.publish = storing.publish
        self._requests = requests
        self._streams = streams
        self._epochs = epochs
        self._reader = reader
        # The engine's clock minus that of the loop, and until when that is taken to be right.
        self._clock_difference = 0.0
        self._clock_until = 0.0

    def attached(self) -> None:
        """Ask for the time again: the connection is a new one."""
        self._clock_until = 0.0

    async def read(self, channel: str, config: HistoryConfig, query: HistoryQuery) -> StoredHistory:
        """Return what is stored of a channel. Raises ``BrokerUnavailable``."""
        for attempt in range(ATTEMPTS):
            try:
                return await self._read(channel, config, query, attempt)
            except ApiError as error:
                if error.code not in GONE:
                    raise BrokerUnavailable(f"the history could not be read: {error}") from None
                self._streams.forget_limits(StreamLimits.of(config))
            except BehindError:
                if attempt == ATTEMPTS - 1:
                    raise
            except BrokerUnavailable:
                raise
            except BrokerError as error:
                raise BrokerUnavailable(f"the history could not be read: {error}") from None
            await asyncio.sleep(attempt * PAUSE)
        raise BrokerUnavailable("the stream of the channel has gone again and again")

    async def _read(self, channel: str, config: HistoryConfig, query: HistoryQuery, attempt: int) -> StoredHistory:
        stream = await self._streams.find(StreamLimits.of(config))
        source = self._source(stream, channel, config)
        last = await self._last(source)
        top = last.offset if last is not None else 0
        if last is None:
            # No message of the channel is at or before this sequence, since there is none afterwards either.
            top = await self._top(stream)
            last = await self._last(source)
            top = last.offset if last is not None else top
        gap: Gap = ""
        since = query.since
        if since is not None and (since.epoch != source.epoch or since.offset > top):
            if query.is_own and since.epoch == source.epoch:
                if self._streams.replicas > 1 and attempt < ATTEMPTS - 1:
                    # Another server may have taken the stream over, and is still reading its log.
                    raise BehindError("the engine is behind the position of this node")
                return await self._begin_epoch(source, channel)
            query, gap = replace(query, since=None), "epoch"
        elif query.is_own and await self._has_other(source, query):
            return await self._begin_epoch(source, channel)
        if last is None:
            return await self._read_empty(source, top, query.since, gap)
        position = Position(top, source.epoch)
        if not query.limit or (query.since == position and not query.reverse):
            return StoredHistory(envelopes=(), position=position, gap=gap, mark=last.mark)
        if query.reverse:
            return await self._newest(source, last, query, gap)
        return await self._oldest(source, last, query, gap)

    async def _begin_epoch(self, source: Source, channel: str) -> StoredHistory:
        """Begin a new epoch for all channels of a stream: it has lost messages."""
        source = self._source(await self._streams.renew(source.stream), channel, source.config)
        return StoredHistory(envelopes=(), position=Position(0, source.epoch), gap="epoch")

    async def _has_other(self, source: Source, query: HistoryQuery) -> bool:
        """Whether a stream has another message at a position than the one of the channel with this mark."""
        if query.since is None or not query.mark:
            return False
        try:
            answer = await self._requests.ask(f"STREAM.MSG.GET.{source.stream.name}", {"seq": query.since.offset})
        except ApiError as error:
            if error.code == NO_MESSAGE:
                return False
            raise
        message = answer["message"]
        return message["subject"] != source.subject or mark_in(message) not in (b"", query.mark)

    def _source(self, stream: Stream, channel: str, config: HistoryConfig) -> Source:
        tokens = self._epochs.tokens(channel)
        return Source(stream, stream.subjects + tokens, self._epochs.epoch(stream.epoch, tokens), config)

    async def _read_empty(self, source: Source, top: int, since: Position | None, gap: Gap) -> StoredHistory:
        """Return the position in a channel without a message. A reader that has missed none keeps its own."""
        floor = await self._floor(source.stream)
        if since is not None:
            if since.offset >= floor:
                return StoredHistory(envelopes=(), position=since)
            gap = "trimmed"
        return StoredHistory(envelopes=(), position=Position(top, source.epoch), gap=gap, previous=floor)

    # Messages

    async def _oldest(self, source: Source, last: Last, query: HistoryQuery, gap: Gap) -> StoredHistory:
        kept = None
        if query.since is not None:
            kept = await self._behind(source, last, query.since.offset, query)
            gap = "trimmed" if kept is None else ""
        if kept is None:
            kept = await self._all(source, last)
        return StoredHistory(
            envelopes=select(stored_in(kept.messages), query),
            position=position_of(source, last, kept),
            gap=gap,
            previous=kept.previous,
        )

    async def _newest(self, source: Source, last: Last, query: HistoryQuery, gap: Gap) -> StoredHistory:
        """Read the newest messages before a position, the newest first."""
        # A stream cannot be read backwards by subject.
        kept = await self._all(source, last) if not gap else Kept([], last.offset)
        end = query.since.offset if query.since is not None else last.offset + 1
        messages = [message for message in reversed(kept.messages) if query.since is None or message.sequence < end]
        return StoredHistory(
            envelopes=select(stored_in(messages), query), position=position_of(source, last, kept), gap=gap
        )

    async def _behind(self, source: Source, last: Last, offset: int, query: HistoryQuery) -> Kept | None:
        """Return messages behind an offset; None if some of them are not kept any more."""
        if last.is_expired:
            return None
        # The message at the offset is read too. If it is there, none behind it was trimmed.
        page = await self._reader.read(source.stream.name, source.subject, offset, query.limit + 1, query.max_bytes)
        messages = page.messages
        check_end(messages, last, page.available)
        if not await self._is_whole(source, messages):
            return None
        if offset and messages and messages[0].sequence == offset:
            messages = messages[1:]
        # The engine deletes messages of a channel once it has one more than is promised.
        elif page.available > source.config.size or offset < await self._floor(source.stream):
            return None
        # So do the nodes if there are more bytes than are promised.
        elif page.available > len(messages) or size_of(messages) > source.config.max_bytes:
            kept = await self._all(source, last)
            if kept.previous > offset:
                return None
        return None if has_pause(messages, source.config) else Kept(messages, offset)

    async def _all(self, source: Source, last: Last) -> Kept:
        """Return all messages that are kept."""
        if last.is_expired:
            return Kept([], last.offset)
        kept: deque[StoredMessage] = deque()
        size, dropped, start = 0, None, 1
        while True:
            page = await self._reader.read(
                source.stream.name, source.subject, start, source.config.size + 1, PAGE_BYTES
            )
            check_end(page.messages, last, page.available)
            for message in page.messages:
                if kept and has_pause([kept[-1], message], source.config):
                    dropped, size = kept[-1].sequence, 0
                    kept.clear()
                kept.append(message)
                size += len(message.data)
                while len(kept) > source.config.size or (size > source.config.max_bytes and len(kept) > 1):
                    oldest = kept.popleft()
                    dropped, size = oldest.sequence, size - len(oldest.data)
            if page.available <= len(page.messages) or not page.messages:
                break
            start = page.messages[-1].sequence + 1
        if not await self._is_whole(source, kept):
            page = await self._reader.read(source.stream.name, source.subject, 1, 1, 0)
            oldest_left = page.messages[0].sequence if page.messages else last.offset + 1
            while kept and kept[0].sequence < oldest_left:
                dropped = kept.popleft().sequence
            if not kept:
                raise BehindError("all messages of the history were deleted while it was read")
        previous = dropped if dropped is not None else await self._floor(source.stream)
        return Kept(list(kept), previous)

    # What the engine knows

    async def _is_whole(self, source: Source, messages: Sequence[StoredMessage]) -> bool:
        """Whether none is missing among messages that were read one after the other, and deleted meanwhile.

        The oldest are deleted first. So if the first one is still there, all are.
        """
        if len(messages) < 2:
            return True
        try:
            await self._requests.ask(f"STREAM.MSG.GET.{source.stream.name}", {"seq": messages[0].sequence})
        except ApiError as error:
            if error.code == NO_MESSAGE:
                return False
            raise
        return True

    async def _last(self, source: Source) -> Last | None:
        """Return the newest message of a channel, as the leader of the stream knows it; None if there is none."""
        question = {"last_by_subj": source.subject}
        try:
            answer = await self._requests.ask(f"STREAM.MSG.GET.{source.stream.name}", question)
        except ApiError as error:
            if error.code == NO_MESSAGE:
                return None
            raise
        message = answer["message"]
        age = await self._engine_time(source.stream) - seconds_of(message["time"])
        return Last(int(message["seq"]), age > source.config.ttl_ms / 1000, mark_in(message))

    async def _top(self, stream: Stream) -> int:
        """Return the newest sequence of a stream."""
        return int((await self._info(stream))["state"]["last_seq"])

    async def _floor(self, stream: Stream) -> int:
        """Return a sequence behind which no message was deleted because of its age."""
        if await self._engine_time(stream) < stream.created_at + stream.limits.seconds:
            return 0
        return max(int((await self._info(stream))["state"]["first_seq"]) - 1, 0)

    async def _info(self, stream: Stream) -> dict[str, Any]:
        return await self._requests.ask(f"STREAM.INFO.{stream.name}")

    async def _engine_time(self, stream: Stream) -> float:
        """Return the time by the clock of the engine, which also stamps the messages."""
        now = asyncio.get_running_loop().time()
        if now >= self._clock_until:
            text = (await self._info(stream)).get("ts")
            if text is None:
                # nats-server 2.9 tells its time only to those who make something.
                replicas = self._streams.replicas
                settings = {
                    "ack_policy": "none",
                    "deliver_policy": "new",
                    "mem_storage": True,
                    "num_replicas": replicas,
                }
                question = {"stream_name": stream.name, "config": {**settings, "inactive_threshold": 1_000_000_000}}
                made = await self._requests.ask(f"CONSUMER.CREATE.{stream.name}", question)
                text = made["created"]
                self._requests.tell(f"CONSUMER.DELETE.{stream.name}.{made['name']}")
            self._clock_difference = seconds_of(text) - now
            self._clock_until = now + CLOCK_SECONDS
        return now + self._clock_difference


def mark_in(message: dict[str, Any]) -> bytes:
    """Return the mark of a message that the engine has answered with."""
    return mark_of(base64.b64decode(message.get("data") or ""))


def size_of(messages: Iterable[StoredMessage]) -> int:
    """Return the bytes of some messages."""
    return sum(len(message.data) for message in messages)


def position_of(source: Source, last: Last, kept: Kept) -> Position:
    """Return the position of the newest message. Some may have been stored since it was asked for."""
    newest = kept.messages[-1].sequence if kept.messages else 0
    return Position(max(last.offset, newest), source.epoch)


def check_end(messages: list[StoredMessage], last: Last, available: int) -> None:
    """Raise ``BehindError`` if a replica has answered that has not got the newest message yet."""
    if not messages or (available <= len(messages) and messages[-1].sequence < last.offset):
        raise BehindError("a replica of the history is behind")


def has_pause(messages: Iterable[StoredMessage], config: HistoryConfig) -> bool:
    """Return whether some of the messages were forgotten: no other one followed within their time to live."""
    times = [message.stored_at for message in messages]
    return any(later - earlier > config.ttl_ms / 1000 for earlier, later in pairwise(times))


def stored_in(messages: Iterable[StoredMessage]) -> Iterator[StoredEnvelope]:
    """Yield what messages hold."""
    return (StoredEnvelope(message.sequence, message.data) for message in messages)
