"""The entries that the owner of a slot keeps, while other workers resend theirs and copies of others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, cast

import pytest

from tests.brokers.mesh import entries_of, until
from wshub.brokers.presence_interface import PresenceEntry
from wshub.brokers.presence_store import PresenceEntries
from wshub.brokers.workers_owners import slot_of
from wshub.brokers.workers_presence_copies import Copies
from wshub.brokers.workers_presence_keeper import OwnedSlot, PresenceKeeper
from wshub.brokers.workers_presence_records import Copied, Enter, UncopiedSlot, decode_body

CHANNEL = "room:a"
SLOT = slot_of(CHANNEL)


class Standby:
    """The copies of a keeper, by node and id."""

    def __init__(self) -> None:
        self.copies: dict[tuple[str, str], str] = {}

    def add(self, node_id: str, channel: str, entries: Iterable[PresenceEntry]) -> None:
        self.copies.update({(node_id, entry.id): channel for entry in entries})

    def remove(self, node_id: str, channel: str, ids: Iterable[str]) -> None:
        for entry_id in ids:
            self.copies.pop((node_id, entry_id), None)


class Owner:
    """An owner that awaits the entries of a node that has a standby."""

    def __init__(self) -> None:
        self.standby = Standby()
        self.keeper = PresenceKeeper("owner", 1 << 20)
        self.keeper.copies = self.standby
        self.owned: OwnedSlot = self.keeper.begin(SLOT, 1, ["node", "standby"])
        self.answers: list[Any] = []

    def enter(self, node_id: str, *users: str) -> None:
        entries: Sequence[PresenceEntry] = entries_of(node_id, *users)
        body = Enter(1, 1, CHANNEL, tuple(entries))
        self.keeper.serve(SLOT, node_id, body, self.answers.append, self.answers.append)

    def copies_come(self, *, is_connected: bool) -> None:
        self.keeper.enter_copies(self.owned, "node", CHANNEL, entries_of("node", "ann"), is_connected=is_connected)

    def check_copies(self) -> None:
        """Check that the standby has exactly what the owner has."""
        entries = self.owned.entries
        assert set(self.standby.copies) == {
            (node_id, entry_id) for node_id in entries.nodes for _, entry_id in entries.names_of(node_id)
        }


def test_copies_of_a_node_that_seems_alive_count_once_it_has_ended() -> None:
    owner = Owner()
    owner.copies_come(is_connected=True)
    owner.enter("other", "ann", "bob")
    owner.keeper.resent_all(owner.owned, "standby")
    assert owner.answers == []
    owner.keeper.node_ended("node")
    assert owner.answers == [[False, True]]
    owner.check_copies()


def test_a_node_that_says_itself_what_it_has_knows_better_than_the_copies() -> None:
    owner = Owner()
    owner.copies_come(is_connected=True)
    owner.enter("other", "ann")
    owner.keeper.resent_all(owner.owned, "standby")
    owner.keeper.resend_begins(owner.owned, "node")
    owner.keeper.resent_all(owner.owned, "node")
    assert owner.answers == [[True]]
    owner.keeper.node_ended("node")
    assert owner.owned.entries.nodes == ["other"]
    owner.check_copies()


@pytest.mark.parametrize("has_left", [False, True])
def test_copies_of_entries_that_were_taken_over_are_not_entered_again(*, has_left: bool) -> None:
    owner = Owner()
    for node_id in ("node", "standby"):
        owner.keeper.resent_all(owner.owned, node_id)
    owner.copies_come(is_connected=False)
    ((_, taken),) = owner.keeper.take_over("node")
    owner.check_copies()
    if has_left:
        assert owner.owned.entries.leave("owner", CHANNEL, [taken]) == [True]
    owner.copies_come(is_connected=False)
    assert owner.owned.entries.nodes == ([] if has_left else ["owner"])


class StandbyConnection:
    """A connection to a standby. It takes no more than a part until ``departed`` is set."""

    node_id = "standby"

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.departed = asyncio.Event()

    def send_presence(self, body: bytes, *, always: bool = False) -> bool:
        self.said.append(decode_body(body))
        return True

    async def departure(self) -> bool:
        await self.departed.wait()
        return True


class TwoMembers:
    """An owner, and the only other worker."""

    own_id = "owner"

    def __init__(self, standby: StandbyConnection) -> None:
        self._standby = standby

    def candidates(self) -> list[str]:
        return ["owner", "standby"]

    def reachable(self, node_id: str) -> StandbyConnection | None:
        return self._standby if node_id == "standby" else None

    peer = reachable


async def test_a_standby_gets_no_copies_of_a_slot_that_it_was_told_to_forget() -> None:
    standby = StandbyConnection()
    members = cast(Any, TwoMembers(standby))
    keeper = PresenceKeeper("owner", 1 << 20)
    copies = keeper.copies = Copies(asyncio.get_running_loop(), members, keeper)
    owned = keeper.begin(SLOT, 1, [])
    # They are more than are sent at once.
    keeper.enter(owned, "node", CHANNEL, entries_of("node", *(f"{number:01000}" for number in range(1000))))
    copies.choose()
    await until(lambda: standby.said)
    keeper.end(SLOT)
    copies.drop(SLOT)
    standby.departed.set()
    await until(lambda: copies._sending is None)
    assert Copied in map(type, standby.said)
    assert standby.said[-1] == UncopiedSlot(SLOT)


def test_an_entry_that_another_node_removes_belongs_to_nobody() -> None:
    entries = PresenceEntries()
    ann = PresenceEntry("one:ann", "ann", b"")
    entries.enter("one", "room", [ann])
    assert entries.leave("two", "room", [ann]) == [True]
    assert entries.nodes == []
    assert list(entries.parts("one", 100)) == []
