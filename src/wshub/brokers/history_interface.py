"""The contract between a hub and a broker that stores envelopes.

The stored envelopes of a channel have one order for all nodes, and each of them names the one before it. So a node
notices a gap, and reads what it has missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from wshub.brokers.interface import Broker, Gap, HistoryConfig, Position, Published
from wshub.brokers.stored_sender import StoredSender
from wshub.protocol.validation import check_bool, check_integer

__all__ = [
    "HistoryBroker",
    "HistoryQuery",
    "HistorySource",
    "NativeHistorySource",
    "StoredEnvelope",
    "StoredHistory",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryQuery:
    """The part of a history that a reader asks for.

    Immutable. Raises ``ConfigurationError`` for a limit out of bounds, and for a flag that is no ``bool``.
    """

    since: Position | None = None
    """Envelopes behind this position are read; in reverse, those before it.

    None begins with the oldest envelope, or with the newest in reverse.
    """

    limit: int = 100
    """Maximum number of envelopes. 0 asks for the position alone."""

    max_bytes: int = 1024 * 1024
    """Maximum number of bytes of envelopes. The first one is returned whatever its size."""

    reverse: bool = False
    """Whether the newest comes first."""

    is_own: bool = False
    """Whether ``since`` is the position of this node, and not one that a client has sent.

    If it is newer than everything stored, the engine has lost envelopes. Then a new epoch begins, the gap is ``epoch``,
    and no envelope is returned.
    """

    mark: bytes = b""
    """The mark of the envelope that this node has received at ``since``; empty if it is not known.

    If the channel has had another envelope there, the engine has lost envelopes too, and has stored others since. A
    broker uses it only with ``is_own``.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", check_integer("limit", self.limit, 0, 1_000_000))
        object.__setattr__(self, "max_bytes", check_integer("max_bytes", self.max_bytes, 1, 1 << 40))
        check_bool("reverse", self.reverse)
        check_bool("is_own", self.is_own)


class StoredEnvelope(NamedTuple):
    """An envelope of a history."""

    offset: int
    envelope: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredHistory:
    """Envelopes that were read from the history of a channel."""

    envelopes: tuple[StoredEnvelope, ...]
    """The oldest first, or the newest first if they were read in reverse."""

    position: Position
    """The position of the newest envelope of the channel."""

    gap: Gap = ""
    """Why envelopes are missing between ``since`` and the first one here; empty if none is.

    It is ``epoch`` or ``trimmed``. With either, the envelopes begin with the oldest one that is kept of the epoch.
    """

    mark: bytes = b""
    """The mark of the newest envelope of the channel, if the broker knows it: ``wshub.brokers.envelope.mark_of``."""

    previous: int | None = None
    """An offset of the history behind which no envelope is missing before the first one here.

    None stands for the offset before that of the first one. So a broker whose offsets have no holes leaves it out.
    """

    @property
    def start(self) -> int:
        """The offset behind which the envelopes begin, the oldest first."""
        if self.previous is not None:
            return self.previous
        return self.envelopes[0].offset - 1 if self.envelopes else self.position.offset


class HistorySource(Protocol):
    """Stores the envelopes of channels."""

    async def subscribed(self, channel: str) -> None:
        """Do what ``Broker.subscribed`` does."""

    def send_stored(self, channel: str, envelope: bytes, config: HistoryConfig) -> bool:
        """Store an envelope and send it to every node that has subscribed to the channel, and forget it.

        Returns False if the envelope was dropped, as for ``send()``.
        """

    async def publish_stored(
        self, channel: str, envelope: bytes, config: HistoryConfig, *, idempotency_key: str = ""
    ) -> Published:
        """Store an envelope and send it, and return its position.

        Args:
            channel: of a room.
            envelope: is stored without the head.
            config: how much of the channel is kept.
            idempotency_key: names the envelope, unless it is empty. A channel stores one envelope for a key within
                five minutes. A second call stores and sends nothing, and returns the position of the first one.

        Raises:
            BrokerUnavailable: nothing was stored.
            BrokerUncertain: the answer was lost, so it may have been stored. Try again with the same key.
        """

    async def history(self, channel: str, config: HistoryConfig, query: HistoryQuery) -> StoredHistory:
        """Return what is stored of a channel. A channel without a history gets one, which is empty.

        Args:
            channel: of a room.
            config: how much of the channel is kept.
            query: which of the envelopes to return.

        Raises:
            BrokerUnavailable: there is no connection, or it was lost.
        """


@runtime_checkable
class NativeHistorySource(HistorySource, Protocol):
    """A source that hubs call natively, once for each message."""

    def stored_sender(self, channel: str, config: HistoryConfig) -> StoredSender | None:
        """Return what sends the envelopes of a channel as ``send_stored()`` does; None before the source has started.

        It is used until the source is closed.
        """


@runtime_checkable
class HistoryBroker(HistorySource, Broker, Protocol):
    """A broker that stores envelopes too.

    Storing and sending is one step: what was stored is sent, and what was not stored is not. Each node that has
    subscribed to the channel gets it, the sender too, by ``BrokerEvents.receive``. In front of the envelope there is a
    head with its offset, the offset of the envelope before it on the channel, and the epoch:
    ``wshub.brokers.envelope.encode_stored``.

    Within an epoch, offsets grow. They may have holes: the head tells whether an envelope is missing. An epoch ends
    when stored envelopes were lost. A broker may keep what is left of them: the next epoch goes on behind their offsets
    then. Otherwise nothing is before it.
    """
