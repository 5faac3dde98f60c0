"""A hub that publishers send to, and what must be left of a publisher."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from tests.support.serving_hub import connected
from wshub import EventHandler, Hub
from wshub.brokers.workers import WorkersBroker


class Member:
    """A hub with one client, who is a member of ``lobby`` and the user ``ann``."""

    def __init__(self, directory: str) -> None:
        self.hub = Hub(broker=WorkersBroker(directory))
        self.url = f"workers:{directory}"

    async def clients(self) -> AsyncIterator[Any]:
        def opened(connection: Any) -> None:
            connection.user = "ann"
            connection.join("lobby")

        async with self.hub.serve("127.0.0.1", 0, EventHandler(on_open=opened)) as server:
            await self.hub.broker_started()
            async with connected(f"ws://127.0.0.1:{server.port}/") as client:
                await (await client.ping())
                yield client


async def nothing_is_left() -> None:
    """Wait until the task of the test is the only one."""
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)
