"""Keeps a connection to an engine open: it is made again when it has ended."""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from wshub.errors import ConfigurationError

__all__ = ["CLOSED", "OutageLog", "ReconnectingConnection", "backoff"]

logger = logging.getLogger("wshub.broker")

# Seconds in which a connection must be made, with TLS and the login.
OPENING_SECONDS = 5.0

# Seconds up to which an attempt waits. A node is back in less than five seconds after its engine, however long that was
# away. A thousand nodes make some hundred attempts in a second.
LONGEST_WAIT = 4.0

# Seconds that a connection must have lasted, so that its end is followed by an attempt at once.
STABLE_SECONDS = 1.0

# The reason for the end of a connection that the node itself has closed for good.
CLOSED = "closed"


def backoff(waits: int) -> float:
    """Return a random number of seconds for which an attempt waits: up to 1, then 2, then 4. That keeps nodes apart.

    Args:
        waits: the number of attempts before it that have waited.
    """
    return random.uniform(0, min(2.0**waits, LONGEST_WAIT))


class OutageLog:
    """Logs the beginning and the end of an outage, each once for all connections to an engine.

    Args:
        address: of the engine. ``str()`` leaves the credentials out.
    """

    def __init__(self, address: object) -> None:
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


class EngineConnection(Protocol):
    """A connection that is made once."""

    @property
    def bytes_sent(self) -> int: ...

    @property
    def bytes_received(self) -> int: ...

    @property
    def is_closed(self) -> bool: ...

    def abort(self) -> None: ...

    async def wait_closed(self) -> None: ...


Connection = TypeVar("Connection", bound=EngineConnection)


class ReconnectingConnection(ABC, Generic[Connection]):
    """Opens a connection, and another one when it has ended.

    Some attempts are made at once. The next ones wait for a random time, as ``backoff()`` says. That keeps nodes from
    coming back to an engine all together.

    Args:
        opened: called with each connection that is open.
        lost: called with the reason when the open connection has ended.
        failed: called with a ConfigurationError that keeps the first connection from opening. No further attempt is
            made then.
        now: returns the time in seconds, by the clock of ``sweep()``.
        log: gets outages.
        gives_up: whether a ConfigurationError ends the first attempts for good.
    """

    def __init__(
        self,
        *,
        opened: Callable[[Connection], None],
        lost: Callable[[str], None],
        failed: Callable[[ConfigurationError], None],
        now: Callable[[], float],
        log: OutageLog,
        gives_up: bool = True,
    ) -> None:
        self.connection: Connection | None = None
        """The open connection; None if there is none."""
        self.reason = "there is no connection to the engine yet"
        """Why there is no connection."""
        self.opened_count = 0
        """Connections that were opened, ever."""
        self._opened = opened
        self._lost = lost
        self._failed = failed
        self._now = now
        self._log = log
        self._gives_up = gives_up
        self._ended = asyncio.Event()
        # The task waits for the time of the next attempt, or for the opening of a connection.
        self._retry = asyncio.Event()
        self._retry_at = 0.0
        self._opening: asyncio.Timeout | None = None
        self._opening_until = 0.0
        # Connections that this side has ended, or is opening, and whose sockets may still be open.
        self._old: list[Connection] = []
        # The counts of connections that have ended.
        self._bytes_sent = 0
        self._bytes_received = 0
        self._task = asyncio.get_running_loop().create_task(self._keep_open())

    @property
    def _attempts_at_once(self) -> int:
        """The number of attempts that do not wait."""
        return 1

    @abstractmethod
    def _create(self) -> Connection:
        """Return a connection that is not open. It calls ``_connection_lost`` when it has ended."""

    @abstractmethod
    async def _open(self, connection: Connection) -> None:
        """Open a connection.

        Raises:
            ConfigurationError: it cannot be opened, and will not be later.
            OSError: anything else. The message says what.
        """

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
                waits = failures - self._attempts_at_once
                if waits >= 0:
                    self._retry.clear()
                    self._retry_at = self._now() + backoff(waits)
                    await self._retry.wait()
                failures = min(failures + 1, self._attempts_at_once + 10)
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
                self._abort(connection)
                self._count(connection)
                self._lost(CLOSED)

    async def _attempt(self) -> bool:
        """Open a connection. Return False if that has failed and is to be tried again."""
        connection = self._create()
        try:
            await self._open_in_time(connection)
            self._use(connection)
        except ConfigurationError as error:
            if self._gives_up and not self.opened_count:
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

    def _use(self, connection: Connection) -> None:
        self._ended.clear()
        self.connection = connection
        self.opened_count += 1
        self._log.up(self)
        self._opened(connection)

    async def _open_in_time(self, connection: Connection) -> None:
        self._opening_until = self._now() + OPENING_SECONDS
        try:
            async with asyncio.timeout(None) as self._opening:
                await self._open(connection)
        except TimeoutError:
            raise TimeoutError(f"no answer within {OPENING_SECONDS:g} s") from None
        finally:
            self._opening = None

    def _abort(self, connection: Connection) -> None:
        connection.abort()
        self._keep(connection)

    def _keep(self, connection: Connection) -> None:
        """Have ``close()`` wait until the socket of a connection is closed."""
        self._old = [old for old in self._old if not old.is_closed and old is not connection]
        self._old.append(connection)

    def _connection_lost(self, connection: Connection, reason: str) -> None:
        self.connection = None
        self._count(connection)
        self._note_failure(reason)
        self._ended.set()
        self._lost(reason)

    def _count(self, connection: Connection) -> None:
        """Add the counts of a connection that has ended."""
        self._bytes_sent += connection.bytes_sent
        self._bytes_received += connection.bytes_received

    def _note_failure(self, reason: str) -> None:
        self.reason = reason
        self._log.down(self, reason)
