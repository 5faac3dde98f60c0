"""Keeps a connection to an engine open."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl as ssl_module
from collections.abc import Callable
from dataclasses import dataclass

from wshub.brokers.redis_connection import RedisConnection
from wshub.brokers.redis_reader import RedisReader
from wshub.brokers.redis_url import RedisAddress
from wshub.errors import ConfigurationError
from wshub.links.reactor_api import Reactor

__all__ = ["CLOSED", "ConnectionTarget", "KeptConnection", "OutageLog"]

logger = logging.getLogger("wshub.broker")

# Seconds in which a connection must be made, with TLS and the login.
OPENING_SECONDS = 5.0

# Seconds up to which the last of many attempts wait.
LONGEST_WAIT = 60.0

# Seconds that a connection must have lasted, so that its end is followed by an attempt at once.
STABLE_SECONDS = 1.0

# The reason for the end of a connection that the node itself has closed for good.
CLOSED = "closed"


class OutageLog:
    """Logs the beginning and the end of an outage, each once for all connections to an engine."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._down: set[object] = set()

    def down(self, connection: object, reason: str) -> None:
        """Note that a connection is not open."""
        if not self._down:
            logger.warning("no connection to the engine at %s, it is tried again: %s", self._address, reason)
        self._down.add(connection)

    def up(self, connection: object) -> None:
        """Note that a connection is open."""
        if connection in self._down:
            self._down.discard(connection)
            if not self._down:
                logger.info("connected to the engine at %s", self._address)


@dataclass(frozen=True, slots=True)
class ConnectionTarget:
    """An engine, and how connections to it are made."""

    reactor: Reactor
    address: RedisAddress
    ssl: ssl_module.SSLContext | None
    client_name: str
    now: Callable[[], float]
    """Returns the time in seconds, by the clock of ``sweep()``."""
    log: OutageLog


class KeptConnection:
    """Opens a connection, and another one when it has ended.

    The first attempt is made at once. The next ones wait for a random time: up to 1, 2, 4 ... 60 seconds, so that many
    nodes do not come back to an engine all together.

    Args:
        target: what it leads to.
        create_reader: returns the parser of a new connection.
        opened: called with each connection that is open.
        lost: called with the reason when the open connection has ended.
        failed: called with a ConfigurationError that keeps the first connection from opening. No further attempt is
            made then.
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
        self.connection: RedisConnection | None = None
        """The open connection; None if there is none."""
        self.reason = "there is no connection to the engine yet"
        """Why there is no connection."""
        self.opened_count = 0
        """Connections that were opened, ever."""
        self._target = target
        self._create_reader = create_reader
        self._opened = opened
        self._lost = lost
        self._failed = failed
        self._ended = asyncio.Event()
        # The task waits for the time of the next attempt, or for the opening of a connection.
        self._attempts = 0
        self._retry = asyncio.Event()
        self._retry_at = 0.0
        self._opening: asyncio.Timeout | None = None
        self._opening_until = 0.0
        # Connections that this side has ended, and whose sockets may still be open.
        self._aborted: list[RedisConnection] = []
        # The counts of connections that have ended.
        self._bytes_sent = 0
        self._bytes_received = 0
        self._envelopes_received = 0
        self._envelopes_sent = 0
        self._envelopes_unanswered = 0
        self._task = asyncio.get_running_loop().create_task(self._keep_open())

    def replace(self, reason: str) -> None:
        """End the connection, if there is one, and open another one."""
        connection = self.connection
        if connection is not None:
            self._abort(connection)
            self._connection_lost(connection, reason)

    async def close(self) -> None:
        """End the connection for good, and return when its socket is closed."""
        self._task.cancel()
        await asyncio.wait([self._task])
        for connection in self._aborted:
            await connection.wait_closed()
        self._aborted.clear()

    # The counts of all connections

    @property
    def bytes_sent(self) -> int:
        return self._bytes_sent + (self.connection.bytes_sent if self.connection is not None else 0)

    @property
    def bytes_received(self) -> int:
        return self._bytes_received + (self.connection.bytes_received if self.connection is not None else 0)

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

    # Time

    def sweep(self, now: float) -> None:
        """End an opening that has taken too long, and begin the next attempt when its time has come."""
        if self._opening is not None and now >= self._opening_until:
            opening, self._opening = self._opening, None
            opening.reschedule(asyncio.get_running_loop().time())
        if now >= self._retry_at:
            self._retry.set()

    # The task

    async def _keep_open(self) -> None:
        now = self._target.now
        failures = 0
        try:
            while True:
                if failures:
                    self._retry.clear()
                    self._retry_at = now() + random.uniform(0, min(2.0 ** (failures - 1), LONGEST_WAIT))
                    await self._retry.wait()
                failures = min(failures + 1, 10)
                if await self._attempt():
                    began = now()
                    await self._ended.wait()
                    if now() - began >= STABLE_SECONDS:
                        failures = 0
        except ConfigurationError as error:
            self._failed(error)
        finally:
            # The task is cancelled by close(), or at the end of its loop.
            connection, self.connection = self.connection, None
            if connection is not None:
                self._abort(connection)
                self._count(connection)
                self._lost(CLOSED)

    async def _attempt(self) -> bool:
        """Open a connection. Return False if that has failed and is to be tried again."""
        connection = RedisConnection(self._create_reader(), self._connection_lost)
        try:
            await self._open(connection)
            self._use(connection)
        except ConfigurationError as error:
            if not self.opened_count:
                raise
            self._note_failure(str(error))
            return False
        except OSError as error:
            self._note_failure(str(error) or type(error).__name__)
            return False
        except Exception as error:
            # There may be no memory. The node must not stay alone for that.
            logger.exception("a connection to the engine could not be made")
            self._note_failure(repr(error))
            self.replace(self.reason)
            return False
        return True

    def _use(self, connection: RedisConnection) -> None:
        self._ended.clear()
        self.connection = connection
        self.opened_count += 1
        self._target.log.up(self)
        self._opened(connection)

    async def _open(self, connection: RedisConnection) -> None:
        target = self._target
        attempt, self._attempts = self._attempts, self._attempts + 1
        self._opening_until = target.now() + OPENING_SECONDS
        try:
            async with asyncio.timeout(None) as self._opening:
                await connection.open(target.reactor, target.address, target.ssl, target.client_name, attempt)
        except TimeoutError:
            raise TimeoutError(f"no answer within {OPENING_SECONDS:g} s") from None
        finally:
            self._opening = None

    def _abort(self, connection: RedisConnection) -> None:
        connection.abort()
        self._aborted = [old for old in self._aborted if not old.is_closed]
        self._aborted.append(connection)

    def _connection_lost(self, connection: RedisConnection, reason: str) -> None:
        self.connection = None
        self._count(connection)
        self._note_failure(reason)
        self._ended.set()
        self._lost(reason)

    def _count(self, connection: RedisConnection) -> None:
        self._bytes_sent += connection.bytes_sent
        self._bytes_received += connection.bytes_received
        self._envelopes_received += connection.reader.envelopes_received
        self._envelopes_sent += connection.reader.envelopes_sent
        self._envelopes_unanswered += connection.unanswered_envelopes

    def _note_failure(self, reason: str) -> None:
        self.reason = reason
        self._target.log.down(self, reason)
