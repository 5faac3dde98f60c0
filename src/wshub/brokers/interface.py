"""The contract between a hub and its broker.

A broker carries envelopes between the hubs of several processes. Each hub is a node. An envelope is bytes that only
hubs read; a broker sends it to every node that has subscribed to a channel. ``wshub.testing.check_broker`` proves an
implementation.

A broker delivers at most once. The envelopes that one node sends on one channel arrive in the order in which it sent
them. Between two channels, and between two nodes, there is no order. If envelopes may have been lost, the broker calls
``BrokerEvents.interrupted`` before it delivers the first envelope after the gap.

What counts as lost may still come, after newer envelopes: an engine may get it late, through a connection that was
given up. The hub leaves it out.

``wshub.brokers.history_interface`` has the contract of a broker that also stores envelopes.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from wshub.errors import ConfigurationError
from wshub.links.reactor_api import Reactor
from wshub.protocol.validation import check_integer

__all__ = [
    "ALL_NODES",
    "PATTERN_CHANNELS",
    "ROOM_CHANNELS",
    "USER_CHANNELS",
    "Broker",
    "BrokerEvents",
    "BrokerHealth",
    "BrokerState",
    "BrokerStats",
    "Gap",
    "HandoverBroker",
    "History",
    "HistoryConfig",
    "NodeInfo",
    "PatternBroker",
    "Position",
    "Publication",
    "Published",
    "node_channel",
    "pattern_channel",
    "room_channel",
    "user_channel",
]

ALL_NODES = "all"
"""The channel that every node has subscribed to, from ``start()`` on."""


ROOM_CHANNELS = "room:"
"""How the channels of rooms begin; the name of the room follows."""

USER_CHANNELS = "user:"
"""How the channels of users begin; the name of the user follows."""

PATTERN_CHANNELS = "match:"
"""How the channels of patterns begin; the pattern follows."""


def room_channel(room: str) -> str:
    """Return the channel of the messages to a room. A node with a member of the room has subscribed to it."""
    return ROOM_CHANNELS + room


def user_channel(user: str) -> str:
    """Return the channel of the messages to a user. A node with a connection of the user has subscribed to it."""
    return USER_CHANNELS + user


def node_channel(node: str) -> str:
    """Return the channel that one node alone has subscribed to, from ``start()`` on."""
    return "node:" + node


def pattern_channel(pattern: str) -> str:
    """Return the name by which a broker reports interruptions of a pattern. Nothing is sent on such a channel."""
    return PATTERN_CHANNELS + pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """A hub that a broker joins to others."""

    id: str
    """16 hexadecimal digits, random at each start."""

    hub: str
    """The name of the hub. A broker joins hubs of the same name only."""

    host: str = ""
    """The name of the machine."""

    pid: int = 0
    """The process id."""

    started_at: float = 0.0
    """When the node started: seconds since the epoch, by the clock of its machine."""

    receives: bool = True
    """False for a program that only publishes: the broker subscribes to nothing for it."""

    @classmethod
    def of_this_process(cls, hub: str, *, receives: bool = True) -> NodeInfo:
        """Return a new node of this process."""
        return cls(
            id=secrets.token_hex(8),
            hub=hub,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=time.time(),
            receives=receives,
        )


@dataclass(frozen=True, slots=True)
class Position:
    """Where a message stands in the history of its room.

    Within an epoch, a later message has a greater offset. The epoch changes if the history was lost. Then offsets of
    the former epoch say nothing.
    """

    offset: int
    """The number of the message. Before the first one it is a smaller number, such as 0."""

    epoch: str
    """Eight letters, chosen at random when the history begins."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A message of a room with history."""

    offset: int
    """Its number in the history."""

    epoch: str
    """The epoch of the history."""

    data: str | bytes
    """The message, as it was published."""

    publisher: str | None = None
    """The name of the user who has published it, if ``publish()`` was given one."""

    time: float = 0.0
    """When it was published: seconds since 1970, by the clock of the publisher's machine."""

    @property
    def position(self) -> Position:
        """The position of a reader that has this message, and all before it."""
        return Position(self.offset, self.epoch)


