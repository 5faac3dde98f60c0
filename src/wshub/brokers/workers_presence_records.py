"""The bodies of PRESENCE records, by which workers speak about who is in which room.

A worker ignores a body of an unknown kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self, TypeAlias

from wshub.brokers.presence_interface import PresenceCounts, PresenceEntry, StoredPresence
from wshub.brokers.workers_codec import Reader, Signal, Writer
from wshub.brokers.workers_owner_records import Claim, Owners, Ready, Refused, Request
from wshub.brokers.workers_owner_records import Leave as NodeLeaves

__all__ = [
    "Body",
    "Copied",
    "CopiedAnew",
    "Counted",
    "Counts",
    "Enter",
    "Found",
    "Leave",
    "Lost",
    "NodeLeaves",
    "Outcome",
    "Read",
    "RequestBody",
    "Resending",
    "Resent",
    "ResentAll",
    "Uncopied",
    "UncopiedSlot",
    "decode_body",
]

ENTRY_CHARGE = 64


def write_entries(writer: Writer, entries: tuple[PresenceEntry, ...]) -> None:
    writer.number(len(entries))
    for entry_id, user, data in entries:
        writer.text(entry_id)
        writer.text(user)
        writer.data(data)


def read_entries(reader: Reader) -> tuple[PresenceEntry, ...]:
    return tuple(PresenceEntry(reader.text(), reader.text(), reader.data()) for _ in range(reader.number()))


def write_texts(writer: Writer, texts: Iterable[str]) -> None:
    texts = tuple(texts)
    writer.number(len(texts))
    for text in texts:
        writer.text(text)


def read_texts(reader: Reader) -> tuple[str, ...]:
    return tuple(reader.text() for _ in range(reader.number()))


@dataclass(frozen=True, slots=True)
class Changing(Request):
    """A request that changes the entries of its sender."""

    KIND: ClassVar[int]
    entries: tuple[PresenceEntry, ...]

    @property
    def size(self) -> int:
        return sum(ENTRY_CHARGE + len(entry.data) for entry in self.entries)

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        self.write_to(writer)
        write_entries(writer, self.entries)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        return cls(reader.number(), reader.number(), reader.text(), read_entries(reader))


class Enter(Changing):
    """Add entries, or replace their data. The answer is Outcome."""

    __slots__ = ()
    KIND: ClassVar = 20


class Leave(Changing):
    """Remove entries. The answer is Outcome."""

    __slots__ = ()
    KIND: ClassVar = 21


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to Enter and Leave: for each entry what ``PresenceSource`` says."""

    KIND: ClassVar = 22
    number: int
    outcome: list[bool]

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        writer.number(self.number)
        writer.data(bytes(self.outcome))
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Outcome:
        return cls(reader.number(), [bool(each) for each in reader.data()])


