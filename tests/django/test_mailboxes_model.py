"""Channels of one process under random use: every message is read once, expires, or waits."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading

import pytest
from channels.exceptions import ChannelFull

from wshub.django import ChannelLayer


@pytest.mark.parametrize("seed", range(2))
def test_no_message_is_lost_or_read_twice(seed: int) -> None:
    """Senders in threads; receivers on three loops, which are cancelled at any moment and share channels."""
    layer = ChannelLayer("none", capacity=5)
    own = [asyncio.run(layer.new_channel()) for _ in range(3)]
    channels = [*own, "jobs", "mails"]
    for channel in channels[:4]:
        asyncio.run(layer.group_add("all", channel))
    got: list[tuple[str, int, int]] = []
    has_ended = threading.Event()

    async def receive(chance: random.Random) -> None:
        while not has_ended.is_set():
            channel = chance.choice(channels)
            task = asyncio.create_task(layer.receive(channel))
            for _ in range(chance.randrange(2)):
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                await asyncio.sleep(0.0005)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                message = await task
                got.append((channel, message["sender"], message["n"]))

    async def receive_on_loop(loop_seed: int) -> None:
        await asyncio.gather(*(receive(random.Random(loop_seed * 100 + index)) for index in range(5)))

    async def send(sender: int) -> None:
        chance = random.Random(1000 + seed * 10 + sender)
        for number in range(400):
            # Otherwise the channels are full before a receiver has begun.
            await asyncio.sleep(0.0002)
            if chance.random() < 0.5:
                await layer.group_send("all", {"sender": sender, "n": number})
            else:
                with contextlib.suppress(ChannelFull):
                    await layer.send(chance.choice(channels), {"sender": sender, "n": number})

    receivers = [threading.Thread(target=lambda n=n: asyncio.run(receive_on_loop(seed * 10 + n))) for n in range(3)]
    senders = [threading.Thread(target=lambda n=n: asyncio.run(send(n))) for n in range(3)]
    for thread in (*receivers, *senders):
        thread.start()
    for thread in senders:
        thread.join(30)
    has_ended.set()
    for thread in receivers:
        thread.join(30)
    stats = layer.stats()
    assert len(set(got)) == len(got)
    assert stats.queued == len(got) + stats.waiting
    assert stats.expired == 0
    assert len(got) > 100
