"""Keeps a connection to one of several NATS servers open."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from wshub.brokers.nats_connection import NatsConnection, NatsLogin, is_number
from wshub.brokers.nats_url import NatsServer
from wshub.brokers.reconnecting import CLOSED, OutageLog, ReconnectingConnection
from wshub.errors import ConfigurationError

__all__ = ["CLOSED", "KeptConnection"]


class ServerPool:
    """The servers of an engine: those of the URL, in a random order, and further ones of their cluster."""

    def __init__(self, login: NatsLogin) -> None:
        configured = list(login.address.servers)
        self.fallback_host = next((each.host for each in configured if not is_number(each.host)), configured[0].host)
        """The name for the certificates of servers of which only the numbers are known."""
        random.shuffle(configured)
        self._configured = configured
        self._told: list[NatsServer] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._configured) + len(self._told)

    def take(self) -> NatsServer:
        """Return the next server to try."""
        servers = self._configured + self._told
        server = servers[self._next % len(servers)]
        self._next = (self._next + 1) % len(servers)
        return server

    def update(self, told: list[NatsServer]) -> None:
        """Note the servers that the last connection has learned."""
        self._told = [each for each in told if each not in self._configured]


class KeptConnection(ReconnectingConnection[NatsConnection]):
    """A connection to one of the servers, made again when it has ended. Each server is tried once at once.

    Args:
        login: the servers and the credentials.
        opened, lost, failed, now: as for ``ReconnectingConnection``.
        refused: called with what the server has refused.
    """

    def __init__(
        self,
        login: NatsLogin,
        *,
        opened: Callable[[NatsConnection], None],
        lost: Callable[[str], None],
        refused: Callable[[str], None],
        failed: Callable[[ConfigurationError], None],
        now: Callable[[], float],
    ) -> None:
        self._login = login
        self._pool = ServerPool(login)
        self._refused = refused
        super().__init__(opened=opened, lost=lost, failed=failed, now=now, log=OutageLog(login.address))

    @property
    def _attempts_at_once(self) -> int:
        return len(self._pool)

    def _create(self) -> NatsConnection:
        return NatsConnection(self._connection_lost, self._refused)

    async def _open(self, connection: NatsConnection) -> None:
        self._keep(connection)
        try:
            await connection.open(self._pool.take(), self._login, self._pool.fallback_host)
        finally:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # asyncio.wait_for() of Python 3.11, which nats-py uses, loses a cancellation if what it waits for
                # has just ended, with an answer or with an error.
                connection.abort()
                raise asyncio.CancelledError

    def _count(self, connection: NatsConnection) -> None:
        super()._count(connection)
        self._pool.update(connection.other_servers)