Gap: TypeAlias = Literal["", "epoch", "trimmed", "too_much"]
"""Why a reader cannot have all messages behind a position; empty if it can.

``epoch``: the history was lost since then. ``trimmed``: the oldest of the messages are not kept any more.
``too_much``: there are more messages than the limit allows.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Messages that were read from the history of a room."""

    publications: tuple[Publication, ...]
    """The oldest first, or the newest first if it was read in reverse."""

    position: Position
    """The position of the newest message of the room. It may be newer than the publications."""

    gap: Gap = ""
    """Why messages are missing between ``since`` and the publications; empty if none is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryConfig:
    """How much of a room is kept, and what its members receive.

    Immutable. Raises ``ConfigurationError`` for an invalid value. Configure the room in the same way in every program
    that publishes to it.
    """

    size: int = 100
    """Maximum number of messages that are kept.

    A client that has missed more gets the gap ``trimmed``. A larger history needs more memory in the engine.
    """

    max_bytes: int = 1024 * 1024
    """Maximum number of bytes of the messages that are kept. The newest message is kept whatever its size.

    It bounds the memory of each room in the engine.
    """

    ttl_ms: int = 300_000
    """Milliseconds after the last message at which all messages are forgotten. Offsets go on.

    Make it longer than your clients are away. A longer time keeps more rooms in memory that nobody uses.
    """

    position_ttl_ms: int = 30 * 86_400_000
    """Milliseconds after the last message at which the offset may be forgotten too. Then a new epoch begins.

    It is at least ``ttl_ms``. Until then, a room that nobody uses needs a few hundred bytes.
    """

    encode: Callable[[Publication], str | bytes] | None = None
    """A function that makes what members receive, such as JSON with the offset. None sends the data as published.

    It runs on the event loop, once for each message and node. It runs again for the messages that clients have missed:
    clients that recover within ten seconds of one another mostly share the results.
    """

    encode_gap: Callable[[Gap], str | bytes | None] | None = None
    """A function that makes what members receive when they have missed messages that are not kept any more.

    None, as the function or as its result, sends nothing. Then a member does not learn that it has missed something.
    """

    def __post_init__(self) -> None:
        for name, highest in (("size", 1_000_000), ("max_bytes", 1 << 40)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), 1, highest))
        ttl = check_integer("ttl_ms", self.ttl_ms, 1, 1 << 40)
        object.__setattr__(self, "ttl_ms", ttl)
        # A history that outlives its offsets would have two messages of one offset.
        position_ttl = check_integer("position_ttl_ms", self.position_ttl_ms, ttl, 1 << 40)
        object.__setattr__(self, "position_ttl_ms", position_ttl)
        for name in ("encode", "encode_gap"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise ConfigurationError(f"{name} must be a function or None, not {function!r}")
            if iscoroutinefunction(function):
                raise ConfigurationError(f"{name} is called for each message, so it must not be a coroutine function")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The outcome of a published message."""

    receivers: int | None = None
    """The number of nodes that the broker has given the message to; None if the broker cannot tell."""

    position: Position | None = None
    """The position of the message in the history of its room; None if the room has none."""

    is_duplicate: bool = False
    """Whether a message with the same idempotency key was published before. Then the position is that message's, and
    nothing was sent."""


BrokerState: TypeAlias = Literal["starting", "connected", "disconnected", "deaf"]
"""``starting`` until ``start()`` has returned; ``deaf`` if a connection is up and a probe through it was not heard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerHealth:
    """How a broker is at present."""

    state: BrokerState

    reason: str = ""
    """Why the state is not ``connected``."""

    pending_bytes: int = 0
    """Bytes that wait to be sent."""

    probe_ms: float | None = None
    """Milliseconds that the last probe took to come back; None before the first one has."""

    @property
    def ok(self) -> bool:
        """Whether envelopes go out and come in."""
        return self.state == "connected"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStats:
    """The counts of a broker since ``start()``. Immutable."""

    sent: int = 0
    """Envelopes that were handed to the engine, or to a peer: once for each."""

    received: int = 0
    """Envelopes that arrived, those of the node itself included."""

    bytes_sent: int = 0
    """Bytes sent to the engine, or to peers."""

    bytes_received: int = 0
    """Bytes received from there."""

    dropped: Mapping[str, int] = field(default_factory=dict)
    """Envelopes that may not have reached other nodes, by reason.

    Nobody gets those that were dropped while the broker was ``disconnected``, because too many bytes waited (``full``),
    because the engine has ``refused`` them, or because they are ``too_large``. Others may get those that are
    ``unanswered``, and those of a ``failover``, which an engine took after other nodes may have left it.
    """

    interruptions: Mapping[str, int] = field(default_factory=dict)
    """How often envelopes may have been lost, by reason."""

    reconnects: int = 0
    """Connections that were made again after an earlier one was lost."""

    subscriptions: int = 0
    """Channels that the node has subscribed to."""

    peers: int = 0
    """Open connections: to other nodes, or to an engine."""

    kept: int | None = None
    """Stored envelopes in the memory of this process; None if it keeps none, as with an engine."""

    kept_bytes: int | None = None
    """Bytes of these envelopes; None as for ``kept``."""


class BrokerEvents(Protocol):
    """The hub's side. A broker calls it on the hub's loop, in the order of arrival; no method raises or waits.

    A broker never calls it from within ``send()``, ``subscribe()`` or ``unsubscribe()``, nor after ``close()``.
    """

    @property
    def reactor(self) -> Reactor:
        """The hub's reactor, for connections that are to share its wake-ups."""

    def now(self) -> float:
        """Return the time in seconds by the hub's clock, which never goes back."""

    def receive(self, envelope: bytes) -> None:
        """Take an envelope that has arrived. The hub ignores one that it has sent itself, and one it cannot read."""

    def interrupted(self, channels: Collection[str] | None, reason: str) -> None:
        """Note that envelopes of these channels may have been lost; None stands for all channels.

        Args:
            channels: their names.
            reason: one word or a few, which ``BrokerStats.interruptions`` has as a key.
        """

    def restored(self, channels: Collection[str] | None) -> None:
        """Note that envelopes of these channels arrive again; None stands for all channels."""


