"""Stored envelopes that arrive before the one that precedes them on their channel."""

from __future__ import annotations

import asyncio
from itertools import permutations

from wshub.brokers.envelope import decode_stored
from wshub.brokers.nats_barriers import Barriers
from wshub.brokers.nats_epochs import Place
from wshub.brokers.nats_order import MAX_HELD, StoredOrder

EPOCH = "abcdefgh"


class Arrivals:
    """An order, and the offsets that it has passed on."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.offsets: list[int] = []
        self.barriers = Barriers(lambda: 0.0)
        self.barriers.connected(self.sent.append)
        self.barriers.heard(self.sent.pop())
        self.order = StoredOrder(self.barriers, self._receive)

    def _receive(self, stored: bytes) -> None:
        head, envelope = decode_stored(stored)
        assert envelope == b"%d" % head.offset
        self.offsets.append(head.offset)

    def take(self, offset: int, previous: int, subject: str = "a", epoch: str = EPOCH) -> None:
        self.order.take(subject, Place(offset, previous, epoch), b"%d" % offset)

    async def pass_barrier(self) -> None:
        """Have all that was sent come back."""
        await asyncio.sleep(0)
        while self.sent:
            self.barriers.heard(self.sent.pop(0))


async def test_whatever_the_order_of_arrival_each_follows_the_one_before() -> None:
    chain = [(3, 0), (4, 3), (9, 4), (12, 9)]
    for arriving in permutations(chain):
        arrivals = Arrivals()
        for offset, previous in arriving:
            arrivals.take(offset, previous)
        assert arrivals.offsets == [3, 4, 9, 12]


async def test_what_is_missing_holds_nothing_back_behind_a_barrier() -> None:
    arrivals = Arrivals()
    arrivals.take(3, 0)
    arrivals.take(9, 7)
    arrivals.take(8, 7)
    assert arrivals.offsets == [3]
    await arrivals.pass_barrier()
    assert arrivals.offsets == [3, 8, 9]
    # The hub ignores one that comes too late.
    arrivals.take(7, 3)
    arrivals.take(10, 9)
    assert arrivals.offsets == [3, 8, 9, 7, 10]


async def test_the_first_of_a_channel_waits_for_one_before_it() -> None:
    arrivals = Arrivals()
    arrivals.take(9, 7)
    arrivals.take(2, 0, "b")
    assert arrivals.offsets == [2]
    await arrivals.pass_barrier()
    assert arrivals.offsets == [2, 9]
    arrivals.take(10, 9)
    assert arrivals.offsets == [2, 9, 10]


async def test_an_epoch_has_an_order_of_its_own() -> None:
    arrivals = Arrivals()
    arrivals.take(9, 0)
    arrivals.take(1, 0, epoch="zzzzzzzz")
    arrivals.take(3, 2, epoch="zzzzzzzz")
    arrivals.take(2, 1, epoch="zzzzzzzz")
    assert arrivals.offsets == [9, 1, 2, 3]


async def test_only_so_many_wait() -> None:
    arrivals = Arrivals()
    arrivals.take(1, 0)
    for offset in range(3, 3 + MAX_HELD):
        arrivals.take(offset, offset - 1)
    assert arrivals.offsets == [1, *range(3, 3 + MAX_HELD)]


async def test_the_end_of_the_connection_forgets_what_waits() -> None:
    arrivals = Arrivals()
    arrivals.take(3, 2)
    arrivals.order.clear()
    await arrivals.pass_barrier()
    assert arrivals.offsets == []
