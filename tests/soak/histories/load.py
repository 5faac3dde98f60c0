"""The clients of the histories' soak test: ``python -m tests.soak.histories.load PORT URL CLIENTS SEED LOSSES``.

Each is a member of some rooms, publishes now and then, is cut off, stays away, comes back with its positions, and at
last begins anew. A publisher without a hub sends too, to the broker of the URL. After SIGUSR1 every client comes back
to stay. It must get the last message of each of its rooms. After SIGTERM the program ends.

It prints lines of JSON: one once it takes signals, one for each failure, one each minute with the counts, and one with
the users who are there. The last one has the counts of the whole run.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

import uvloop

from tests.soak.histories.ledger import Ledger, Place
from tests.soak.histories.participant import Participant
from tests.soak.histories.wire import HISTORIES, ROOMS, here_of, room_name
from wshub import BrokerError
from wshub.publisher import AsyncPublisher

PUBLISHER_SECONDS = 0.1
RETRY_SECONDS = 0.5

LAST_SECONDS = 60
"""Seconds in which each client must come back, and as many in which it must get the last messages."""


class Load:
    """All clients of a run."""

    def __init__(
        self, port: int, publisher: AsyncPublisher, clients: int, seed: int, *, engine_loses: bool = False
    ) -> None:
        self.ledger = Ledger(may_lose=engine_loses)
        self.settling = asyncio.Event()
        self.stopping = asyncio.Event()
        self.participants = [Participant(number, port, self.ledger, self.settling, seed) for number in range(clients)]
        self._publisher = publisher
        self._chance = random.Random(f"{seed} publisher")
        self._printed = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self.settling.set)
        loop.add_signal_handler(signal.SIGTERM, self.stopping.set)
        print_line(ready=True)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(participant.live()) for participant in self.participants]
            tasks += [group.create_task(self.print_failures()), group.create_task(self.print_minutes())]
            await self.publish_without_a_hub()
            await self.settle()
            self.ledger.check_orders()
            here: dict[str, list[str]] = {}
            for participant in self.participants:
                user = str(participant.number)
                here.setdefault(here_of(user), []).append(user)
            print_line(here=here)
            await self.stopping.wait()
            for task in tasks:
                task.cancel()
        self.print_new_failures()
        epochs = {room_name(room): len(self.ledger.epochs(room)) for room in range(ROOMS)}
        print_line(counts=self.counts, epochs=epochs)

    @property
    def counts(self) -> dict[str, int]:
        replaced = {"epochs with replaced messages": self.ledger.replaced} if self.ledger.replaced else {}
        return {**self.ledger.counts, **replaced}

    # Publishing without a hub

    async def publish_without_a_hub(self) -> None:
        """Publish until the run settles."""
        number = 0
        while not self.settling.is_set():
            await self.publish_at_last(self._chance.randrange(ROOMS), f"publisher.{number}")
            number += 1
            await asyncio.sleep(PUBLISHER_SECONDS)

    async def publish_at_last(self, room: int, data: str) -> Place:
        """Publish a message once, and try again until it is stored."""
        while True:
            try:
                published = await self._publisher.publish(data, room=room_name(room), idempotency_key=data)
            except BrokerError:
                self.ledger.counts["publications that were tried again"] += 1
                await asyncio.sleep(RETRY_SECONDS)
            else:
                assert published.position is not None
                place = published.position.epoch, published.position.offset
                self.ledger.stored(room, place, data)
                return place

    # The end

    async def settle(self) -> None:
        """Wait until all clients have come back and have got the last message of each room."""
        await self.until("all clients are back", lambda: all(each.is_settled for each in self.participants))
        ends = {room: await self.publish_at_last(room, f"end.{room}") for room in range(ROOMS)}
        views = [(room, view) for each in self.participants for room, view in each.views.items()]
        await self.until(
            "all clients have the last messages", lambda: all(view.position == ends[room] for room, view in views)
        )
        self.ledger.check_ends(ends)
        self.ledger.counts["rooms complete at the end"] = sum(view.position == ends[room] for room, view in views)
        self.ledger.counts["rooms of all clients"] = len(views)

    async def until(self, what: str, is_there: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(LAST_SECONDS):
                while not is_there():
                    await asyncio.sleep(0.1)
        except TimeoutError:
            places = [
                f"client {each.number} in {room_name(room)} at {view.position}, member: {view.is_member}"
                for each in self.participants
                for room, view in each.views.items()
            ]
            self.ledger.fail(f"not within {LAST_SECONDS} s: {what}; they are: {'; '.join(places[:100])}")

    # Lines

    async def print_failures(self) -> None:
        while True:
            self.print_new_failures()
            await asyncio.sleep(0.5)

    async def print_minutes(self) -> None:
        for minute in itertools.count(1):
            await asyncio.sleep(60)
            members = sum(view.is_member for each in self.participants for view in each.views.values())
            print_line(minute=minute, members=members, counts=self.counts)

    def print_new_failures(self) -> None:
        for failure in self.ledger.failures[self._printed :]:
            print_line(failure=failure)
        self._printed = len(self.ledger.failures)


def print_line(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


async def main(port: int, url: str, clients: int, seed: int, losses: int) -> None:
    async with AsyncPublisher(url, histories=HISTORIES) as publisher:
        await Load(port, publisher, clients, seed, engine_loses=bool(losses)).run()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])))