@runtime_checkable
class Broker(Protocol):
    """Carries envelopes between hubs.

    One hub uses it. Every method is called on the loop of the hub. None waits for a hub: an envelope for which there is
    no room is dropped and counted.
    """

    async def start(self, node: NodeInfo, events: BrokerEvents) -> None:
        """Join the other nodes, and return when envelopes on ``ALL_NODES`` and on the node's channel arrive.

        While the engine cannot be reached it logs that once, and tries again, ever more seldom. The hub uses the other
        methods meanwhile. After ``close()``, or if the loop has closed without it, it can be started again.

        Raises:
            ConfigurationError: what was configured cannot work, such as a wrong password.
        """

    async def close(self) -> None:
        """Send what waits, for a second at most, and leave the other nodes. A second call does nothing."""

    def subscribe(self, channel: str) -> None:
        """Have envelopes of the channel arrive. A second call for a channel does nothing.

        Changes within one iteration of the loop leave together.
        """

    def unsubscribe(self, channel: str) -> None:
        """Let no more envelopes of the channel arrive. Some that are under way still may."""

    async def subscribed(self, channel: str) -> None:
        """Return when every envelope that any node sends on the channel from now on arrives.

        Raises:
            BrokerUnavailable: the broker has no connection, or has lost it; or the node has left the channel.
        """

    def send(self, channel: str, envelope: bytes) -> bool:
        """Send an envelope to every other node that has subscribed to the channel, and forget it.

        The broker may give it to this node too. Returns False if the envelope was dropped: there is no connection, or
        too much waits already.
        """

    async def publish(self, channel: str, envelope: bytes) -> Published:
        """Send an envelope, and return when it has been taken: by the engine, or by the kernel for each peer.

        Raises:
            BrokerUnavailable: nothing was sent.
            BrokerUncertain: the answer was lost, so it may have been sent.
        """

    def sweep(self, now: float) -> None:
        """Send the probes that are due, and end what has taken too long. The hub calls it at least once a second.

        Args:
            now: the time in seconds by the hub's clock.
        """

    def health(self) -> BrokerHealth:
        """Return how the broker is at present."""

    def stats(self) -> BrokerStats:
        """Return what was counted since ``start()``."""


@runtime_checkable
class PatternBroker(Broker, Protocol):
    """A broker that also delivers what is sent to rooms whose names match a pattern.

    A pattern is a name with at most one ``*``, which stands for any characters, none included. Each pattern gets each
    envelope of these rooms once, in the order of the room. Patterns and channels are apart: an envelope that belongs to
    several of them arrives once for each. To the hub, ``interrupted()`` and ``restored()`` name a pattern by
    ``pattern_channel(pattern)``.
    """

    def subscribe_pattern(self, pattern: str, receive: Callable[[bytes], None]) -> None:
        """Have envelopes of rooms that match the pattern arrive. A second call for a pattern replaces ``receive``.

        Args:
            pattern: of the names of rooms.
            receive: is called with each envelope, as ``BrokerEvents.receive`` is. It may get envelopes of the node
                itself, and of rooms that do not match. The hub ignores them.
        """

    def unsubscribe_pattern(self, pattern: str) -> None:
        """Let no more envelopes arrive by the pattern. ``receive`` is not called any more."""

    async def pattern_subscribed(self, pattern: str) -> None:
        """Return when every envelope that any node sends to a matching room from now on arrives.

        Raises:
            BrokerUnavailable: as for ``subscribed()``.
        """


@runtime_checkable
class HandoverBroker(Broker, Protocol):
    """A broker whose nodes keep what is known of rooms, and hand it over when they leave.

    A server accepts once ``joined()`` has returned. So a node that leaves finds the one that has taken its place.
    """

    async def joined(self) -> None:
        """Return when the others can hand over to this node, or after two seconds. ``start()`` has returned before."""
