"""A program that publishes numbered messages to a room with history, whatever becomes of the engine meanwhile.

``python -m tests.support.numbered_messages URL ROOM COUNT SECONDS``: the seconds lie between two messages.
"""

from __future__ import annotations

import asyncio
import json
import sys

from wshub import BrokerError, HistoryConfig, Hub


async def publish_numbers(url: str, room: str, count: int, seconds: float) -> None:
    """Publish 1, 2, 3, ... Each message is tried until it was stored."""
    async with Hub(broker=url) as hub:
        hub.configure_room(room, history=HistoryConfig(size=1_000))
        for number in range(1, count + 1):
            message = json.dumps({"key": f"number {number}", "text": str(number)})
            while True:
                try:
                    await hub.publish(message, room=room, idempotency_key=f"number {number}")
                except BrokerError:
                    await asyncio.sleep(0.02)
                else:
                    break
            await asyncio.sleep(seconds)


if __name__ == "__main__":
    asyncio.run(publish_numbers(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
