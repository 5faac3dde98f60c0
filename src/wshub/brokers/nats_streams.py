"""The JetStream streams that keep the histories of channels, one for all channels with the same limits.

JetStream takes two streams for the same subjects if they are made at the same time. So each stream has subjects of its
own, with its epoch in them, and a random name that nobody makes twice. A claim says which of them is in use. It is one
message of a further stream. The engine replaces a claim only for a node that names the claim before it. So all nodes
use the same stream, whatever happens between the steps:

1. Make a stream.
2. Delete the one that was in use. From here on nothing is stored there, and the nodes that use it look for another one.
3. Replace the claim. If another node was faster, delete the stream of step 1, and use the one that is claimed.

A stream whose node has died between the steps is empty, and nobody uses it. The next node that replaces the claim
deletes it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import secrets
import string
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from wshub.brokers.interface import HistoryConfig
from wshub.brokers.nats_requests import ApiError, NoResponderError, Requests
from wshub.brokers.nats_subjects import SubjectNames
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

__all__ = [
    "EXPECTED",
    "GONE",
    "NO_MESSAGE",
    "NO_STREAM",
    "WRONG_SEQUENCE",
    "Stream",
    "StreamLimits",
    "Streams",
    "digest",
    "make_stream",
    "seconds_of",
]

# Seconds in which an idempotency key is known. A stream may not keep messages for less.
DUPLICATE_SECONDS = 300

# The codes of errors: a message is not there; a stream is not there, or could not be made; there is such a stream.
NO_MESSAGE = 10037
NO_STREAM = 10059
NOT_MADE = 10049
EXISTS = (10058, 10065)

GONE = (NO_STREAM, 10012, 10096)
"""The codes of errors of a stream that is gone, or about to be; also of a consumer that cannot be made there."""

WRONG_SEQUENCE = (10071, 10164)
"""The codes of errors of a message that is not stored, because another one was before it."""

EXPECTED = "Nats-Expected-Last-Subject-Sequence"
"""The header with the sequence of the message that a new one replaces; 0 if there must be none."""

# Streams that are tried, if one after the other is deleted meanwhile.
ATTEMPTS = 8

# Seconds after the first attempt of several to reach a stream. Each further pause is longer.
PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How much of each channel a stream keeps."""

    size: int
    """Messages of a channel."""

    seconds: float
    """Seconds for which a message is kept at most."""

    @classmethod
    def of(cls, config: HistoryConfig) -> StreamLimits:
        """Return the limits of the stream for rooms with that configuration."""
        return cls(config.size, max(config.position_ttl_ms / 1000, DUPLICATE_SECONDS))

    @property
    def token(self) -> str:
        """The token of the subjects that have these limits."""
        return f"{self.size}-{round(self.seconds * 1000)}"


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream that is in use."""

    name: str
    epoch: str
    subjects: str
    """The beginning of the subjects on which it stores."""
    limits: StreamLimits
    created_at: float
    """Seconds since 1970, by the engine's clock."""


class Claim(NamedTuple):
    """A message that says which stream is in use."""

    epoch: str
    sequence: int
    """The sequence of the claim. The next one has to name it."""


