"""Brokers that keep histories and members, and break one promise each."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from tests.brokers.breaking import fails
from wshub.brokers.history_interface import HistoryQuery, StoredHistory
from wshub.brokers.interface import HistoryConfig, Published
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.memory_engine import Arrived
from wshub.brokers.presence_interface import Beat, PresenceEntry, StoredPresence
from wshub.errors import BrokerError

# Histories.


@fails("stored_envelopes_have_one_order", "envelopes_of_one_node_keep_their_order", "each_sender_has_its_own_order")
class HoldsSomeBack(MemoryBroker):
    """Some envelopes arrive behind 50 later ones."""

    def __init__(self, engine: MemoryEngine) -> None:
        super().__init__(engine)
        self.held: deque[Arrived] = deque()
        self.count = 0

    def _receive(self, arrived: Arrived) -> None:
        self.count += 1
        if self.count % 60 == 10:
            self.held.append(arrived)
            return
        super()._receive(arrived)
        if self.count % 60 == 0 and self.held:
            super()._receive(self.held.popleft())


@fails("stored_envelopes_have_one_order")
class ThirdHasItsOwnOrder(MemoryBroker):
    """The first two nodes agree."""

    made = 0

    def __init__(self, engine: MemoryEngine) -> None:
        super().__init__(engine)
        type(self).made += 1
        self.is_third = self.made % 3 == 0
        self.first: Arrived | None = None

    def _receive(self, arrived: Arrived) -> None:
        if self.is_third and self.first is None:
            self.first = arrived
            return
        super()._receive(arrived)
        if self.first is not None:
            self.is_third = False
            super()._receive(self.first)
            self.first = None


@fails("what_was_stored_can_be_read")
class IgnoresTheLimit(MemoryBroker):
    async def history(self, channel: str, config: HistoryConfig, query: HistoryQuery) -> StoredHistory:
        return await super().history(channel, config, replace(query, limit=100))


@fails("any_bytes_can_be_stored")
class StoresText(MemoryBroker):
    async def publish_stored(
        self, channel: str, envelope: bytes, config: HistoryConfig, *, idempotency_key: str = ""
    ) -> Published:
        return await super().publish_stored(channel, envelope.rstrip(b"\0"), config, idempotency_key=idempotency_key)


@fails("channels_have_histories_of_their_own")
class JoinsHistories(MemoryBroker):
    async def publish_stored(
        self, channel: str, envelope: bytes, config: HistoryConfig, *, idempotency_key: str = ""
    ) -> Published:
        return await super().publish_stored(channel.rstrip("\0"), envelope, config, idempotency_key=idempotency_key)


@fails("channels_have_histories_of_their_own")
class TakesNoPositionBeforeTheFirst(MemoryBroker):
    async def history(self, channel: str, config: HistoryConfig, query: HistoryQuery) -> StoredHistory:
        found = await super().history(channel, config, query)
        return replace(found, gap="trimmed") if query.since is not None and query.since.offset == 0 else found


@fails("old_envelopes_are_forgotten")
class ForgetsNothing(MemoryBroker):
    async def publish_stored(
        self, channel: str, envelope: bytes, config: HistoryConfig, *, idempotency_key: str = ""
    ) -> Published:
        config = replace(config, size=1000, max_bytes=1 << 30)
        return await super().publish_stored(channel, envelope, config, idempotency_key=idempotency_key)


@fails("old_envelopes_are_forgotten", "what_is_too_old_is_forgotten", "a_lost_position_is_told")
class SaysThatNothingWasMissed(MemoryBroker):
    async def history(self, channel: str, config: HistoryConfig, query: HistoryQuery) -> StoredHistory:
        return replace(await super().history(channel, config, query), gap="")


@fails("another_envelope_at_a_position_is_told")
class IgnoresMarks(MemoryBroker):
    async def history(self, channel: str, config: HistoryConfig, query: HistoryQuery) -> StoredHistory:
        return await super().history(channel, config, replace(query, mark=b""))


@fails("an_idempotency_key_stores_once")
class IgnoresKeys(MemoryBroker):
    async def publish_stored(
        self, channel: str, envelope: bytes, config: HistoryConfig, *, idempotency_key: str = ""
    ) -> Published:
        return await super().publish_stored(channel, envelope, config)


@fails("what_was_published_is_stored_whatever_fails")
class LosesSomeThatItHasStored(MemoryBroker):
    async def history(self, channel: str, config: HistoryConfig, query: HistoryQuery) -> StoredHistory:
        found = await super().history(channel, config, query)
        kept = tuple(stored for stored in found.envelopes if not stored.envelope.endswith(b"7"))
        return replace(found, envelopes=kept)


# Who is where.


@fails("members_are_known_to_all_nodes")
class KnowsItsOwnMembers(MemoryBroker):
    async def presence_read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        found = await super().presence_read(channel, cursor, limit)
        own = tuple(entry for entry in found.entries if entry.id.startswith(self._node.id))
        return found._replace(entries=own)


@fails("of_many_entries_at_once_one_is_the_first", "members_are_known_to_all_nodes")
class SaysThatEachIsTheLast(MemoryBroker):
    async def presence_leave(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        return [True for _ in await super().presence_leave(channel, entries)]


@fails("entering_again_replaces_the_data")
class KeepsTheFirstData(MemoryBroker):
    def __init__(self, engine: MemoryEngine) -> None:
        super().__init__(engine)
        self.data: dict[str, bytes] = {}

    async def presence_enter(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        kept = [entry._replace(data=self.data.setdefault(entry.id, entry.data)) for entry in entries]
        return await super().presence_enter(channel, kept)


@fails("an_answer_can_be_asked_for_again")
class SaysOnceThatOneIsTheFirst(MemoryBroker):
    def __init__(self, engine: MemoryEngine) -> None:
        super().__init__(engine)
        self.known: set[str] = set()

    async def presence_enter(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        first = await super().presence_enter(channel, entries)
        told = [is_first and entry.id not in self.known for is_first, entry in zip(first, entries, strict=True)]
        self.known.update(entry.id for entry in entries)
        return told


@fails("any_text_names_a_user_and_a_channel")
class JoinsRooms(MemoryBroker):
    async def presence_enter(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        return await super().presence_enter(channel.rstrip("\0"), entries)


@fails("who_stays_is_on_a_page")
class ReadsOnePage(MemoryBroker):
    async def presence_read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        return (await super().presence_read(channel, cursor, limit))._replace(cursor="")


@fails("the_entries_of_a_node_that_has_ended_are_taken_over_once")
class TakesOverTwice(MemoryBroker):
    async def presence_take_over(self, node: str) -> list[tuple[str, PresenceEntry]]:
        return 2 * await super().presence_take_over(node)


@fails("nothing_of_a_node_that_lives_is_taken_over")
class KnowsNobody(MemoryBroker):
    async def presence_beat(self, *, is_leaving: bool = False) -> Beat:
        return (await super().presence_beat(is_leaving=is_leaving))._replace(is_known=False)


@fails("what_was_entered_is_there_whatever_fails")
class EntersOnceWhateverFails(MemoryBroker):
    async def presence_enter(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        try:
            return await super().presence_enter(channel, entries)
        except BrokerError:
            return [True for _ in entries]


@fails("a_node_is_told_what_an_engine_has_lost")
class SaysThatItIsKnown(MemoryBroker):
    """Its engine comes back without entries."""

    def _connect(self) -> None:
        if self._was_connected:
            self._engine.lose_presences()
        super()._connect()

    async def presence_beat(self, *, is_leaving: bool = False) -> Beat:
        return (await super().presence_beat(is_leaving=is_leaving))._replace(is_known=True)
