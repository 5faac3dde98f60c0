"""The search of a node for entries in JetStream whose life has no message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any, cast

from tests.brokers.mesh import until
from wshub.brokers.nats_epochs import ChannelEpochs
from wshub.brokers.nats_presence import NatsPresences
from wshub.brokers.nats_presence_stream import Record, ReplacedError
from wshub.brokers.nats_reading import StoredMessage
from wshub.brokers.nats_subjects import SubjectNames
from wshub.brokers.presence_interface import DEAD_SECONDS


class Memory:
    """A stream of presences in memory, which may hold back the answers about entries."""

    def __init__(self) -> None:
        self.messages: dict[str, Record] = {}
        self.searches = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self._numbers = count(1)

    async def read(self, subject: str) -> Record:
        return self.messages.get(subject, Record(0, b""))

    async def replace(self, subject: str, data: bytes, sequence: int) -> int:
        if (await self.read(subject)).sequence != sequence:
            raise ReplacedError
        self.messages[subject] = Record(next(self._numbers), data)
        return self.messages[subject].sequence

    def forget_deletions(self) -> None:
        """Nothing is deleted."""

    async def list_all(self, subject: str) -> AsyncIterator[StoredMessage]:
        beginning = subject.rstrip("*>")
        if beginning == "user.":
            self.searches += 1
            await self.may_answer.wait()
        for name, record in tuple(self.messages.items()):
            if name.startswith(beginning):
                yield StoredMessage(record.sequence, name, record.data, 0.0)


async def test_a_loss_during_a_search_has_another_one_follow() -> None:
    stream, seconds = Memory(), [0.0]
    epochs = ChannelEpochs(SubjectNames("wshub", "main"))
    node = NatsPresences(cast(Any, stream), epochs, "node", lambda: seconds[0])
    # The stream is new, so this node searches at its third beat.
    for _ in range(2):
        await node.beat(is_leaving=False)
    assert stream.searches == 0
    stream.may_answer.clear()
    searching = asyncio.create_task(node.beat(is_leaving=False))
    await until(lambda: stream.searches == 1)
    # All is lost, and a member that comes finds that out.
    stream.messages.clear()
    seconds[0] += DEAD_SECONDS
    await node.enter("room:a", [])
    stream.may_answer.set()
    await searching
    for _ in range(3):
        await node.beat(is_leaving=False)
    assert stream.searches == 2
