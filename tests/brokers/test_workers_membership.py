"""How workers agree on the owner of a slot, also after some of them were parted from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, cast

import pytest

from wshub.brokers.interface import NodeInfo
from wshub.brokers.workers_hello import Hello
from wshub.brokers.workers_membership import Membership
from wshub.brokers.workers_owner_records import Claim, Owned, Owners, Ready
from wshub.brokers.workers_peer import Peer
from wshub.brokers.workers_presence_records import decode_body

SLOTS = (7, 8, 9, 10, 11)
"""Some of these are owned by the worker that chooses owners, and some by another one."""


class Connection:
    """The connection from one worker to another."""

    def __init__(self, to: Worker, back: Worker) -> None:
        self.to = to
        self.back = back
        self.node_id = to.node.id
        self.hello = Hello(to.node, 1)


class Worker:
    """A worker that keeps nothing and takes part in the choice of owners."""

    def __init__(self, number: int, traffic: deque[tuple[Connection, bytes]]) -> None:
        self.node = NodeInfo(id=f"{number:016x}", hub="hub", started_at=float(number))
        self.peers: dict[Worker, Connection] = {}
        self.changed: list[int] = []
        self._traffic = traffic
        self.members = Membership(self.node, self._owner_changed, self._send)

    def _owner_changed(self, slots: Iterable[int]) -> None:
        self.changed += slots

    def _send(self, peer: Peer, body: bytes, /, *, always: bool = False) -> bool:
        self._traffic.append((cast(Any, peer), body))
        return True

    def received(self, connection: Connection, body: bytes) -> None:
        peer = cast(Peer, connection)
        said = decode_body(body)
        if isinstance(said, Owners):
            for owned in said.owned:
                self.members.learn(owned)
        elif isinstance(said, Claim):
            self.members.claimed(peer, said)
        else:
            assert isinstance(said, Ready)
            self.members.is_ready(peer)

    def take_for_ended(self, other: Worker) -> None:
        """Take another worker for ended, and meet it at once: for others it was there all the time."""
        self.members.owners.node_ended(other.node.id)
        self.members.owners.node_met(other.node.id)


class Workers:
    """Three workers. The first one chooses the owner of a slot."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.traffic: deque[tuple[Connection, bytes]] = deque()
        self.all = [Worker(number, self.traffic) for number in (1, 2, 3)]
        for number, one in enumerate(self.all):
            for other in self.all[number + 1 :]:
                self.connect(one, other)
        for one in self.all:
            one.members.started()
        self.settle()

    def connect(self, one: Worker, other: Worker) -> None:
        for of, to in ((one, other), (other, one)):
            of.peers[to] = Connection(to, of)
            of.members.peer_up(cast(Peer, of.peers[to]))

    def part(self, one: Worker, other: Worker) -> None:
        for of, to in ((one, other), (other, one)):
            of.members.peer_down(cast(Peer, of.peers.pop(to)))

    def settle(self) -> None:
        """Have each worker take what the others have said."""
        for _ in range(1000):
            if not self.traffic:
                return
            connection, body = self.traffic.popleft()
            to, back = connection.to, connection.back
            if back.peers.get(to) is connection:
                to.received(to.peers[back], body)
        raise AssertionError("the workers do not come to an end")

    def owner(self) -> Worker:
        """Return the owner of the slot, on which all have to agree."""
        self.settle()
        (owned,) = {worker.members.route(self.slot) for worker in self.all}
        (owner,) = [worker for worker in self.all if worker.node.id == owned[1]]
        return owner

    def term(self) -> int:
        """Return the term of the slot, on which all have to agree."""
        (term,) = {worker.members.owners.term(self.slot) for worker in self.all}
        return term

    def seek(self, worker: Worker) -> None:
        """Have a worker look for an owner of the slot."""
        worker.members.seek(self.slot, 10)
        self.settle()

    def others(self) -> list[Worker]:
        """Return the workers that do not own the slot, and do not choose its owner."""
        owner = self.owner()
        return [worker for worker in self.all[1:] if worker is not owner]


@pytest.fixture(params=SLOTS)
def workers(request: pytest.FixtureRequest) -> Workers:
    workers = Workers(request.param)
    workers.seek(workers.all[0])
    return workers


def test_some_owners_choose_owners_themselves_and_some_do_not() -> None:
    chosen = set()
    for slot in SLOTS:
        workers = Workers(slot)
        workers.seek(workers.all[0])
        chosen.add(workers.owner() is workers.all[0])
    assert chosen == {True, False}


def test_an_owner_that_all_others_have_taken_for_ended_owns_the_slot_again_when_they_meet(workers: Workers) -> None:
    owner = workers.owner()
    others = [worker for worker in workers.all if worker is not owner]
    for other in others:
        workers.part(owner, other)
        other.members.node_ended(owner.node.id)
    workers.settle()
    for other in others:
        workers.connect(owner, other)
    assert workers.owner() is owner


def test_all_agree_again_once_a_worker_is_back_that_has_taken_the_owner_for_ended(workers: Workers) -> None:
    for other in workers.others():
        owner = workers.owner()
        workers.part(owner, other)
        other.members.node_ended(owner.node.id)
        # Without the one that chooses owners, this one may choose another owner.
        workers.seek(other)
        workers.connect(owner, other)
        assert workers.owner() in (owner, other)


def test_a_claim_of_a_worker_that_takes_the_owner_for_ended_has_the_owner_say_that_it_is_there(
    workers: Workers,
) -> None:
    owner, term = workers.owner(), workers.term()
    claimant = workers.others()[0]
    claimant.take_for_ended(owner)
    for worker in workers.all:
        worker.changed.clear()
    workers.seek(claimant)
    assert workers.owner() is owner
    assert workers.term() == term + 1
    # Each gives the owner what it may not have.
    assert all(workers.slot in worker.changed for worker in workers.all)


def test_if_the_worker_that_chooses_owners_takes_one_for_ended_all_agree_on_its_choice(workers: Workers) -> None:
    if workers.owner() is not workers.all[0]:
        workers.all[0].take_for_ended(workers.owner())
    workers.seek(workers.all[0])
    assert workers.owner() in workers.all


def test_the_slot_of_an_owner_that_has_ended_gets_another_one(workers: Workers) -> None:
    owner = workers.owner()
    workers.all.remove(owner)
    for other in workers.all:
        workers.part(owner, other)
    for other in workers.all:
        other.members.node_ended(owner.node.id)
        workers.seek(other)
    assert workers.owner() is not owner


def test_an_owner_that_leaves_does_not_say_that_it_still_owns_the_slot(workers: Workers) -> None:
    owner, term = workers.owner(), workers.term()
    owner.members.is_leaving = True
    owner.members.learn(Owned(workers.slot, term, ""))
    assert not workers.traffic
    assert workers.term() == term
