"""Questions to an engine or a Sentinel, over a connection that ends with the answers."""

from __future__ import annotations

import asyncio
import ssl as ssl_module
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from wshub.brokers.redis_connection import EngineKind, RedisConnection
from wshub.brokers.redis_reader import RedisReader
from wshub.brokers.redis_url import RedisAddress
from wshub.errors import BrokerUncertain
from wshub.links.reactor_api import Reactor

__all__ = ["Asking", "send_questions"]


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are asked."""

    reactor: Reactor
    ssl: ssl_module.SSLContext | None
    client_name: str

    async def ask(self, address: RedisAddress, kind: EngineKind, questions: Sequence[bytes]) -> list[Any]:
        """Return the answers to some commands; an error is a BrokerError. The caller bounds the time.

        Raises:
            ConfigurationError: as ``RedisConnection.open()`` does.
            OSError: there is no answer.
        """
        reader = RedisReader(None, b"", lambda items: None, lambda: None, lambda error: None)
        connection = RedisConnection(reader, lambda connection, reason: None)
        await connection.open(self.reactor, address, self.ssl, self.client_name, kind=kind)
        try:
            return await send_questions(connection, questions)
        finally:
            connection.abort()
            await connection.wait_closed()


async def send_questions(connection: RedisConnection, questions: Sequence[bytes]) -> list[Any]:
    """Return the answers to some commands over an open connection. An error is a BrokerError.

    Raises:
        OSError: the connection has ended.
    """
    answers: list[asyncio.Future[Any]] = []
    for question in questions:
        answer = asyncio.get_running_loop().create_future()
        connection.request(question, partial(take_answer, answer))
        answers.append(answer)
    found = [await answer for answer in answers]
    for reply in found:
        if isinstance(reply, BrokerUncertain):
            raise ConnectionError(str(reply))
    return found


def take_answer(answer: asyncio.Future[Any], reply: Any) -> None:
    """Give a reply to what waits for it."""
    if not answer.done():
        answer.set_result(reply)
