"""The JetStream streams that keep the histories of channels, one for all channels with the same limits."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import string
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from nats.aio.client import Client
from nats.errors import Error, NoRespondersError

from wshub.brokers.nats_subjects import SubjectNames
from wshub.errors import BrokerError, BrokerUnavailable

__all__ = [
    "API",
    "GONE",
    "NO_STREAM",
    "SECONDS",
    "ApiError",
    "Storage",
    "StreamLimits",
    "StreamName",
    "Streams",
    "ask",
    "read_answer",
    "seconds_of",
]

API = "$JS.API"

# Seconds in which the engine must have answered.
SECONDS = 5.0

# Seconds in which an idempotency key is known. A stream may not keep messages for less.
DUPLICATE_SECONDS = 300

# The codes of errors that say that another node was faster, or that a stream is not there.
OVERLAP = (10058, 10065)
NO_STREAM = 10059

# The codes of errors of a stream that is gone, or about to be. The second one is of a consumer that cannot be made.
GONE = (NO_STREAM, 10012)

Storage = Literal["file", "memory"]


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How much of each channel is kept."""

    size: int = 100
    """Messages of a channel."""

    ttl_ms: int = 300_000
    """Milliseconds after the last message at which all are forgotten."""

    position_ttl_ms: int = 30 * 86_400_000
    """Milliseconds for which the engine keeps them at most, so that offsets go on."""

    @property
    def token(self) -> str:
        """The token of the subjects that have these limits."""
        return f"{self.size}-{self.ttl_ms}-{self.position_ttl_ms}"


class StreamName(NamedTuple):
    """The name of a stream. It ends with the epoch, so each message says of which epoch it is."""

    start: str
    epoch: str

    def __str__(self) -> str:
        return f"{self.start}-{self.epoch}"

    @classmethod
    def parse(cls, text: str) -> StreamName:
        start, _, epoch = text.rpartition("-")
        return cls(start, epoch)


class ApiError(BrokerError):
    """An answer of JetStream that is an error. ``code`` is its number."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Streams:
    """Finds and makes streams.

    A stream keeps what is published on ``PREFIX=in.HUB.LIMITS.>``, and the engine itself sends it on ``PREFIX.HUB.>``:
    storing and sending are one step. The message then has headers with its sequence and that of the one before it.

    Args:
        client: a connection.
        prefix: the first token of the subjects of plain messages.
        hub: the name of the hub.
        storage: where the engine keeps the messages.
        replicas: how many servers of a cluster keep them.
    """

    def __init__(self, client: Client, prefix: str, hub: str, storage: Storage, replicas: int) -> None:
        self._client = client
        self._outside = SubjectNames(prefix, hub)
        self._inside = f"{prefix}=in.{self._outside.hub}"
        self._target = f"{prefix}.{self._outside.hub}.>"
        self._storage = storage
        self._replicas = replicas
        self._known: dict[StreamLimits, StreamName] = {}
        self._lock = asyncio.Lock()

    def subject(self, channel: str, limits: StreamLimits) -> str:
        """Return the subject on which an envelope of a channel is stored."""
        return f"{self._inside}.{limits.token}.{self._outside.tokens(channel)}"

    def known(self, limits: StreamLimits) -> StreamName | None:
        """Return the stream for these limits if it was needed before."""
        return self._known.get(limits)

    async def find(self, limits: StreamLimits) -> StreamName:
        """Return the stream for these limits. Make it if there is none."""
        found = self._known.get(limits)
        if found is None:
            async with self._lock:
                found = self._known.get(limits) or await self._look_up(limits)
                while found is None:
                    found = await self._create(limits)
                self._known[limits] = found
        return found

    def forget(self, limits: StreamLimits) -> None:
        """Look the stream up again when it is needed next."""
        self._known.pop(limits, None)

    async def renew(self, limits: StreamLimits, stream: StreamName) -> StreamName:
        """Begin a new epoch for all channels of a stream, unless another node has. Return the new stream."""
        try:
            await ask(self._client, f"{API}.STREAM.DELETE.{stream}", {})
        except ApiError as error:
            if error.code not in GONE:
                raise
        self.forget(limits)
        return await self.find(limits)

    async def _look_up(self, limits: StreamLimits) -> StreamName | None:
        """Return the oldest stream for these limits: there may be several for a moment."""
        answer = await ask(self._client, f"{API}.STREAM.LIST", {"subject": self._subjects(limits)})
        streams = [each for each in answer.get("streams") or [] if self._subjects(limits) in each["config"]["subjects"]]
        oldest = min(streams, key=lambda each: (seconds_of(each["created"]), each["config"]["name"]), default=None)
        return None if oldest is None else StreamName.parse(oldest["config"]["name"])

    async def _create(self, limits: StreamLimits) -> StreamName | None:
        """Make a stream, or find that of another node. Return None if there is none again."""
        digest = hashlib.sha256(self._subjects(limits).encode()).hexdigest()[:16]
        epoch = "".join(secrets.choice(string.ascii_lowercase) for _ in range(8))
        stream = StreamName(f"wshub-{digest}", epoch)
        seconds = max(limits.position_ttl_ms / 1000, limits.ttl_ms / 1000, DUPLICATE_SECONDS)
        settings = {
            "name": str(stream),
            "subjects": [self._subjects(limits)],
            "retention": "limits",
            "discard": "old",
            # The one before the oldest tells whether a reader has missed any.
            "max_msgs_per_subject": limits.size + 1,
            "max_age": int(seconds * 1e9),
            "duplicate_window": int(DUPLICATE_SECONDS * 1e9),
            "storage": self._storage,
            "num_replicas": self._replicas,
            "republish": {"src": self._subjects(limits), "dest": self._target},
            "allow_direct": True,
        }
        try:
            await ask(self._client, f"{API}.STREAM.CREATE.{stream}", settings)
        except ApiError as error:
            if error.code not in OVERLAP:
                raise
            return await self._look_up(limits)
        # A server may take two streams for the same subjects if both are made at once. The older one stays.
        found = await self._look_up(limits)
        if found != stream:
            with contextlib.suppress(ApiError):
                await ask(self._client, f"{API}.STREAM.DELETE.{stream}", {})
        return found

    def _subjects(self, limits: StreamLimits) -> str:
        return f"{self._inside}.{limits.token}.>"


async def ask(client: Client, subject: str, question: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of JetStream.

    Raises:
        ApiError: the answer is an error.
        BrokerUnavailable: there is no answer.
    """
    try:
        message = await client.request(subject, json.dumps(question).encode(), timeout=SECONDS)
    except NoRespondersError:
        raise BrokerUnavailable("the engine has no JetStream: enable it for the account") from None
    except (Error, OSError) as error:
        raise BrokerUnavailable(f"JetStream does not answer: {str(error) or type(error).__name__}") from None
    return read_answer(message.data)


def read_answer(data: bytes) -> dict[str, Any]:
    """Return an answer of JetStream, or raise the error that it is."""
    try:
        answer: dict[str, Any] = json.loads(data)
        error = answer.get("error")
        if error is not None:
            raise ApiError(f"JetStream refuses: {error.get('description')}", int(error.get("err_code", 0)))
    except (ValueError, AttributeError, TypeError):
        raise BrokerUnavailable("the answer is not one of JetStream") from None
    return answer


def seconds_of(text: str) -> float:
    """Return a time of JetStream, which has nanoseconds, in seconds since 1970."""
    moment, _, fraction = text.rstrip("Z").partition(".")
    seconds = datetime.fromisoformat(f"{moment}+00:00").timestamp()
    return seconds + float(f"0.{fraction or '0'}")
