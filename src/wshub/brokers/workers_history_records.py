"""The bodies of HISTORY records, by which workers speak about histories.

A worker ignores a body of an unknown kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import ClassVar, TypeAlias

from wshub.brokers.history_interface import HistoryQuery, StoredEnvelope, StoredHistory
from wshub.brokers.history_store import HistoryPart
from wshub.brokers.interface import Gap, HistoryConfig, Position, Published
from wshub.brokers.workers_codec import Reader, Signal, Writer
from wshub.brokers.workers_owner_records import Claim, Leave, OwnedSlots, Owners, Ready, Refused, Request
from wshub.errors import ConfigurationError

__all__ = [
    "Body",
    "Fenced",
    "Found",
    "Moved",
    "Moving",
    "Read",
    "Store",
    "StoreOutcome",
    "Taken",
    "decode_body",
]

CONFIG = Struct("<QQQQ")
GAPS: tuple[Gap, ...] = ("", "epoch", "trimmed", "too_much")


@lru_cache(maxsize=256)
def make_config(size: int, max_bytes: int, ttl_ms: int, position_ttl_ms: int) -> HistoryConfig:
    """Return a configuration as another worker has said it. Raises ``ValueError`` if it is out of bounds."""
    try:
        return HistoryConfig(size=size, max_bytes=max_bytes, ttl_ms=ttl_ms, position_ttl_ms=position_ttl_ms)
    except ConfigurationError as error:
        raise ValueError(str(error)) from None


class HistoryWriter(Writer):
    """Builds a body about a history."""

    def position(self, position: Position) -> None:
        self.number(position.offset)
        self.text(position.epoch)

    def config(self, config: HistoryConfig) -> None:
        self._parts.append(CONFIG.pack(config.size, config.max_bytes, config.ttl_ms, config.position_ttl_ms))

    def query(self, query: HistoryQuery) -> None:
        for number in (query.limit, query.max_bytes, query.reverse, query.is_own):
            self.number(number)
        self.data(query.mark)
        self.number(query.since is not None)
        if query.since is not None:
            self.position(query.since)

    def envelopes(self, envelopes: Iterable[StoredEnvelope]) -> None:
        for offset, envelope in envelopes:
            self.number(offset)
            self.data(envelope)


class HistoryReader(Reader):
    """Takes a body about a history apart."""

    def position(self) -> Position:
        return Position(self.number(), self.text())

    def config(self) -> HistoryConfig:
        return make_config(*CONFIG.unpack(self._take(CONFIG.size)))

    def query(self) -> HistoryQuery:
        """Return what a reader asks for. Raises ``ValueError`` if it is out of bounds."""
        limit, max_bytes, reverse, is_own = (self.number() for _ in range(4))
        mark = self.data()
        since = self.position() if self.number() else None
        try:
            return HistoryQuery(
                since=since, limit=limit, max_bytes=max_bytes, reverse=bool(reverse), is_own=bool(is_own), mark=mark
            )
        except ConfigurationError as error:
            raise ValueError(str(error)) from None

    def envelopes(self, count: int) -> tuple[StoredEnvelope, ...]:
        return tuple(StoredEnvelope(self.number(), self.data()) for _ in range(count))


@dataclass(frozen=True, slots=True)
class Store(Request):
    """Store an envelope."""

    KIND: ClassVar = 1
    config: HistoryConfig
    key: str
    envelope: bytes

    @property
    def size(self) -> int:
        return len(self.envelope)

    def encode(self) -> bytes:
        writer = HistoryWriter(self.KIND)
        self.write_to(writer)
        writer.config(self.config)
        writer.text(self.key)
        writer.data(self.envelope)
        return writer.body()

    @classmethod
    def decode(cls, reader: HistoryReader) -> Store:
        return cls(reader.number(), reader.number(), reader.text(), reader.config(), reader.text(), reader.data())


@dataclass(frozen=True, slots=True)
class Read(Request):
    """Answer with what is stored."""

    KIND: ClassVar = 2
    config: HistoryConfig
    query: HistoryQuery

    def encode(self) -> bytes:
        writer = HistoryWriter(self.KIND)
        self.write_to(writer)
        writer.config(self.config)
        writer.query(self.query)
        return writer.body()

    @classmethod
    def decode(cls, reader: HistoryReader) -> Read:
        return cls(reader.number(), reader.number(), reader.text(), reader.config(), reader.query())


@dataclass(frozen=True, slots=True)
class StoreOutcome:
    """The answer to Store."""

    KIND: ClassVar = 3
    number: int
    published: Published

    def encode(self) -> bytes:
        assert self.published.position is not None
        writer = HistoryWriter(self.KIND)
        writer.number(self.number)
        writer.number(self.published.receivers or 0)
        writer.number(self.published.is_duplicate)
        writer.position(self.published.position)
        return writer.body()

    @classmethod
    def decode(cls, reader: HistoryReader) -> StoreOutcome:
        number, receivers, is_duplicate = reader.number(), reader.number(), bool(reader.number())
        position = reader.position()
        return cls(number, Published(receivers=receivers, position=position, is_duplicate=is_duplicate))


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to Read."""

    KIND: ClassVar = 4
    number: int
    found: StoredHistory

    def encode(self) -> bytes:
        writer = HistoryWriter(self.KIND)
        writer.number(self.number)
        writer.position(self.found.position)
        writer.number(GAPS.index(self.found.gap))
        writer.data(self.found.mark)
        writer.number(len(self.found.envelopes))
        writer.envelopes(self.found.envelopes)
        return writer.body()

    @classmethod
    def decode(cls, reader: HistoryReader) -> Found:
        number, position, gap, mark = reader.number(), reader.position(), reader.number(), reader.data()
        if gap >= len(GAPS):
            raise ValueError(f"a gap of the unknown kind {gap}")
        envelopes = reader.envelopes(reader.number())
        return cls(number, StoredHistory(envelopes=envelopes, position=position, gap=GAPS[gap], mark=mark))


