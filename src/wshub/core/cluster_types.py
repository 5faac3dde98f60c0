"""The nodes of a cluster, the answers to a survey, the health of a hub, and the counts of a cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from wshub.brokers.interface import BrokerHealth, BrokerStats, NodeInfo

__all__ = ["ClusterStats", "HasMembers", "HubHealth", "IgnoredEnvelopes", "Node", "RoomChange", "Survey"]

RoomChange: TypeAlias = Literal["join", "leave"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A hub of the cluster, as another hub knows it."""

    info: NodeInfo

    connections: int
    """The number of its connections when it was heard last."""

    heard_ms: int
    """Milliseconds since it was heard; 0 for the hub itself."""

    hears_this_node: bool = True
    """Whether it says that it hears the hub."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The answers of the nodes to one question."""

    answers: dict[str, Any] = field(default_factory=dict)
    """The answer of each node, by the id of the node."""

    missing: tuple[str, ...] = ()
    """The ids of the nodes that have not answered in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubHealth:
    """Whether a hub works as it should."""

    ok: bool
    """Whether the hub is in use, and its broker is connected if it has one."""

    connections: int
    """The number of connections."""

    broker: BrokerHealth | None = None
    """The state of the broker; None without a broker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IgnoredEnvelopes:
    """Envelopes of other programs and nodes that reached no connection, by reason."""

    own: int
    """The engine has given the node its own envelope. Its connections had the message already."""

    late: int
    """A later message of its node to the same room has arrived before: the node had to connect to the engine again."""

    duplicate: int
    """A message of a history that the node has had already."""

    without_position: int
    """A message to a room with history, from a program that was not told that the room has one."""

    no_receiver: int
    """No connection is in the room any more, or of the user."""

    unreadable: int
    """Another version, a truncated envelope, or text that is not UTF-8."""

    failed: int
    """There was no memory, or an error is in the log."""

    @property
    def total(self) -> int:
        """The sum over all reasons."""
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStats:
    """Counts of messages between nodes.

    At any moment, ``received`` is ``delivered`` + ``ignored.total``.
    """

    node: str
    """The id of this node."""

    nodes: int
    """Nodes that were heard lately, this one included."""

    published: int
    """Envelopes that this node has made: messages, and commands to other nodes."""

    rejected: int
    """Of these, how many the broker did not take: see ``dropped`` of ``broker``."""

    received: int
    """Envelopes that have arrived."""

    delivered: int
    """Of these, how many were for this node."""

    ignored: IgnoredEnvelopes
    """Of these, how many reached no connection."""

    interruptions: Mapping[str, int]
    """How often messages may have been lost, by reason."""

    lag_ms: float | None
    """Milliseconds that a recent message took, by the clocks of both nodes; None if there was none."""

    probe_ms: float | None
    """Milliseconds that the last probe took through the broker and back; None before the first one."""

    connected: bool
    """Whether the broker works: envelopes go out and come in."""

    broker: BrokerStats
    """The counts of the broker."""


class HasMembers(Protocol):
    """A room, its history, or the connections of a user: messages arrive from other nodes while it has members."""

    @property
    def channel(self) -> str:
        """The channel of its messages."""

    @property
    def has_members(self) -> bool:
        """Whether the hub has a connection in a room of that name now."""
