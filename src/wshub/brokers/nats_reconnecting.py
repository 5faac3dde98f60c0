"""Keeps a connection to one of several NATS servers open."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from wshub.brokers.nats_connection import OPENING_SECONDS, NatsConnection, NatsLogin, is_number
from wshub.brokers.nats_url import NatsServer
from wshub.errors import ConfigurationError

__all__ = ["CLOSED", "KeptConnection"]

logger = logging.getLogger("wshub.broker")

# Seconds up to which the last of many attempts wait.
LONGEST_WAIT = 60.0

# Seconds that a connection must have lasted, so that its end is followed by an attempt at once.
STABLE_SECONDS = 1.0

# The reason for the end of a connection that the node itself has closed for good.
CLOSED = "closed"


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


class KeptConnection:
    """Opens a connection, and another one when it has ended.

    Each server is tried once. Then the next attempts wait for a random time: up to 1, 2, 4 ... 60 seconds, so that many
    nodes do not come back to an engine all together.

    Args:
        login: the servers and the credentials.
        opened: called with each connection that is open.
        lost: called with the reason when the open connection has ended.
        refused: called with what the server has refused.
        failed: called with a ConfigurationError that keeps the first connection from opening. No further attempt is
            made then.
        now: returns the time in seconds, by the clock of ``sweep()``.
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
        self.connection: NatsConnection | None = None
        """The open connection; None if there is none."""
        self.reason = "there is no connection to the engine yet"
        """Why there is no connection."""
        self.opened_count = 0
        """Connections that were opened, ever."""
        self._login = login
        self._pool = ServerPool(login)
        self._opened = opened
        self._lost = lost
        self._refused = refused
        self._failed = failed
        self._now = now
        self._ended = asyncio.Event()
        self._is_outage_logged = False
        # The task waits for the time of the next attempt, or for the opening of a connection.
        self._retry = asyncio.Event()
        self._retry_at = 0.0
        self._opening: asyncio.Timeout | None = None
        self._opening_until = 0.0
        # Connections that have ended, and whose tasks may still run.
        self._old: list[NatsConnection] = []
        # The counts of connections that have ended.
        self._bytes_sent = 0
        self._bytes_received = 0
        self._task = asyncio.get_running_loop().create_task(self._keep_open())

    def replace(self, reason: str) -> None:
        """End the connection, if there is one, and open another one."""
        connection = self.connection
        if connection is not None:
            connection.abort()
            self._connection_lost(connection, reason)

    async def close(self) -> None:
        """End the connection for good, and return when its socket is closed."""
        self._task.cancel()
        await asyncio.wait([self._task])
        for connection in self._old:
            await connection.wait_closed()
        self._old.clear()

    @property
    def bytes_sent(self) -> int:
        """Bytes that have left, on all connections."""
        return self._bytes_sent + (self.connection.bytes_sent if self.connection is not None else 0)

    @property
    def bytes_received(self) -> int:
        """Bytes that have arrived, on all connections."""
        return self._bytes_received + (self.connection.bytes_received if self.connection is not None else 0)

    def sweep(self, now: float) -> None:
        """End an opening that has taken too long, and begin the next attempt when its time has come."""
        if self._opening is not None and now >= self._opening_until:
            opening, self._opening = self._opening, None
            opening.reschedule(asyncio.get_running_loop().time())
        if now >= self._retry_at:
            self._retry.set()

    # The task

    async def _keep_open(self) -> None:
        failures = 0
        try:
            while True:
                if failures >= len(self._pool):
                    self._retry.clear()
                    longest = min(2.0 ** (failures - len(self._pool)), LONGEST_WAIT)
                    self._retry_at = self._now() + random.uniform(0, longest)
                    await self._retry.wait()
                failures = min(failures + 1, len(self._pool) + 10)
                if await self._attempt():
                    began = self._now()
                    await self._ended.wait()
                    if self._now() - began >= STABLE_SECONDS:
                        failures = 0
        except ConfigurationError as error:
            self._failed(error)
        finally:
            # The task is cancelled by close(), or at the end of its loop.
            connection, self.connection = self.connection, None
            if connection is not None:
                connection.abort()
                self._count(connection)
                self._lost(CLOSED)

    async def _attempt(self) -> bool:
        """Open a connection. Return False if that has failed and is to be tried again."""
        connection = NatsConnection(self._connection_lost, self._refused)
        try:
            self._old = [old for old in self._old if not old.is_closed]
            self._old.append(connection)
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

    def _use(self, connection: NatsConnection) -> None:
        self._ended.clear()
        self.connection = connection
        self.opened_count += 1
        if self._is_outage_logged:
            self._is_outage_logged = False
            logger.info("connected to the engine at %s", self._login.address)
        self._opened(connection)

    async def _open(self, connection: NatsConnection) -> None:
        self._opening_until = self._now() + OPENING_SECONDS
        try:
            async with asyncio.timeout(None) as self._opening:
                await connection.open(self._pool.take(), self._login, self._pool.fallback_host)
        except TimeoutError:
            raise TimeoutError(f"no answer within {OPENING_SECONDS:g} s") from None
        finally:
            self._opening = None
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # asyncio.wait_for() of Python 3.11, which nats-py uses, loses a cancellation if what it waits for
                # has just ended, with an answer or with an error.
                connection.abort()
                raise asyncio.CancelledError

    def _connection_lost(self, connection: NatsConnection, reason: str) -> None:
        self.connection = None
        self._count(connection)
        self._note_failure(reason)
        self._ended.set()
        self._lost(reason)

    def _count(self, connection: NatsConnection) -> None:
        self._bytes_sent += connection.bytes_sent
        self._bytes_received += connection.bytes_received
        self._pool.update(connection.other_servers)

    def _note_failure(self, reason: str) -> None:
        self.reason = reason
        if not self._is_outage_logged:
            self._is_outage_logged = True
            logger.warning("no connection to the engine at %s, it is tried again: %s", self._login.address, reason)