class Streams:
    """Finds and makes the streams of one hub.

    A stream keeps what is published on ``PREFIX.=in.HUB.LIMITS.EPOCH.>``, and the engine itself sends it on
    ``PREFIX.HUB.>``: storing and sending are one step. The message then has headers with its sequence and that of the
    one before it on its subject.

    Args:
        requests: asks the engine.
        names: the subjects of plain messages.
        replicas: how many servers of a cluster keep the messages.
    """

    def __init__(self, requests: Requests, names: SubjectNames, replicas: int) -> None:
        self._requests = requests
        self._names = names
        self.replicas = replicas
        """How many servers keep the messages."""
        self._claims = f"{names.prefix}-{digest(names.hub)}-epochs"
        self._known: dict[StreamLimits, Stream] = {}
        self._locks: dict[StreamLimits, asyncio.Lock] = {}
        self._are_claims_ready = False

    def forget(self, stream: Stream) -> None:
        """Look for the stream that is in use when one is needed next."""
        if self._known.get(stream.limits) == stream:
            del self._known[stream.limits]

    def forget_limits(self, limits: StreamLimits) -> None:
        """Do the same for the stream with these limits."""
        self._known.pop(limits, None)

    def forget_all(self) -> None:
        """Look for each stream again."""
        self._known.clear()
        self._are_claims_ready = False

    async def find(self, limits: StreamLimits) -> Stream:
        """Return the stream that is in use. Make one if there is none.

        Raises:
            BrokerUnavailable: the engine does not answer.
            ApiError: it refuses.
        """
        found = self._known.get(limits)
        if found is not None:
            return found
        async with self._locks.setdefault(limits, asyncio.Lock()):
            found = self._known.get(limits) or await self._find(limits)
            self._known[limits] = found
        return found

    async def _find(self, limits: StreamLimits) -> Stream:
        failure: BrokerError = BrokerUnavailable("the streams of the engine are deleted as fast as they are made")
        for attempt in range(ATTEMPTS):
            await asyncio.sleep(attempt * PAUSE)
            found = None
            claim = await self._claim(limits)
            if claim is not None:
                found = await self._look_up(self._stream(limits, claim.epoch))
            try:
                found = found or await self._begin(limits, claim)
            except ApiError as error:
                if error.code not in (NOT_MADE, *GONE):
                    raise
                # The node that was faster deletes what others make at the same time, and nats-server 2.9 may fail then.
                failure = error
            if found is not None:
                return found
        raise failure

    async def renew(self, stream: Stream) -> Stream:
        """Begin a new epoch for all channels of a stream, unless another node has. Return the stream in use then."""
        self.forget(stream)
        async with self._locks.setdefault(stream.limits, asyncio.Lock()):
            claim = await self._claim(stream.limits)
            if claim is not None and claim.epoch == stream.epoch:
                # The stream that is found next is another one.
                await self._delete(stream.name)
        return await self.find(stream.limits)

    # Steps

    async def _claim(self, limits: StreamLimits) -> Claim | None:
        """Return the claim for these limits; None if there is none yet."""
        if not self._are_claims_ready:
            await self._create_claims()
            self._are_claims_ready = True
        question = {"last_by_subj": self._claim_subject(limits)}
        try:
            answer = await self._requests.ask(f"STREAM.MSG.GET.{self._claims}", question)
        except ApiError as error:
            if error.code == NO_STREAM:
                self._are_claims_ready = False
            elif error.code != NO_MESSAGE:
                raise
            return None
        message = answer["message"]
        return Claim(base64.b64decode(message.get("data", "")).decode(), int(message["seq"]))

    async def _create_claims(self) -> None:
        """Make the stream of the claims. Any number of nodes may do so at the same time."""
        subjects = f"{self._names.prefix}.=epochs.{self._names.hub}"
        settings = {"subjects": [f"{subjects}.*"], "max_msgs_per_subject": 1}
        await make_stream(self._requests, self._claims, settings, self.replicas, f"{subjects}.=ready")

    async def _begin(self, limits: StreamLimits, claim: Claim | None) -> Stream | None:
        """Make a stream and claim it. Return None if another node was faster."""
        made = await self._create(self._stream(limits, new_epoch()))
        try:
            if claim is not None:
                await self._delete(self._stream(limits, claim.epoch).name)
            headers = {EXPECTED: str(claim.sequence if claim is not None else 0)}
            await self._requests.store(self._claim_subject(limits), made.epoch.encode(), headers)
        except BrokerUncertain as error:
            # If the claim was stored, the stream is in use.
            raise BrokerUnavailable(str(error)) from None
        except BrokerError as error:
            with contextlib.suppress(BrokerError):
                await self._delete(made.name)
            if isinstance(error, ApiError) and error.code in WRONG_SEQUENCE:
                return None
            raise
        with contextlib.suppress(BrokerError):
            await self._delete_others(made)
        return made

    async def _create(self, stream: Stream) -> Stream:
        settings = {
            "name": stream.name,
            "subjects": [f"{stream.subjects}>"],
            # The one before the oldest tells whether a reader has missed any.
            "max_msgs_per_subject": stream.limits.size + 1,
            "max_age": int(stream.limits.seconds * 1e9),
            "duplicate_window": int(DUPLICATE_SECONDS * 1e9),
            "republish": {"src": f"{stream.subjects}>", "dest": f"{self._names.start}>"},
            "allow_direct": True,
            **common_settings(self.replicas),
        }
        info = await self._requests.ask(f"STREAM.CREATE.{stream.name}", settings)
        return created(stream, info)

    async def _look_up(self, stream: Stream) -> Stream | None:
        """Return a stream with the time at which it was made; None if it is gone."""
        try:
            info = await self._requests.ask(f"STREAM.INFO.{stream.name}")
            await raise_replicas(self._requests, info, self.replicas)
            return created(stream, info)
        except ApiError as error:
            if error.code == NO_STREAM:
                return None
            raise

    async def _delete(self, name: str) -> None:
        await self._requests.ask(f"STREAM.DELETE.{name}", ignore=GONE)

    async def _delete_others(self, stream: Stream) -> None:
        """Delete what nodes have left that died while they made a stream."""
        question = {"subject": self._stream(stream.limits, "*").subjects + ">"}
        answer = await self._requests.ask("STREAM.NAMES", question)
        for name in answer.get("streams") or ():
            if name != stream.name:
                await self._delete(name)

    def _stream(self, limits: StreamLimits, epoch: str) -> Stream:
        names = self._names
        subjects = f"{names.prefix}.=in.{names.hub}.{limits.token}.{epoch}."
        name = f"{names.prefix}-{digest(f'{names.hub} {limits.token}')}-{epoch}"
        return Stream(name, epoch, subjects, limits, 0.0)

    def _claim_subject(self, limits: StreamLimits) -> str:
        return f"{self._names.prefix}.=epochs.{self._names.hub}.{limits.token}"


