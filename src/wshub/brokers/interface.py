"""The contract between a hub and its broker.

A broker carries envelopes between the hubs of several processes. Each hub is a node. An envelope is bytes that only
hubs read; a broker sends it to every node that has subscribed to a channel. ``wshub.testing.check_broker`` proves an
implementation.

A broker delivers at most once. The envelopes that one node sends on one channel arrive in the order in which it sent
them. Between two channels, and between two nodes, there is no order. If envelopes may have been lost, the broker calls
``BrokerEvents.interrupted`` before it delivers the first envelope after the gap.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from wshub.links.reactor_api import Reactor

__all__ = [
    "ALL_NODES",
    "ROOM_CHANNELS",
    "USER_CHANNELS",
    "Broker",
    "BrokerEvents",
    "BrokerHealth",
    "BrokerState",
    "BrokerStats",
    "NodeInfo",
    "Published",
    "node_channel",
    "room_channel",
    "user_channel",
]

ALL_NODES = "all"
"""The channel that every node has subscribed to, from ``start()`` on."""


ROOM_CHANNELS = "room:"
"""How the channels of rooms begin; the name of the room follows."""

USER_CHANNELS = "user:"
"""How the channels of users begin; the name of the user follows."""


def room_channel(room: str) -> str:
    """Return the channel of the messages to a room. A node with a member of the room has subscribed to it."""
    return ROOM_CHANNELS + room


def user_channel(user: str) -> str:
    """Return the channel of the messages to a user. A node with a connection of the user has subscribed to it."""
    return USER_CHANNELS + user


def node_channel(node: str) -> str:
    """Return the channel that one node alone has subscribed to, from ``start()`` on."""
    return "node:" + node


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The outcome of a published message."""

    receivers: int | None = None
    """The number of nodes that the broker has given the message to; None if the broker cannot tell."""


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
    """Envelopes that were not sent, by reason: ``disconnected``, or ``full`` if too many bytes waited."""

    interruptions: Mapping[str, int] = field(default_factory=dict)
    """How often envelopes may have been lost, by reason."""

    reconnects: int = 0
    """Connections that were made again after an earlier one was lost."""

    subscriptions: int = 0
    """Channels that the node has subscribed to."""

    peers: int = 0
    """Open connections: to other nodes, or to an engine."""


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
