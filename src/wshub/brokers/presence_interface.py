"""The contract between a hub and a broker that knows who is in which room.

Each node says who its members are, and the engine keeps that. An entry belongs to a node. A node
that lives has a beat every few seconds. A node without one is dead, and another node takes its entries over. The
engine's clock decides, so those of the nodes may differ. Between workers, their connections show who lives.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from wshub.brokers.interface import Broker
from wshub.errors import ConfigurationError
from wshub.protocol.validation import check_integer

__all__ = [
    "BEAT_SECONDS",
    "DEAD_SECONDS",
    "Beat",
    "Member",
    "PresenceBroker",
    "PresenceConfig",
    "PresenceCounts",
    "PresenceEntry",
    "PresencePage",
    "PresenceSource",
    "StoredPresence",
]

BEAT_SECONDS = 3.0
"""Seconds between two beats of a node."""

DEAD_SECONDS = 9.0
"""Seconds after its last beat at which a node counts as dead."""


@dataclass(frozen=True, slots=True)
class Member:
    """A connection in a room with presence."""

    node: str
    """The id of the node that the connection is at."""

    connection: int
    """The id of the connection at that node."""

    user: str | None
    """The connection's user when it joined; None if it had none."""

    info: Any = None
    """What ``Connection.join`` was given."""


PresenceFunction = Callable[[str, Member], Awaitable[None] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceConfig:
    """The presence of a room. Immutable. Raises ``ConfigurationError`` for an invalid value.

    All nodes must have the same. The functions take the name of the room and a ``Member``; they may be coroutine
    functions. Of all nodes, one calls them: so a message to the room from there reaches each member once.
    """

    on_join: PresenceFunction | None = None
    """Called when the first connection of a user joins, and when one joins that has no user.

    Without it, nothing is called. A room with many comings and goings is cheaper to read now and then.
    """

    on_leave: PresenceFunction | None = None
    """Called when the last connection of a user has left and ``grace_ms`` have passed, or one that had no user.

    Without it, nothing is called, and ``Hub.presence`` tells who is there.
    """

    grace_ms: int = 5_000
    """Milliseconds for which a user may be gone, such as to reconnect. Meanwhile the user counts as present.

    A user who comes back in time has neither left nor joined. A long time hides reloads and deploys, and shows users
    who are gone.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "grace_ms", check_integer("grace_ms", self.grace_ms, 0, 1 << 31))
        for name in ("on_join", "on_leave"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise ConfigurationError(f"{name} must be a function or None, not {function!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PresencePage:
    """Some members of a room."""

    members: tuple[Member, ...]
    """The members, in no particular order. One that joins, leaves or changes meanwhile may be on no page, or on two."""

    cursor: str = ""
    """The ``cursor`` of the next call of ``Hub.presence``; empty after the last page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceCounts:
    """How many are in a room."""

    connections: int
    """Members."""

    users: int
    """Different users among them. Connections without a user count once each."""


class PresenceEntry(NamedTuple):
    """A member, as an engine keeps it."""

    id: str
    """The node and the connection. No two members of a hub have the same."""

    user: str
    """The user, or something unique for a connection that has none."""

    data: bytes
    """The member, for hubs to read."""


class StoredPresence(NamedTuple):
    """Some entries of a channel."""

    entries: tuple[PresenceEntry, ...]
    cursor: str
    """Where the next page begins; empty after the last one."""


class Beat(NamedTuple):
    """The answer to a beat."""

    is_known: bool
    """False if the node has to enter its members: it begins, it was taken for dead, or the engine has lost all."""

    epoch: str
    """Changes when the engine has lost all entries, of the channels that are concerned."""

    dead: tuple[str, ...]
    """Nodes that are dead, and whose entries nobody has taken over yet: names for ``presence_take_over()``."""

    kept: frozenset[str] = frozenset()
    """The ids of entries of this node that are there, unless ``is_known``: nobody has taken those members over."""

    lost: tuple[str, ...] = ()
    """The ids of entries of this node that others have taken over. The node has to enter those members."""

    next_in: float = BEAT_SECONDS
    """Seconds until the next beat is due."""

    entry_count: int | None = None
    """The number of entries of this node; None if the node need not compare it.

    If the node expects another number, it calls ``presence_own()``. The answer to a call was lost, or a call that had
    failed was carried out later.
    """

    concerns: Callable[[str], bool] | None = None
    """Returns whether the members of a channel are to be entered, unless ``is_known``; None stands for all channels."""


class PresenceSource(Protocol):
    """Keeps who is in which room. Each method is one step for all other nodes.

    All of them raise ``BrokerUnavailable`` if nothing was done, and ``BrokerUncertain`` if the answer was lost. Then
    they can be called again.
    """

    async def presence_enter(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Add entries of this node, or replace their data. Return for each whether it was the first one of its user.

        An entry that is there already has the same answer as when it was added: that answer may have been lost.
        """

    async def presence_leave(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Remove entries of this node. Return for each whether it was the last one of its user.

        If the answer was lost, ask again: the answer is the same, unless the user is there again. One that was not
        there may have either answer.
        """

    async def presence_beat(self, *, is_leaving: bool = False) -> Beat:
        """Say that this node lives; or that it is about to end, so that the others take its entries over at once."""

    async def presence_take_over(self, node: str) -> list[tuple[str, PresenceEntry]]:
        """Make entries of a dead node those of this one, under other ids. Return channels and entries.

        No other node gets the same. Call it until nothing is left. An entry whose connection is gone stays until it is
        removed.
        """

    async def presence_own(self) -> list[tuple[str, PresenceEntry]]:
        """Return channels and entries of this node, with those that it has taken over. See ``Beat.entry_count``."""
        return []

    async def presence_read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        """Return some entries of a channel: about so many, behind a cursor that an earlier call has returned."""

    async def presence_counts(self, channel: str) -> PresenceCounts:
        """Return the number of entries and of different users of a channel."""


@runtime_checkable
class PresenceBroker(PresenceSource, Broker, Protocol):
    """A broker that keeps who is in which room, for all nodes."""
