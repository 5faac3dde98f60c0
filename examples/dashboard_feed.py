"""Prices that never stop: a random walk of some symbols, thousands of messages a second."""

import asyncio
import random
import time
from collections.abc import Iterable, Sequence

from wshub import Hub

SYMBOLS = tuple(first + second + third for first in "BDGKM" for second in "AEIOU" for third in "LRSX")

TICK = 0.02
"""Seconds between two batches of prices."""

MAX_BATCH = 2_000
"""Prices of one batch. A process that was stopped does not catch up with all the prices of that time."""


class Feed:
    """Sends prices to some rooms while one of them has members.

    Each message is ``[symbol, price, number, time]``. The symbol is an index in ``SYMBOLS``. The prices of a symbol are
    numbered, so that a client can count those that it did not get. The time is ``now()``.

    Args:
        hub: the hub of the rooms. With the policy ``"latest"``, a price replaces one of the same symbol.
        rooms: the names of the rooms.
        rate: prices per second, of all symbols together.
    """

    def __init__(self, hub: Hub, rooms: Sequence[str], rate: int) -> None:
        self.rate = rate
        self._hub = hub
        self._rooms = rooms
        self._prices = [random.uniform(20, 400) for _ in SYMBOLS]
        self._numbers = [0] * len(SYMBOLS)
        self._started = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    def now(self) -> float:
        """Return the milliseconds since the start of the feed."""
        return (time.monotonic() - self._started) * 1000

    def start(self) -> None:
        """Send prices from now on, until the rooms are empty."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._send_while_wanted())

    async def _send_while_wanted(self) -> None:
        before = time.monotonic()
        owed = 0.0
        while rooms := self._hub.rooms.intersection(self._rooms):
            now = time.monotonic()
            owed = min(owed + (now - before) * self.rate, MAX_BATCH)
            before = now
            for _ in range(int(owed)):
                self._send_one(rooms)
            owed %= 1
            await asyncio.sleep(TICK)

    def _send_one(self, rooms: Iterable[str]) -> None:
        symbol = random.randrange(len(SYMBOLS))
        price = self._prices[symbol] = max(self._prices[symbol] * random.gauss(1, 0.0005), 1)
        number = self._numbers[symbol] = self._numbers[symbol] + 1
        message = f"[{symbol},{price:.2f},{number},{self.now():.0f}]"
        for room in rooms:
            self._hub.broadcast(message, room=room, key=SYMBOLS[symbol])
