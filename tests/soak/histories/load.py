"""The clients of the histories' soak test: ``python -m tests.soak.histories.load PORT URL CLIENTS SEED``.

Each is a member of some rooms, publishes now and then, is cut off, stays away, comes back with its positions, and at
last begins anew. A publisher without a hub sends too, to the broker of the URL. After SIGUSR1 every client comes back
to stay. It must get the last message of each of its rooms. After SIGTERM the program ends.

It prints each failure as a line of JSON, then who is there, and at the end what was counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
from typing import Any

import uvloop

from tests.soak.histories.client import Client
from tests.soak.histories.ledger import Ledger, Place, View
from tests.soak.histories.wire import HISTORIES, ROOMS, here_of, room_name
from wshub import BrokerError
from wshub.publisher import AsyncPublisher

ROOMS_OF_A_CLIENT = 3
STAY_SECONDS = 15.0
AWAY_SECONDS = 2.0
PUBLISH_SECONDS = 8.0
PUBLISHER_SECONDS = 0.1
RETRY_SECONDS = 0.5
BEGIN_ANEW = 0.1
"""How often a client that was away begins anew, without positions."""

LAST_SECONDS = 60
"""Seconds in which each client must come back and get the last messages."""


class Load:
    """All clients of a run."""

    def __init__(self, port: int, publisher: AsyncPublisher, clients: int, seed: int) -> None:
        self.port = port
        self.publisher = publisher
        self.clients = clients
        self.seed = seed
        self.ledger = Ledger()
        self.settling = asyncio.Event()
        self.stopping = asyncio.Event()
        self.views: list[dict[int, View]] = [{} for _ in range(clients)]
        self.has_published = [False] * clients
        self._printed = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self.settling.set)
        loop.add_signal_handler(signal.SIGTERM, self.stopping.set)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.live(number)) for number in range(self.clients)]
            tasks.append(group.create_task(self.print_failures()))
            await self.publish_without_a_hub()
            await self.settle()
            here = {}
            for number in range(self.clients):
                here.setdefault(here_of(str(number)), []).append(str(number))
            self.ledger.check_orders()
            print_line(here=here)
            await self.stopping.wait()
            for task in tasks:
                task.cancel()
        self.print_new_failures()
        epochs = {room_name(room): len(self.ledger.epochs(room)) for room in range(ROOMS)}
        print_line(counts=self.ledger.counts, epochs=epochs)

    # Publishing without a hub

    async def publish_without_a_hub(self) -> None:
        """Publish until the run settles."""
        chance = random.Random(f"{self.seed} publisher")
        number = 0
        while not self.settling.is_set():
            await self.publish_at_last(chance.randrange(ROOMS), f"publisher.{number}")
            number += 1
            await asyncio.sleep(PUBLISHER_SECONDS)

    async def publish_at_last(self, room: int, data: str) -> Place:
        """Publish a message once, and try again until it is stored."""
        while True:
            try:
                published = await self.publisher.publish(data, room=room_name(room), idempotency_key=data)
            except BrokerError:
                self.ledger.counts["publications that were tried again"] += 1
                await asyncio.sleep(RETRY_SECONDS)
            else:
                assert published.position is not None
                place = published.position.epoch, published.position.offset
                self.note_stored(room, place, data)
                return place

    def note_stored(self, room: int, place: Place, data: str) -> None:
        self.ledger.counts["stored"] += 1
        self.ledger.note(room, place, data, "its publisher")

    # Clients

    async def live(self, number: int) -> None:
        chance = random.Random(f"{self.seed} {number}")
        sent = 0
        publication: tuple[int, str] | None = None
        await asyncio.sleep(chance.uniform(0, 2))
        while True:
            if not self.views[number] or (not self.settling.is_set() and chance.random() < BEGIN_ANEW):
                rooms = chance.sample(range(ROOMS), ROOMS_OF_A_CLIENT)
                self.views[number] = {room: View(self.ledger, room, f"client {number}") for room in rooms}
            client = Client(self.ledger, self.views[number], f"client {number}")
            try:
                await self.connect(client, number)
                sent, publication = await self.stay(client, number, sent, publication, chance)
            except OSError:
                self.ledger.counts["connections that failed"] += 1
            finally:
                if client.transport is not None:
                    client.transport.abort()
                for view in self.views[number].values():
                    view.cut_off()
            away = RETRY_SECONDS if self.settling.is_set() else AWAY_SECONDS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.settling.wait(), chance.expovariate(1 / away))
            await asyncio.sleep(chance.uniform(0, RETRY_SECONDS))

    async def connect(self, client: Client, number: int) -> None:
        """Connect a client, and have it come back to its rooms."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            await loop.create_connection(lambda: client, "127.0.0.1", self.port)
            await client.opened
        self.ledger.counts["connections"] += 1
        client.ask("enter", str(number))
        for room, view in self.views[number].items():
            place = () if view.position is None else (view.position[1], view.position[0])
            client.ask("recover", room, *place)

    async def stay(
        self, client: Client, number: int, sent: int, publication: tuple[int, str] | None, chance: random.Random
    ) -> tuple[int, tuple[int, str] | None]:
        """Publish now and then, until the connection ends or the client goes.

        Returns:
            How many messages the client has published, and the one that is still to be stored.
        """
        loop = asyncio.get_running_loop()
        leaves_at = loop.time() + chance.expovariate(1 / STAY_SECONDS)
        publishes_at = loop.time() + chance.expovariate(1 / PUBLISH_SECONDS)
        while not client.ended.done():
            now = loop.time()
            if not self.settling.is_set() and now >= leaves_at:
                break
            if publication is None and now >= publishes_at and not self.settling.is_set():
                publication = chance.choice(list(self.views[number])), f"{number}.{sent}"
                sent += 1
            if publication is not None and not client.pending:
                room, data = publication
                if client.stored is not None:
                    self.note_stored(room, client.stored, data)
                    client.stored, publication = None, None
                    publishes_at = now + chance.expovariate(1 / PUBLISH_SECONDS)
                elif client.is_member:
                    client.publish(room, data)
            self.has_published[number] = publication is None
            await asyncio.wait([client.ended], timeout=0.25)
        return sent, publication

    # The end

    async def settle(self) -> None:
        """Wait until all clients have come back and have got the last message of each room."""
        await self.until("all clients are back", lambda: all(self.has_published) and all(map(all_back, self.views)))
        ends = {room: await self.publish_at_last(room, f"end.{room}") for room in range(ROOMS)}
        await self.until(
            "all clients have the last messages",
            lambda: all(view.position == ends[room] for views in self.views for room, view in views.items()),
        )
        self.ledger.check_ends(ends)

    async def until(self, what: str, is_there: Any) -> None:
        try:
            async with asyncio.timeout(LAST_SECONDS):
                while not is_there():
                    await asyncio.sleep(0.1)
        except TimeoutError:
            late = [
                f"client {number} in {room_name(room)} at {view.position}, member: {view.is_member}"
                for number, views in enumerate(self.views)
                for room, view in views.items()
                if not view.is_member
            ]
            self.ledger.fail(f"not within {LAST_SECONDS} s: {what}; {len(late)} are away: {late[:10]}")

    # Lines

    async def print_failures(self) -> None:
        while True:
            self.print_new_failures()
            await asyncio.sleep(0.5)

    def print_new_failures(self) -> None:
        for failure in self.ledger.failures[self._printed :]:
            print_line(failure=failure)
        self._printed = len(self.ledger.failures)


def all_back(views: dict[int, View]) -> bool:
    """Whether a client is a member of all its rooms."""
    return bool(views) and all(view.is_member for view in views.values())


def print_line(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


async def main(port: int, url: str, clients: int, seed: int) -> None:
    async with AsyncPublisher(url, histories=HISTORIES) as publisher:
        await Load(port, publisher, clients, seed).run()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
