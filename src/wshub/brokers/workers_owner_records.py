"""The bodies of records by which workers agree on the owners of slots.

Histories and presences have owners of their own. Each kind travels in records of its own, with these bodies among
others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from wshub.brokers.workers_codec import Reader, Signal, Writer

__all__ = ["Claim", "Leave", "Owned", "OwnedSlots", "Owners", "Ready", "Refused", "Request"]


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the owner of a channel's slot."""

    number: int
    """Of the request; 0 if there is to be no answer."""
    term: int
    """Of the owner, as the sender knows it."""
    channel: str

    @property
    def size(self) -> int:
        """Bytes that the request holds while it waits; 0 for a question."""
        return 0

    def with_term(self, term: int) -> Self:
        """Return the same request to an owner of another term."""
        return replace(self, term=term)

    def write_to(self, writer: Writer) -> None:
        """Write the fields of every request."""
        writer.number(self.number)
        writer.number(self.term)
        writer.text(self.channel)


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to a request: nothing was done."""

    KIND: ClassVar = 5
    number: int
    reason: str

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        writer.number(self.number)
        writer.text(self.reason)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Refused:
        return cls(reader.number(), reader.text())


@dataclass(frozen=True, slots=True)
class Claim:
    """Say who owns a slot, or choose an owner."""

    KIND: ClassVar = 6
    slot: int
    term: int
    """The highest term of the slot that the sender knows."""

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        writer.number(self.slot)
        writer.number(self.term)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Claim:
        return cls(reader.number(), reader.number())


@dataclass(frozen=True, slots=True)
class Owned:
    """Who owns a slot."""

    slot: int
    term: int
    node_id: str
    """Empty if its owner has ended."""


@dataclass(frozen=True, slots=True)
class OwnedSlots:
    """A body about the owners of slots."""

    KIND: ClassVar[int]
    owned: tuple[Owned, ...]

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        writer.number(len(self.owned))
        for one in self.owned:
            writer.number(one.slot)
            writer.number(one.term)
            writer.text(one.node_id)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        return cls(tuple(Owned(reader.number(), reader.number(), reader.text()) for _ in range(reader.number())))


class Owners(OwnedSlots):
    """Note who owns these slots."""

    __slots__ = ()
    KIND: ClassVar = 7


@dataclass(frozen=True, slots=True)
class Leave(Signal):
    """Send no further requests to this worker, and say so behind the last one: it leaves."""

    KIND: ClassVar = 8


@dataclass(frozen=True, slots=True)
class Ready(Signal):
    """Note that this worker knows the others: it may own slots, and choose owners."""

    KIND: ClassVar = 13
