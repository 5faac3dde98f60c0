"""Keeps a connection to a Redis or Valkey engine open."""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from wshub.brokers.reconnecting import OutageLog, ReconnectingConnection
from wshub.brokers.redis_connection import EngineKind, RedisConnection
from wshub.brokers.redis_reader import RedisReader
from wshub.brokers.redis_url import RedisAddress
from wshub.errors import ConfigurationError
from wshub.links.reactor_api import Reactor

__all__ = ["ConnectionTarget", "KeptConnection"]


@dataclass(frozen=True, slots=True)
class ConnectionTarget:
    """An engine, and how connections to it are made."""

    reactor: Reactor
    find: Callable[[], Awaitable[RedisAddress]]
    """Returns the address of the engine, for each connection. It raises what ``RedisConnection.open()`` raises."""
    kind: EngineKind
    ssl: ssl_module.SSLContext | None
    client_name: str
    now: Callable[[], float]
    """Returns the time in seconds, by the clock of ``sweep()``."""
    log: OutageLog
    gives_up: bool = True
    """Whether a ConfigurationError ends the first attempts for good."""


class KeptConnection(ReconnectingConnection[RedisConnection]):
    """A connection to an engine, made again when it has ended.

    Args:
        target: where it leads.
        create_reader: returns the parser of a new connection.
        opened, lost, failed: as for ``ReconnectingConnection``.
    """

    def __init__(
        self,
        target: ConnectionTarget,
        create_reader: Callable[[], RedisReader],
        *,
        opened: Callable[[RedisConnection], None],
        lost: Callable[[str], None],
        failed: Callable[[ConfigurationError], None],
    ) -> None:
        self.address: RedisAddress | None = None
        """Where the last open connection leads, or led."""
        self._target = target
        self._create_reader = create_reader
        self._attempts = 0
        # The counts of connections that have ended.
        self._envelopes_received = 0
        self._envelopes_sent = 0
        self._envelopes_unanswered = 0
        super().__init__(
            opened=opened, lost=lost, failed=failed, now=target.now, log=target.log, gives_up=target.gives_up
        )

    def _create(self) -> RedisConnection:
        return RedisConnection(self._create_reader(), self._connection_lost)

    async def _open(self, connection: RedisConnection) -> None:
        target = self._target
        attempt, self._attempts = self._attempts, self._attempts + 1
        address = await target.find()
        await connection.open(target.reactor, address, target.ssl, target.client_name, attempt, target.kind)
        self.address = address

    # The counts of all connections

    @property
    def envelopes_received(self) -> int:
        """Envelopes that have arrived."""
        current = self.connection.reader.envelopes_received if self.connection is not None else 0
        return self._envelopes_received + current

    @property
    def envelopes_sent(self) -> int:
        """Envelopes that were sent, and whose replies are only counted."""
        current = self.connection.reader.envelopes_sent if self.connection is not None else 0
        return self._envelopes_sent + current

    @property
    def envelopes_unanswered(self) -> int:
        """Envelopes whose connection has ended before the engine answered, out of those."""
        return self._envelopes_unanswered

    def _count(self, connection: RedisConnection) -> None:
        super()._count(connection)
        self._envelopes_received += connection.reader.envelopes_received
        self._envelopes_sent += connection.reader.envelopes_sent
        self._envelopes_unanswered += connection.unanswered_envelopes
