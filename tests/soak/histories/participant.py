"""One of those who come, go and come back in the histories' soak test."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass

from tests.soak.histories.client import Client
from tests.soak.histories.ledger import Ledger, View
from tests.soak.histories.wire import ROOMS

__all__ = ["Participant"]

ROOMS_OF_A_CLIENT = 3
STAY_SECONDS = 15.0
AWAY_SECONDS = 2.0
PUBLISH_SECONDS = 8.0
RETRY_SECONDS = 0.5
OPENING_SECONDS = 10.0
TICK_SECONDS = 0.25

BEGIN_ANEW = 0.1
"""How often a participant that was away begins anew, without positions."""


@dataclass(slots=True)
class Publication:
    """A message that is to be stored."""

    room: int
    data: str


class Participant:
    """A client over all its connections.

    Args:
        number: of the participant, which is its user too.
        port: of the server.
        ledger: of all participants.
        settling: is set when all have to come back and stay.
        seed: of the run.
    """

    def __init__(self, number: int, port: int, ledger: Ledger, settling: asyncio.Event, seed: int) -> None:
        self.number = number
        self.views: dict[int, View] = {}
        self._port = port
        self._ledger = ledger
        self._settling = settling
        self._chance = random.Random(f"{seed} {number}")
        self._sent = 0
        self._publication: Publication | None = None
        self._publishes_at = 0.0

    @property
    def is_settled(self) -> bool:
        """Whether it is a member of all its rooms, and has nothing left to publish."""
        return bool(self.views) and all(view.is_member for view in self.views.values()) and self._publication is None

    async def live(self) -> None:
        """Come, go and come back for ever."""
        await asyncio.sleep(self._chance.uniform(0, 2))
        while True:
            if not self.views or (not self._settling.is_set() and self._chance.random() < BEGIN_ANEW):
                rooms = self._chance.sample(range(ROOMS), ROOMS_OF_A_CLIENT)
                self.views = {room: View(self._ledger, room, f"client {self.number}") for room in rooms}
            client = Client(self._ledger, self.views, f"client {self.number}")
            try:
                await self._connect(client)
                await self._stay(client)
            except OSError:
                self._ledger.counts["connections that failed"] += 1
            finally:
                if client.transport is not None:
                    client.transport.abort()
                for view in self.views.values():
                    view.cut_off()
            away = RETRY_SECONDS if self._settling.is_set() else AWAY_SECONDS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._settling.wait(), self._chance.expovariate(1 / away))
            await asyncio.sleep(self._chance.uniform(0, RETRY_SECONDS))

    async def _connect(self, client: Client) -> None:
        """Connect a client, and have it come back to its rooms."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(OPENING_SECONDS):
            await loop.create_connection(lambda: client, "127.0.0.1", self._port)
            await client.opened
        self._ledger.counts["connections"] += 1
        client.ask("enter", str(self.number))
        for room, view in self.views.items():
            place = () if view.position is None else (view.position[1], view.position[0])
            client.ask("recover", room, *place)

    async def _stay(self, client: Client) -> None:
        """Publish now and then, until the connection ends or the participant goes."""
        loop = asyncio.get_running_loop()
        leaves_at = loop.time() + self._chance.expovariate(1 / STAY_SECONDS)
        self._publish_later()
        while not client.ended.done() and (self._settling.is_set() or loop.time() < leaves_at):
            self._publish(client)
            await asyncio.wait([client.ended], timeout=TICK_SECONDS)

    def _publish_later(self) -> None:
        self._publishes_at = asyncio.get_running_loop().time() + self._chance.expovariate(1 / PUBLISH_SECONDS)

    def _publish(self, client: Client) -> None:
        """Publish what is due, and try again if it was not stored."""
        if self._publication is None:
            if self._settling.is_set() or asyncio.get_running_loop().time() < self._publishes_at:
                return
            room = self._chance.choice(list(self.views))
            self._publication = Publication(room, f"{self.number}.{self._sent}")
            self._sent += 1
        if client.pending:
            return
        if client.stored is not None:
            self._ledger.stored(self._publication.room, client.stored, self._publication.data)
            client.stored = self._publication = None
            self._publish_later()
        elif client.is_member:
            client.publish(self._publication.room, self._publication.data)
