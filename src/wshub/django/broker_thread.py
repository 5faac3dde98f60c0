"""A broker that runs in a thread of its own, so that every event loop of the process can use it."""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
import weakref
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

from wshub.brokers.interface import Broker, BrokerHealth, BrokerStats, NodeInfo
from wshub.errors import BrokerUnavailable, BrokerUncertain
from wshub.publisher.forks import fork_count
from wshub.publisher.loop_thread import LoopThread
from wshub.publisher.session import BrokerSession, SessionEvents

__all__ = ["BrokerThread"]

START_PATIENCE = 5.0
"""Seconds, from the first use on, for which a call waits until the broker has started."""

CLOSE_SECONDS = 10.0
"""Seconds that ``close()`` waits for the thread at most."""

EXIT_SECONDS = 2.0
"""Seconds that the end of the interpreter waits for the goodbye to the broker."""

Result = TypeVar("Result")


class BrokerThread:
    """A broker, and the thread in which it runs from the first call on. A subclass takes what arrives.

    Args:
        new_broker: makes the broker.
        node: this process.
        wanted: the channels of the broker to subscribe to from the beginning.
    """

    def __init__(self, new_broker: Callable[[], Broker], node: NodeInfo, wanted: set[str]) -> None:
        self._new_broker = new_broker
        self._node = node
        self._wanted = wanted
        self._forks = fork_count()
        # Guards the thread, and whether it may be used.
        self._lock = threading.RLock()
        self._thread: LoopThread | None = None
        self._is_closed = False
        self._session: BrokerSession | None = None
        self._patient_until = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the loop of the thread, and return its result on the running loop.

        Raises:
            BrokerUnavailable: it is closed, or is being closed.
            BrokerUncertain: ``close()`` was called meanwhile.
        """
        with self._lock:
            if self._is_closed:
                coroutine.close()
                raise BrokerUnavailable("the channel layer was closed")
            if self._thread is None:
                self._thread = LoopThread("wshub channel layer")
                _living.add(self)
            future = self._thread.submit(coroutine)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise BrokerUncertain("the channel layer was closed before the broker had answered") from None
        finally:
            # An error of this future holds the traceback, and so this frame and the future: only the collector would
            # free them.
            del future

    def end_soon(self) -> LoopThread | None:
        """Leave the broker and end the thread, without waiting for it. In a forked process it does nothing.

        Returns:
            The thread that ends, if there is one.
        """
        if self._forks != fork_count():
            return None
        with self._lock:
            thread, was_closed = self._thread, self._is_closed
            self._is_closed = True
            if thread is not None and not was_closed:
                thread.submit(self._end(thread))
            return thread

    async def close(self) -> None:
        """Leave the broker, and end the thread. Calls that are under way get ``BrokerUncertain``."""
        thread = self.end_soon()
        if thread is not None:
            await asyncio.to_thread(thread.join, CLOSE_SECONDS)

    async def _end(self, thread: LoopThread) -> None:
        own = asyncio.current_task()
        try:
            # Nothing waits for another process any longer.
            callers = [task for task in asyncio.all_tasks() if task is not own]
            session, self._session = self._session, None
            if session is not None:
                await session.close()
            for task in callers:
                task.cancel()
            if callers:
                await asyncio.wait(callers)
        finally:
            # The callbacks of tasks that have just ended run first: callers wait for them.
            thread.loop.call_soon(thread.loop.stop)

    # From here on, everything runs on the loop of the thread.

    async def broker(self) -> Broker:
        """Return the broker once it has started.

        Raises:
            BrokerUnavailable: it has no connection, or ``end_soon()`` was called.
            ConfigurationError: it cannot work.
        """
        session = self.open_session()
        if not session.has_started:
            patience = self._patient_until - session.loop.time()
            if patience <= 0:
                raise BrokerUnavailable(f"the broker has no connection: {session.broker.health().reason}")
            await session.wait_started(patience)
        return session.broker

    def open_session(self) -> BrokerSession:
        """Return the session, which may not have started yet: a new one if there is none, or if the last one failed."""
        session = self._session
        if session is None or session.has_failed:
            if self._is_closed:
                raise BrokerUnavailable("the channel layer was closed")
            loop = asyncio.get_running_loop()
            broker = self._new_broker()
            session = self._session = BrokerSession(broker, self._node, ThreadEvents(loop, self), loop)
            self._patient_until = loop.time() + START_PATIENCE
            for channel in self._wanted:
                broker.subscribe(channel)
        return session

    def start_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine for which nothing waits."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stats(self) -> tuple[BrokerStats, BrokerHealth] | None:
        """Return the counts and the health of the broker; None if it was not needed yet."""
        session = self._session
        return (session.broker.stats(), session.broker.health()) if session is not None else None

    # For a subclass

    def received(self, envelope: bytes) -> None:
        """Take an envelope. Nothing is raised."""

    def interrupted(self, channels: Collection[str] | None) -> None:
        """Note that messages may not arrive."""

    def swept(self, now: float) -> None:
        """Do what is due."""


class ThreadEvents(SessionEvents):
    """Gives a ``BrokerThread`` what its broker tells.

    Args:
        loop: of the broker.
        thread: that is told.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: BrokerThread) -> None:
        super().__init__(loop)
        self._thread = thread

    def receive(self, envelope: bytes) -> None:
        """Give the envelope to the subclass."""
        self._thread.received(envelope)

    def interrupted(self, channels: Collection[str] | None, reason: str) -> None:
        """Tell the subclass."""
        self._thread.interrupted(channels)

    def swept(self, now: float) -> None:
        """Have the subclass do what is due."""
        self._thread.swept(now)


# Those with a thread. The end of the interpreter waits a moment until they have left their brokers.
_living: weakref.WeakSet[BrokerThread] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    threads = [living.end_soon() for living in _living]
    deadline = time.monotonic() + EXIT_SECONDS
    for thread in threads:
        if thread is not None:
            thread.join(max(deadline - time.monotonic(), 0))