@dataclass(frozen=True, slots=True)
class Read(Request):
    """Answer with a page. The answer is Found."""

    KIND: ClassVar = 23
    cursor: str
    limit: int

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        self.write_to(writer)
        writer.text(self.cursor)
        writer.number(self.limit)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Read:
        return cls(reader.number(), reader.number(), reader.text(), reader.text(), reader.number())


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to Read."""

    KIND: ClassVar = 24
    number: int
    found: StoredPresence

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        writer.number(self.number)
        write_entries(writer, self.found.entries)
        writer.text(self.found.cursor)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Found:
        return cls(reader.number(), StoredPresence(read_entries(reader), reader.text()))


@dataclass(frozen=True, slots=True)
class Counts(Request):
    """Answer with the number of entries and users. The answer is Counted."""

    KIND: ClassVar = 25

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        self.write_to(writer)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Counts:
        return cls(reader.number(), reader.number(), reader.text())


@dataclass(frozen=True, slots=True)
class Counted:
    """The answer to Counts."""

    KIND: ClassVar = 26
    number: int
    counts: PresenceCounts

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        writer.number(self.number)
        writer.number(self.counts.connections)
        writer.number(self.counts.users)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Counted:
        return cls(reader.number(), PresenceCounts(connections=reader.number(), users=reader.number()))


@dataclass(frozen=True, slots=True)
class Resent:
    """Have these entries of a node, if it is new to the owner: it owns the slot since that term."""

    KIND: ClassVar = 27
    slot: int
    term: int
    node_id: str
    """The sender, or a node of whose entries the sender has copies."""
    channel: str
    entries: tuple[PresenceEntry, ...]

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        writer.number(self.slot)
        writer.number(self.term)
        writer.text(self.node_id)
        writer.text(self.channel)
        write_entries(writer, self.entries)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Resent:
        return cls(reader.number(), reader.number(), reader.text(), reader.text(), read_entries(reader))


@dataclass(frozen=True, slots=True)
class ResendStep:
    """A step in resending the entries of a slot."""

    KIND: ClassVar[int]
    slot: int
    term: int

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        writer.number(self.slot)
        writer.number(self.term)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        return cls(reader.number(), reader.number())


class ResentAll(ResendStep):
    """Note that the sender has resent all its entries of a slot. Drop those that you had before, and that are not."""

    __slots__ = ()
    KIND: ClassVar = 28


class Resending(ResendStep):
    """Note that the sender will resend all its entries of a slot."""

    __slots__ = ()
    KIND: ClassVar = 34


@dataclass(frozen=True, slots=True)
class Lost:
    """Note that these entries have left meanwhile: their node was taken for dead. They have to enter again."""

    KIND: ClassVar = 29
    channel: str
    ids: tuple[str, ...]

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        writer.text(self.channel)
        write_texts(writer, self.ids)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Lost:
        return cls(reader.text(), read_texts(reader))


@dataclass(frozen=True, slots=True)
class CopiedAnew(Signal):
    """Forget all copies that the sender has made. Those that it wants to have copied follow."""

    KIND: ClassVar = 30


@dataclass(frozen=True, slots=True)
class Copied:
    """Keep copies of entries of a node, in a slot that the sender owns."""

    KIND: ClassVar = 31
    node_id: str
    channel: str
    entries: tuple[PresenceEntry, ...]

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        writer.text(self.node_id)
        writer.text(self.channel)
        write_entries(writer, self.entries)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Copied:
        return cls(reader.text(), reader.text(), read_entries(reader))


@dataclass(frozen=True, slots=True)
class Uncopied:
    """Forget the copies of these entries of a node."""

    KIND: ClassVar = 32
    node_id: str
    channel: str
    ids: tuple[str, ...]

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        writer.text(self.node_id)
        writer.text(self.channel)
        write_texts(writer, self.ids)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Uncopied:
        return cls(reader.text(), reader.text(), read_texts(reader))


@dataclass(frozen=True, slots=True)
class UncopiedSlot:
    """Forget the copies that the sender has made in a slot: another node owns it."""

    KIND: ClassVar = 33
    slot: int

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        writer.number(self.slot)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> UncopiedSlot:
        return cls(reader.number())


RequestBody: TypeAlias = Enter | Leave | Read | Counts

Body: TypeAlias = (
    RequestBody
    | Outcome
    | Found
    | Counted
    | Refused
    | Claim
    | Owners
    | Ready
    | NodeLeaves
    | Resent
    | ResentAll
    | Resending
    | Lost
    | CopiedAnew
    | Copied
    | Uncopied
    | UncopiedSlot
)

KINDS: dict[int, type[Body]] = {
    kind.KIND: kind
    for kind in (
        *(Enter, Leave, Read, Counts, Outcome, Found, Counted, Refused, Claim, Owners, Ready, NodeLeaves),
        *(Resent, ResentAll, Resending, Lost, CopiedAnew, Copied, Uncopied, UncopiedSlot),
    )
}


def decode_body(body: bytes) -> Body | None:
    """Return what a body says; None if its kind is unknown. Raises ``ValueError`` if it is malformed."""
    if not body:
        raise ValueError("a body about a presence is empty")
    kind = KINDS.get(body[0])
    return kind.decode(Reader(body)) if kind is not None else None