@dataclass(frozen=True, slots=True)
class Fenced(Signal):
    """The answer to Leave, behind all requests."""

    KIND: ClassVar = 9


@dataclass(frozen=True, slots=True)
class Moving:
    """A part of a history that is to have another owner."""

    KIND: ClassVar = 10
    slot: int
    part: HistoryPart

    def encode(self) -> bytes:
        part = self.part
        writer = HistoryWriter(self.KIND)
        writer.number(self.slot)
        writer.text(part.name)
        writer.position(part.position)
        writer.number(part.forgets_in_ms)
        writer.number(part.ends_in_ms)
        writer.number(len(part.keys))
        for key, remaining_ms, offset in part.keys:
            writer.text(key)
            writer.number(remaining_ms)
            writer.number(offset)
        writer.number(len(part.envelopes))
        writer.envelopes(part.envelopes)
        return writer.body()

    @classmethod
    def decode(cls, reader: HistoryReader) -> Moving:
        slot, name, position = reader.number(), reader.text(), reader.position()
        forgets_in_ms, ends_in_ms = reader.number(), reader.number()
        keys = tuple((reader.text(), reader.number(), reader.number()) for _ in range(reader.number()))
        envelopes = reader.envelopes(reader.number())
        return cls(slot, HistoryPart(name, position, forgets_in_ms, ends_in_ms, keys, envelopes))


class Moved(OwnedSlots):
    """Own these slots from now on, with the parts that were sent before. The answer is Taken."""

    __slots__ = ()
    KIND: ClassVar = 11


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer to Moved."""

    KIND: ClassVar = 12
    is_taken: bool
    """False if the worker leaves too, or has no space for the histories."""

    def encode(self) -> bytes:
        writer = Writer(self.KIND)
        writer.number(self.is_taken)
        return writer.body()

    @classmethod
    def decode(cls, reader: Reader) -> Taken:
        return cls(bool(reader.number()))


Body: TypeAlias = (
    Store | Read | StoreOutcome | Found | Refused | Claim | Owners | Leave | Fenced | Moving | Moved | Taken | Ready
)

KINDS: dict[int, type[Body]] = {
    kind.KIND: kind
    for kind in (Store, Read, StoreOutcome, Found, Refused, Claim, Owners, Leave, Fenced, Moving, Moved, Taken, Ready)
}


def decode_body(body: bytes) -> Body | None:
    """Return what a body says; None if its kind is unknown. Raises ``ValueError`` if it is malformed."""
    if not body:
        raise ValueError("a body about a history is empty")
    kind = KINDS.get(body[0])
    return kind.decode(HistoryReader(body)) if kind is not None else None