async def make_stream(
    requests: Requests, name: str, settings: dict[str, Any], replicas: int, ready_subject: str
) -> None:
    """Make a stream that any number of nodes may make at the same time. Return when it can be asked for messages.

    Args:
        requests: asks the engine.
        name: of the stream.
        settings: further settings.
        replicas: how many servers keep it.
        ready_subject: a subject of the stream for a message that says nothing.
    """
    settings = {"name": name, **settings, **common_settings(replicas)}
    if not await requests.ask(f"STREAM.CREATE.{name}", settings, ignore=EXISTS) and replicas > 1:
        await raise_replicas(requests, await requests.ask(f"STREAM.INFO.{name}", ignore=GONE), replicas)
    for attempt in range(ATTEMPTS):
        try:
            # nats-server 2.9.10 crashes if it is asked for a message of a stream that another node is just making.
            # A stored message tells that the stream is complete.
            await requests.store(ready_subject, b"", {})
        except NoResponderError:
            await asyncio.sleep(attempt * PAUSE)
        except BrokerUncertain as error:
            raise BrokerUnavailable(str(error)) from None
        else:
            return
    raise BrokerUnavailable(f"the engine has not made the stream {name}")


async def raise_replicas(requests: Requests, info: dict[str, Any], replicas: int) -> None:
    """Have more servers keep a stream, if nodes with a smaller number have made it."""
    settings = info.get("config")
    if settings and settings["num_replicas"] < replicas:
        await requests.ask(f"STREAM.UPDATE.{settings['name']}", {**settings, "num_replicas": replicas})


def common_settings(replicas: int) -> dict[str, Any]:
    """Return what all streams have."""
    return {"retention": "limits", "discard": "old", "storage": "file", "num_replicas": replicas}


def created(stream: Stream, info: dict[str, Any]) -> Stream:
    """Return a stream with the time at which it was made."""
    return Stream(stream.name, stream.epoch, stream.subjects, stream.limits, seconds_of(info["created"]))


def new_epoch() -> str:
    """Return eight random letters."""
    return "".join(secrets.choice(string.ascii_lowercase) for _ in range(8))


def digest(text: str) -> str:
    """Return a short name for a text of any length."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seconds_of(text: str) -> float:
    """Return a time of JetStream, which has nanoseconds, in seconds since 1970."""
    moment, _, fraction = text.rstrip("Z").partition(".")
    seconds = datetime.fromisoformat(f"{moment}+00:00").timestamp()
    return seconds + float(f"0.{fraction or '0'}")
