"""The members of rooms, which JetStream keeps for the nodes of a hub.

A stream has one message for each user of a channel: the user's entries there. A node replaces it only if it names the
message that it has read, so each change is one step for all other nodes.

An entry belongs to one of the lives of a node. A life has a message of its own, which each beat replaces. The
node that finds a life without beats claims that message, takes the entries over, and deletes it. A node whose message
was claimed begins another life.

An entry may have a life without a message: the engine has lost the message, or has taken the entry very late. So nodes
look for such lives, and have them count as dead.

The last entry of a user stays in the message, marked as one that has left, until its node has the answer. If the answer
is lost, the node finds the mark at its next attempt; if the node dies, the one that takes its entries over finds it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

from wshub.brokers.nats_epochs import ChannelEpochs
from wshub.brokers.nats_lives import Lives
from wshub.brokers.nats_presence_stream import PAGE, PresenceStream, ReplacedError
from wshub.brokers.nats_reading import StoredMessage
from wshub.brokers.presence_interface import DEAD_SECONDS, Beat, PresenceCounts, PresenceEntry, StoredPresence
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain, MisuseError

__all__ = ["NatsPresences"]

# Changes that are under way at a time. A server refuses more than 10,000 of all nodes together.
IN_FLIGHT = 256

# Entries after which take_over() returns.
TAKEN_AT_ONCE = 500

# Entries that are gone, and of which this node remembers that nobody was told.
REMEMBERED = 10_000

# Beats after a loss of all entries, until no node enters members for a life that was lost. Beats between two searches
# for entries without a life, which one of the nodes makes.
AFTER_LOSS = 3
BETWEEN_SEARCHES = 100

# When the last beat was, before the first one over a connection.
NEVER = float("-inf")

# Attempts to change a message that other nodes replace all the time.
ATTEMPTS = 100


class Owned(NamedTuple):
    """An entry, the life that owns it, and whether it was the first one of its user."""

    entry: PresenceEntry
    owner: str
    was_first: bool
    has_left: bool = False
    """Whether it was the last one of its user, and its node may not know yet that it has left."""


Change: TypeAlias = Callable[[list[Owned]], tuple[list[Owned], list[bool]]]
"""Takes the entries of a user on a channel, and returns the new ones, and an outcome for each that was asked for."""


class User(NamedTuple):
    """The entries of a user on a channel, as this node has written or read them."""

    sequence: int
    entries: list[Owned]


NOBODY = User(0, [])


class NatsPresences:
    """Keeps entries. The methods are those of ``PresenceBroker``.

    Args:
        stream: keeps the messages.
        epochs: has the tokens of channels.
        node: the id of the node.
        now: returns the time in seconds.
    """

    def __init__(self, stream: PresenceStream, epochs: ChannelEpochs, node: str, now: Callable[[], float]) -> None:
        self._stream = stream
        self._epochs = epochs
        self._node = node
        self._now = now
        self._lives = Lives(stream, node)
        self._limit = asyncio.Semaphore(IN_FLIGHT)
        # When the last beat over this connection was.
        self._beat_at = NEVER
        self._beating = asyncio.Lock()
        self._must_enter_anew = False
        # Beats until this node looks for entries without a life; and whether it does so whichever node is the first.
        self._search_in = BETWEEN_SEARCHES
        self._is_search_for_all = False
        # The id of the last server; whether it may have lost something, and how often; and the lives of this node that
        # have ended for that.
        self._server_id = ""
        self._is_suspect = False
        self._suspicions = 0
        self._former: set[str] = set()
        # What this node has written of users with entries of its own, by subject.
        self._written: dict[str, User] = {}
        # The subjects that may have entries of this node; and how many changes of each are under way.
        self._touched: set[str] = set()
        self._changing: Counter[str] = Counter()
        # Where the search for the entries of each claimed life goes on; what was found, and was not told yet; and the
        # ids of all that was.
        self._searches: dict[str, int] = {}
        self._untold: list[tuple[str, PresenceEntry]] = []
        self._taken: set[str] = set()
        # The ids of entries that are gone, and whose leave nobody was told. Others that are gone were taken over.
        self._untold_leaves: dict[str, None] = {}
        # The ids of entries that this node may have removed: the answer was lost.
        self._uncertain: dict[str, None] = {}

    def attached(self, server_id: str) -> None:
        """Have a beat before anything else: the node may have been taken for dead."""
        self._beat_at = NEVER
        # A server that was killed may have entries again that had been removed, or may have lost some.
        is_same_server = self._server_id in ("", server_id)
        self._stream.attached()
        self._is_suspect |= not is_same_server
        self._server_id = server_id

    # Entries

    async def enter(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Add entries of this node."""
        await self._live()
        for entry in entries:
            self._untold_leaves.pop(entry.id, None)

        def enter(new: Sequence[PresenceEntry]) -> Change:
            return lambda known: with_entries(known, new, self._lives.own)

        return await self._change_all(channel, entries, enter)

    async def leave(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Remove entries of this node."""
        # The engine may have lost the entries, or another node may have taken them over.
        await self._live()

        def leave(gone: Sequence[PresenceEntry]) -> Change:
            return lambda known: without_entries(known, gone, self._untold_leaves)

        ids = dict.fromkeys(entry.id for entry in entries)
        try:
            outcomes = await self._change_all(channel, entries, leave)
        except BrokerUncertain:
            self._uncertain.update(ids)
            raise
        for name in ids:
            self._uncertain.pop(name, None)
            self._untold_leaves.pop(name, None)
            self._taken.discard(name)
        return outcomes

    def _remember_untold(self, ids: Iterable[str]) -> None:
        self._untold_leaves.update(dict.fromkeys(ids))
        while len(self._untold_leaves) > REMEMBERED:
            del self._untold_leaves[next(iter(self._untold_leaves))]

    async def _live(self) -> None:
        """Have a beat if the last one is so long ago that the node may have been taken for dead."""
        if self._now() - self._beat_at < DEAD_SECONDS / 2:
            return
        async with self._beating:
            if self._now() - self._beat_at >= DEAD_SECONDS / 2:
                await self._beat()

    async def _change_all(
        self,
        channel: str,
        entries: Sequence[PresenceEntry],
        change_of: Callable[[Sequence[PresenceEntry]], Change],
    ) -> list[bool]:
        """Change the entries of several users. Return an outcome for each entry."""
        users: dict[str, list[int]] = {}
        for index, entry in enumerate(entries):
            users.setdefault(entry.user, []).append(index)
        found = await asyncio.gather(
            *(
                self._change(channel, user, change_of([entries[index] for index in indexes]))
                for user, indexes in users.items()
            ),
            return_exceptions=True,
        )
        errors = [outcome for outcome in found if isinstance(outcome, BaseException)]
        if errors:
            if isinstance(errors[0], BrokerError) and len(errors) < len(found):
                raise BrokerUncertain(f"some members were changed, and others not: {errors[0]}")
            raise errors[0]
        outcomes = [False] * len(entries)
        for indexes, outcome in zip(users.values(), found, strict=True):
            for index, each in zip(indexes, outcome, strict=True):  # type: ignore[arg-type]
                outcomes[index] = each
        return outcomes

    async def _change(self, channel: str, user: str, change: Change) -> list[bool]:
        """Change the entries of a user on a channel, in one step."""
        subject = f"user.{self._epochs.tokens(channel)}.{hashed(user)}"
        async with self._limit:
            self._changing[subject] += 1
            self._touched.add(subject)
            try:
                return await self._change_subject(subject, channel, user, change)
            finally:
                self._changing[subject] -= 1
                if not self._changing[subject]:
                    del self._changing[subject]

    async def _change_subject(self, subject: str, channel: str, user: str, change: Change) -> list[bool]:
        known = self._written.pop(subject, None)
        if known is None and change([])[0]:
            # Most users have one connection.
            known = NOBODY
        for _ in range(ATTEMPTS):
            if known is None:
                record = await self._stream.read(subject)
                known = User(record.sequence, entries_of(record.data, user) if record.data else [])
            entries, outcomes = change(known.entries)
            try:
                await self._write(subject, channel, user, known, entries)
            except ReplacedError:
                known = None
            else:
                return outcomes
        raise BrokerUnavailable("other nodes change the same user all the time")

    async def _write(self, subject: str, channel: str, user: str, known: User, entries: list[Owned]) -> None:
        sequence = known.sequence
        is_anybody_there = any_there(entries)
        is_change = is_anybody_there or any_there(known.entries)
        if is_change:
            sequence = await self._stream.replace(subject, message_of(channel, user, entries), sequence)
        # A mark that this call has not set is for another one.
        if sequence and not is_anybody_there and (is_change or not entries):
            self._stream.delete(subject, sequence)
        if is_anybody_there and any(owned.owner == self._lives.own for owned in entries):
            self._written[subject] = User(sequence, entries)
            self._touched.add(subject)
        elif self._changing[subject] == 1:
            # Otherwise the next change may be about to add an entry.
            self._touched.discard(subject)

    # Beats

    async def beat(self, *, is_leaving: bool) -> Beat:
        """Say that this node lives, or that it is about to end."""
        if is_leaving:
            await self._lives.leave(is_empty=not self._touched)
            return Beat(True, "", ())
        former = frozenset(self._former) if not self._must_enter_anew else frozenset()
        async with self._beating:
            await self._beat()
        await self._search_if_due()
        dead = await self._lives.find_dead()
        # Have the rest of a former life removed once the hub has had time to enter its members again.
        dead = tuple(life for life in dead if life not in self._former or life in former)
        # Nothing may fail between this and the answer.
        is_known, self._must_enter_anew = not self._must_enter_anew, False
        return Beat(is_known, f"{self._lives.epoch}-{self._suspicions}", dead)

    async def _beat(self) -> None:
        losses, life = self._lives.losses, self._lives.own
        try:
            is_known = await self._lives.beat()
            if is_known and self._is_suspect:
                self._former.add(await self._lives.begin_anew())
                self._suspicions += 1
                is_known = False
        except BrokerError:
            self._is_suspect = True
            raise
        self._is_suspect = False
        is_first, self._beat_at = self._beat_at == NEVER, self._now()
        if losses != self._lives.losses:
            self._search_in, self._is_search_for_all = AFTER_LOSS, True
            self._remember_untold(self._ids_of(life))
        if not is_known:
            self._must_enter_anew = True
            self._written.clear()
            self._touched.clear()
            self._stream.forget_deletions()
        elif is_first:
            # The engine has replaced what this node wrote last, so the stream is the one of the former connection.
            self._stream.delete_again()

    def _ids_of(self, life: str) -> Iterator[str]:
        """Yield the ids of the entries of a life of this node, as far as it knows."""
        yield from self._uncertain
        for known in self._written.values():
            yield from (owned.entry.id for owned in known.entries if owned.owner == life)

    # Dead nodes

    async def _search_if_due(self) -> None:
        """Look for entries without a life, and have their lives count as dead."""
        self._search_in -= 1
        if self._search_in > 0:
            return
        losses = self._lives.losses
        if self._is_search_for_all or self._lives.is_first:
            owners = {owned.owner async for _, _, entries in self._all_users() for owned in entries}
            for owner in owners - await self._lives.names():
                if not await self._lives.exists(owner):
                    await self._lives.end(owner)
        # After another loss meanwhile, the next search is due already.
        if losses == self._lives.losses:
            self._search_in, self._is_search_for_all = BETWEEN_SEARCHES, False

    async def take_over(self, life: str) -> list[tuple[str, PresenceEntry]]:
        """Make entries of a dead life those of this node."""
        record = await self._lives.claim(life)
        if record is not None and life in self._former:
            await self._remove_rest()
            self._former.discard(life)
        elif record is not None:
            await self._search(life)
        told, self._untold = self._untold, []
        if record is not None and not told:
            self._lives.forget(life, record)
            self._searches.pop(life, None)
        return told

    async def _search(self, life: str) -> None:
        """Look for entries of a dead life until there are enough, or no more."""
        while len(self._untold) < TAKEN_AT_ONCE:
            start = self._searches.get(life, 1)
            page = await self._stream.list("user.>", start, PAGE)
            for message in page.messages:
                await self._take_from(life, message)
                self._searches[life] = message.sequence + 1
            if not page.messages or page.available <= len(page.messages):
                return

    async def _remove_rest(self) -> None:
        """Remove entries of former lives of this node, and of lives that are gone. Their leaves were told before."""
        known = await self._lives.names()
        async for channel, user, entries in self._all_users():
            owners = {owned.owner for owned in entries}
            gone = {owner for owner in owners - known if not await self._lives.exists(owner)}
            gone |= owners & self._former
            if gone:
                removed: list[Owned] = []
                await self._change(channel, user, partial(remove_owned, gone, removed))
                for owned in removed:
                    if owned.owner in self._former:
                        self._note_removed(channel, owned)

    async def _all_users(self) -> AsyncIterator[tuple[str, str, list[Owned]]]:
        """Yield the channel, the name and the entries of each user."""
        async for message in self._stream.list_all("user.>"):
            yield parsed(message.data)

    def _note_removed(self, channel: str, owned: Owned) -> None:
        """Note that an entry of a former life was removed."""
        entry = owned.entry
        # The hub may be about to have it leave.
        self._remember_untold([entry.id])
        if not owned.has_left and entry.id.startswith(f"{self._node}/") and entry.id not in self._taken:
            # It was taken over, and the answer was lost.
            self._taken.add(entry.id)
            self._untold.append((channel, entry))

    async def _take_from(self, life: str, message: StoredMessage) -> None:
        channel, user, entries = parsed(message.data)
        if not any(self._is_to_take(owned, life) for owned in entries):
            return
        found: list[PresenceEntry] = []

        def take(known: list[Owned]) -> tuple[list[Owned], list[bool]]:
            found.clear()
            return [self._taken_over(owned, found, life) for owned in known], []

        await self._change(channel, user, take)
        self._taken.update(entry.id for entry in found)
        self._untold += [(channel, entry) for entry in found]

    def _taken_over(self, owned: Owned, found: list[PresenceEntry], life: str) -> Owned:
        """Return an entry as it is after the change. Add it to those that were found, if it is to be told."""
        if not self._is_to_take(owned, life):
            return owned
        entry = owned.entry
        if owned.owner == life:
            entry = entry._replace(id=f"{self._node}/{entry.id}")
        found.append(entry)
        # One that has left may not have been told, so it leaves again.
        return Owned(entry, self._lives.own, owned.was_first)

    def _is_to_take(self, owned: Owned, life: str) -> bool:
        """Whether an entry is to be told. One may be this node's already, if the answer was lost."""
        name = owned.entry.id
        is_own = owned.owner == self._lives.own and not owned.has_left and name.startswith(f"{self._node}/")
        return owned.owner == life or (is_own and name not in self._taken)

    # Questions

    async def own(self) -> list[tuple[str, PresenceEntry]]:
        """Return channels and entries of this node, with those that it has taken over."""
        return [
            (channel, owned.entry)
            async for channel, _, entries in self._all_users()
            for owned in entries
            if owned.owner == self._lives.own and not owned.has_left
        ]

    async def read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        """Return some entries of a channel."""
        if not cursor.isascii() or (cursor and not cursor.isdigit()):
            raise MisuseError(f"cursor must be that of an earlier page, not {cursor!r}")
        page = await self._stream.list(f"user.{self._epochs.tokens(channel)}.*", int(cursor or 1), limit)
        # A user may be there twice, as before and after a change.
        users = {message.subject: message.data for message in page.messages}
        entries = tuple(owned.entry for data in users.values() for owned in parsed(data)[2] if not owned.has_left)
        is_last = not page.messages or page.available <= len(page.messages)
        return StoredPresence(entries, "" if is_last else str(page.messages[-1].sequence + 1))

    async def counts(self, channel: str) -> PresenceCounts:
        """Return the number of entries and of users of a channel."""
        connections = users = 0
        cursor = ""
        while True:
            page = await self.read(channel, cursor, PAGE)
            connections += len(page.entries)
            users += len({entry.user for entry in page.entries})
            cursor = page.cursor
            if not cursor:
                return PresenceCounts(connections=connections, users=users)


def with_entries(known: list[Owned], new: Sequence[PresenceEntry], owner: str) -> tuple[list[Owned], list[bool]]:
    """Add entries, or replace those of the same ids. Return for each whether it was the first one."""
    entries = {owned.entry.id: owned for owned in known if not owned.has_left}
    outcomes = []
    for entry in new:
        before = entries.get(entry.id)
        was_first = before.was_first if before is not None else not entries
        entries[entry.id] = Owned(entry, owner, was_first)
        outcomes.append(was_first)
    return list(entries.values()), outcomes


def without_entries(
    known: list[Owned], gone: Sequence[PresenceEntry], untold: Container[str]
) -> tuple[list[Owned], list[bool]]:
    """Remove entries, and mark the last one of the user. Return for each whether it was that.

    One that an earlier call has marked has the same answer, unless the user is there again. One that is gone otherwise
    was not the last one, or another node has taken it over, and tells of the leave.
    """
    entries = {owned.entry.id: owned for owned in known if not owned.has_left}
    left = {owned.entry.id: owned for owned in known if owned.has_left}
    outcomes: list[bool] = []
    for entry in gone:
        owned = entries.pop(entry.id, None)
        if owned is not None:
            is_last = not entries
            if is_last:
                left[entry.id] = owned._replace(has_left=True)
        else:
            is_marked = left.pop(entry.id, None) is not None
            is_last = not entries and True not in outcomes and (is_marked or entry.id in untold)
        outcomes.append(is_last)
    return [*entries.values(), *left.values()], outcomes


def remove_owned(lives: set[str], removed: list[Owned], known: list[Owned]) -> tuple[list[Owned], list[bool]]:
    """Remove the entries of some lives, and put them into a list."""
    removed[:] = [owned for owned in known if owned.owner in lives]
    return [owned for owned in known if owned.owner not in lives], []


def any_there(entries: list[Owned]) -> bool:
    """Return whether a user is there."""
    return not all(owned.has_left for owned in entries)


def message_of(channel: str, user: str, entries: list[Owned]) -> bytes:
    """Return the message of a user."""
    fields = [
        [each.entry.id, each.owner, each.entry.data.decode("latin-1"), int(each.was_first), int(each.has_left)]
        for each in entries
    ]
    return json.dumps([channel, user, fields]).encode()


def parsed(data: bytes) -> tuple[str, str, list[Owned]]:
    """Return the channel, the user and the entries of a message."""
    try:
        channel, user, fields = json.loads(data)
        entries = [
            Owned(PresenceEntry(name, user, text.encode("latin-1")), owner, bool(was_first), bool(has_left))
            for name, owner, text, was_first, has_left in fields
        ]
    except (ValueError, TypeError, AttributeError):
        raise BrokerUncertain("the engine has something else than the members of a room") from None
    return channel, user, entries


def entries_of(data: bytes, user: str) -> list[Owned]:
    """Return the entries of a message, if it is that of the user."""
    _, known, entries = parsed(data)
    return entries if known == user else []


def hashed(text: str) -> str:
    """Return a token for a user of any name."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
