"""Storing envelopes in JetStream: in the order in which they were published, bounded and counted."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from wshub.brokers.interface import HistoryConfig, Position, Published
from wshub.brokers.nats_epochs import ChannelEpochs
from wshub.brokers.nats_publishing import Publishing
from wshub.brokers.nats_requests import ApiError, NoResponderError, Outcome, Requests, read_answer
from wshub.brokers.nats_streams import Stream, StreamLimits, Streams
from wshub.brokers.nats_trimming import Trimming
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

__all__ = ["Storing"]

logger = logging.getLogger("wshub.broker")

# Envelopes of one stream whose answers are waited for. A server refuses more than 10,000 of all nodes together.
IN_FLIGHT = 256

# Streams that are tried for one envelope, if one after the other is deleted meanwhile.
ATTEMPTS = 8


class Outgoing:
    """An envelope that is to be stored."""

    __slots__ = ("answer", "attempts", "envelope", "headers", "max_bytes", "number", "tokens", "top")

    def __init__(
        self,
        number: int,
        tokens: str,
        envelope: bytes,
        max_bytes: int,
        key: str,
        answer: asyncio.Future[Published] | None,
    ):
        self.number = number
        self.max_bytes = max_bytes
        """Bytes that the channel keeps."""
        self.tokens = tokens
        self.envelope = envelope
        self.headers = {"Nats-Msg-Id": hashed(f"{tokens} {key}")} if key else None
        self.answer = answer
        self.attempts = 0
        self.top = 0
        """The greatest sequence of the stream that was known when the envelope was sent."""


class Lane:
    """The envelopes for one stream. Those of a stream that has gone wait for the next one, and keep their order."""

    def __init__(self, limits: StreamLimits) -> None:
        self.limits = limits
        self.stream: Stream | None = None
        self.lost: Stream | None = None
        """A stream that the engine has begun again under its name. It must not be used any more."""
        self.top = 0
        """The greatest sequence that the stream has answered with."""
        self.waiting: deque[Outgoing] = deque()
        self.in_flight = 0
        self.finding: asyncio.Task[None] | None = None


class Storing:
    """Stores envelopes, and counts each once: as stored, or as dropped.

    Args:
        requests: asks the engine.
        streams: finds the streams.
        epochs: of channels.
        publishing: has the bound on what waits, and the counts of what was dropped.
        trimming: is told what was stored.
    """

    def __init__(
        self,
        requests: Requests,
        streams: Streams,
        epochs: ChannelEpochs,
        publishing: Publishing,
        trimming: Trimming,
    ) -> None:
        self.stored = 0
        """Envelopes that the engine has stored."""
        self.dropped: Counter[str] = Counter()
        """Envelopes that were admitted and not stored, by reason."""
        self._requests = requests
        self._streams = streams
        self._epochs = epochs
        self._publishing = publishing
        self._trimming = trimming
        self._lanes: dict[StreamLimits, Lane] = {}
        # The lane of the last configuration. Most messages have the same.
        self._last: tuple[HistoryConfig | None, Lane | None] = (None, None)
        self._number = 0
        self._waiting_bytes = 0
        self._is_closed = False
        # Set when drain() has nothing more to wait for.
        self._idle: asyncio.Event | None = None

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for their stream."""
        return self._waiting_bytes

    def send(self, channel: str, envelope: bytes, config: HistoryConfig) -> bool:
        """Have an envelope stored, and forget it. Return False if it was dropped."""
        return self._put(channel, envelope, config, "", None)

    async def publish(self, channel: str, envelope: bytes, config: HistoryConfig, key: str) -> Published:
        """Store an envelope, and return its position. Raises ``BrokerError``."""
        answer: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
        if not self._put(channel, envelope, config, key, answer):
            raise BrokerUnavailable(self._publishing.why_dropped)
        try:
            return await answer
        finally:
            # An error of this future holds the traceback, and so this frame and the future: only the collector would
            # free them.
            del answer

    def attached(self) -> None:
        """Look for the streams again: the connection is a new one."""
        self._streams.forget_all()
        for lane in self._lanes.values():
            lane.stream = None

    def detached(self) -> None:
        """Drop what waits: the connection has ended. The requests under way have failed before."""
        for lane in self._lanes.values():
            self._fail_waiting(lane, BrokerUnavailable("the connection to the engine has ended"), "disconnected")

    def close(self) -> None:
        """End the tasks. The connection has ended."""
        self._is_closed = True
        self._trimming.close()
        for lane in self._lanes.values():
            if lane.finding is not None:
                lane.finding.cancel()

    async def drain(self) -> None:
        """Return when the engine has answered for all that was sent. Cancel it if that takes too long."""
        self._idle = asyncio.Event()
        self._check_idle()
        await self._idle.wait()

    def _check_idle(self) -> None:
        if self._idle is not None and not any(lane.waiting or lane.in_flight for lane in self._lanes.values()):
            self._idle.set()

    # An envelope

    def _put(
        self,
        channel: str,
        envelope: bytes,
        config: HistoryConfig,
        key: str,
        answer: asyncio.Future[Published] | None,
    ) -> bool:
        if self._publishing.admit(len(envelope), self._waiting_bytes) is None:
            return False
        self._number += 1
        outgoing = Outgoing(self._number, self._epochs.tokens(channel), envelope, config.max_bytes, key, answer)
        lane = self._lane(config)
        self._wait(lane, outgoing)
        self._pump(lane)
        return True

    def _lane(self, config: HistoryConfig) -> Lane:
        last_config, lane = self._last
        if last_config is not config or lane is None:
            limits = StreamLimits.of(config)
            lane = self._lanes.setdefault(limits, Lane(limits))
            self._last = config, lane
        return lane

    def _wait(self, lane: Lane, outgoing: Outgoing) -> None:
        lane.waiting.append(outgoing)
        self._waiting_bytes += len(outgoing.envelope)

    def _pump(self, lane: Lane) -> None:
        """Send what waits, as far as the stream is known and answers keep up."""
        if lane.stream is None:
            # Envelopes on their way to a stream that has gone come back before.
            if lane.waiting and not lane.in_flight and lane.finding is None and not self._is_closed:
                lane.finding = asyncio.get_running_loop().create_task(self._find(lane))
            return
        while lane.waiting and lane.in_flight < IN_FLIGHT and lane.stream is not None:
            outgoing = lane.waiting.popleft()
            self._waiting_bytes -= len(outgoing.envelope)
            self._store(lane, lane.stream, outgoing)

    def _store(self, lane: Lane, stream: Stream, outgoing: Outgoing) -> None:
        outgoing.top = lane.top
        take = partial(self._take, lane, stream, outgoing)
        if self._requests.send(stream.subjects + outgoing.tokens, outgoing.envelope, take, outgoing.headers):
            lane.in_flight += 1
        else:
            self._fail(outgoing, BrokerUnavailable("the connection to the engine has ended"), "disconnected")

    def _take(self, lane: Lane, stream: Stream, outgoing: Outgoing, outcome: Outcome) -> bool:
        """Take the answer for an envelope."""
        lane.in_flight -= 1
        if isinstance(outcome, NoResponderError):
            self._store_again(lane, stream, outgoing)
        elif isinstance(outcome, BrokerUncertain):
            self._fail(outgoing, outcome, "unanswered")
        elif isinstance(outcome, BrokerError):
            self._fail(outgoing, outcome, "refused")
        else:
            try:
                answer = read_answer(outcome)
                self._stored(lane, stream, outgoing, int(answer["seq"]), is_duplicate=bool(answer.get("duplicate")))
            except ApiError as error:
                self._fail(outgoing, error, "refused")
            except (BrokerUncertain, KeyError, ValueError) as error:
                self._fail(outgoing, BrokerUncertain(str(error)), "unanswered")
        self._pump(lane)
        self._check_idle()
        return False

    def _stored(self, lane: Lane, stream: Stream, outgoing: Outgoing, sequence: int, *, is_duplicate: bool) -> None:
        if sequence <= outgoing.top and not is_duplicate and lane.stream == stream:
            # The engine has lost the stream and has begun it again under its name. Offsets would be used twice.
            logger.error("the engine has lost the histories of a stream, which begin new epochs: %s", stream.name)
            lane.lost = stream
            self._store_again(lane, stream, outgoing)
            return
        if lane.stream == stream:
            lane.top = max(lane.top, sequence)
        self.stored += 1
        if not is_duplicate:
            self._trimming.count(stream, outgoing.tokens, len(outgoing.envelope), outgoing.max_bytes)
        if outgoing.answer is not None and not outgoing.answer.done():
            position = Position(sequence, self._epochs.epoch(stream.epoch, outgoing.tokens))
            outgoing.answer.set_result(Published(position=position, is_duplicate=is_duplicate))

    def _store_again(self, lane: Lane, stream: Stream, outgoing: Outgoing) -> None:
        """Store an envelope in the stream that takes the place of one that is gone. It was not stored."""
        if lane.stream == stream:
            lane.stream = None
            self._streams.forget(stream)
        outgoing.attempts += 1
        if outgoing.attempts >= ATTEMPTS:
            self._fail(outgoing, BrokerUnavailable("the engine has no stream for the channel"), "disconnected")
        else:
            self._wait(lane, outgoing)

    async def _find(self, lane: Lane) -> None:
        """Find the stream, and send what waits for it."""
        try:
            if lane.lost is not None:
                await self._streams.renew(lane.lost)
                lane.lost = None
            stream = await self._streams.find(lane.limits)
        except BrokerError as error:
            self._fail_waiting(lane, error, "refused" if isinstance(error, ApiError) else "disconnected")
            return
        except Exception as error:
            logger.exception("the stream of a history could not be found")
            self._fail_waiting(lane, BrokerUnavailable(repr(error)), "disconnected")
            return
        finally:
            lane.finding = None
        lane.stream, lane.top = stream, 0
        # Some may have come back from another stream after later ones had begun to wait.
        lane.waiting = deque(sorted(lane.waiting, key=lambda outgoing: outgoing.number))
        self._pump(lane)

    def _fail_waiting(self, lane: Lane, error: BrokerError, reason: str) -> None:
        failed, lane.waiting = lane.waiting, deque()
        for outgoing in failed:
            self._waiting_bytes -= len(outgoing.envelope)
            self._fail(outgoing, error, reason)
        self._check_idle()

    def _fail(self, outgoing: Outgoing, error: BrokerError, reason: str) -> None:
        """Drop an envelope, and count it."""
        self.dropped[reason] += 1
        if reason == "refused":
            self._publishing.log_refusal(error)
        if outgoing.answer is not None and not outgoing.answer.done():
            outgoing.answer.set_exception(copy_of(error))


def hashed(text: str) -> str:
    """Return a name for a text of any length and characters."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def copy_of(error: BrokerError) -> BrokerError:
    """Return an error of the caller's own, with a traceback of its own."""
    kind: Callable[..., BrokerError] = BrokerError if isinstance(error, ApiError) else type(error)
    return kind(*error.args)
