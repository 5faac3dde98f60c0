"""Sends messages to the connections of hubs from other programs: task queues, views of a web framework, cron jobs.

::

    with Publisher("redis://localhost") as publisher:
        publisher.publish("Your report is ready.", user="ann")

The hubs must have the same broker: ``wshub serve main:app --broker redis://localhost``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from wshub.brokers.choosing import broker_from_url
from wshub.brokers.envelope import encode_envelope
from wshub.brokers.interface import ALL_NODES, Broker, NodeInfo, Published, room_channel, user_channel
from wshub.errors import (
    BrokerError,
    BrokerUnavailable,
    BrokerUncertain,
    ConfigurationError,
    InvalidMessageError,
    MisuseError,
)
from wshub.links.link import LinkCounters
from wshub.links.reactors import create_reactor
from wshub.protocol.validation import check_choice, exact_str

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from wshub.links.reactor_api import Reactor

__all__ = ["AsyncPublisher", "Publisher"]

logger = logging.getLogger("wshub.broker")

SWEEP_PERIOD = 1.0
"""Seconds between two sweeps of the broker."""

START_TIMEOUT = 10.0
"""Seconds that the first connection may take."""

POLICIES = ("close", "drop_newest", "drop_oldest", "latest")

Result = TypeVar("Result")


# How many forks lie between this process and the one that has imported the module. Unlike a process id, it is never
# used again in a child of a child.
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class AsyncPublisher:
    """Publishes from an asyncio program. It connects at the first message, or at ``async with``.

    It belongs to one loop at a time. A process that was forked connects anew.

    Args:
        url: of the broker: ``redis://HOST``, or ``workers:DIRECTORY`` for the workers of this machine.
        hub: the name of the hubs.

    Raises:
        ConfigurationError: the URL names no broker.
    """

    def __init__(self, url: str, *, hub: str = "hub") -> None:
        # The URL is checked here rather than at the first message. The repr of the broker hides its password.
        self._shown = repr(_broker_of(url))
        self._url = url
        self._hub = hub
        self._session: _Session | None = None
        # Sessions that close() has begun to end.
        self._ending: set[_Session] = set()
        self._process = _forks
        # The sessions of the parent process. They are kept, so that nothing there is closed.
        self._inherited: list[_Session] = []

    def __repr__(self) -> str:
        return f"<AsyncPublisher to {self._shown}>"

    async def __aenter__(self) -> Self:
        try:
            await self._running().wait_started()
        except BaseException:
            # Without the block, nothing else would close it.
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def publish(
        self,
        message: str | Buffer,
        *,
        room: str | None = None,
        user: str | None = None,
        compress: bool | None = None,
        slow_consumer: str | None = None,
        key: str | None = None,
    ) -> Published:
        """Send a message, and return when the broker has it.

        Args:
            message: a str makes a text message; bytes, or any object with a buffer, make a binary one.
            room: the name of a room; or
            user: the name of a user; without either, all connections get it.
            compress, slow_consumer, key: as in ``Connection.send``.

        Raises:
            BrokerUnavailable: nothing was sent. Try again later.
            BrokerUncertain: the answer was lost, so it may have been sent.
            ConfigurationError: the broker cannot work, such as with a wrong password.
            MisuseError: both a room and a user are given, the user is empty, or an option has another value.
            InvalidMessageError: text with a lone surrogate.
            TypeError: the message, the room or the user is of another type.
        """
        channel, envelope = _addressed(message, room, user, compress, slow_consumer, key)
        session = self._running()
        await session.wait_started()
        return await session.broker.publish(channel, envelope)

    async def close(self) -> None:
        """Leave the broker. The next message connects again.

        Messages that wait for the first connection get ``BrokerUnavailable``.
        """
        self._check_loop()
        session, self._session = self._session, None
        if session is not None:
            self._ending.add(session)
        # A second call waits for the first one.
        for ending in tuple(self._ending):
            await ending.close()
            self._ending.discard(ending)

    def _running(self) -> _Session:
        """Return a session of the running loop that has not failed: a new one if there is none."""
        self._check_loop()
        loop = asyncio.get_running_loop()
        session = self._session
        if session is None or session.has_failed:
            self._session = session = _Session(_broker_of(self._url), self._hub, loop)
        elif session.loop is not loop:
            session.abandon()
            self._session = session = _Session(session.broker, self._hub, loop)
        return session

    def _check_loop(self) -> None:
        """Raise ``MisuseError`` if the publisher is in use on another loop of this process that still runs."""
        if self._process != _forks:
            self._process = _forks
            self._inherited += [*self._ending, *([self._session] if self._session is not None else [])]
            self._session = None
            self._ending.clear()
        session = self._session
        if session is not None and session.loop is not asyncio.get_running_loop() and not session.loop.is_closed():
            raise MisuseError("the publisher is used on another loop: give each loop a publisher of its own")


class _Session:
    """A broker from its start to its end. It starts at once.

    Args:
        broker: that is not started.
        hub: the name of the hubs.
        loop: the running loop.
    """

    def __init__(self, broker: Broker, hub: str, loop: asyncio.AbstractEventLoop) -> None:
        self.broker = broker
        self.loop = loop
        self.events = _Events(loop)
        self._node = NodeInfo.of_this_process(hub, receives=False)
        self._started: asyncio.Future[None] = loop.create_future()
        self._starting = loop.create_task(self._start())
        self._sweeping = loop.create_task(self._sweep())
        self._closing: asyncio.Task[None] | None = None

    @property
    def has_failed(self) -> bool:
        """Whether the broker has not started, and is not going to."""
        return self._started.done() and self._started.exception() is not None

    async def wait_started(self) -> None:
        """Return when the broker has started.

        Raises:
            BrokerUnavailable: it takes too long, it has failed, or ``close()`` was called.
            ConfigurationError: it cannot work.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await asyncio.shield(self._started)
        except TimeoutError:
            raise BrokerUnavailable(f"the broker was not reached within {START_TIMEOUT:.0f} seconds") from None

    async def close(self) -> None:
        """Close the broker. If the call is cancelled, it is closed all the same."""
        if self.loop.is_closed():
            self.abandon()
            await self.broker.close()
            return
        if self._closing is None:
            self._closing = self.loop.create_task(self._close())
        await asyncio.shield(self._closing)

    def abandon(self) -> None:
        """End the connections of a session whose loop was closed without ``close()``. The broker may start again."""
        self.events.reactor.close()

    async def _start(self) -> None:
        try:
            await self.broker.start(self._node, self.events)
        except (BrokerError, ConfigurationError, MisuseError) as error:
            self._fail(error)
        except Exception as error:
            logger.exception("the broker has failed to start")
            self._fail(BrokerUnavailable(f"the broker has failed to start: {error}"))
        except BaseException:
            self._fail(BrokerUnavailable("the publisher was closed before the broker had started"))
            raise
        else:
            if not self._started.done():
                self._started.set_result(None)
            return
        # The next message starts anew, with another session.
        self._closing = self.loop.create_task(self._close())

    def _fail(self, error: Exception) -> None:
        if not self._started.done():
            self._started.set_exception(error)
            # Nobody may be waiting.
            self._started.exception()

    async def _sweep(self) -> None:
        is_logged = False
        while True:
            try:
                self.broker.sweep(self.events.now())
                self.events.reactor.resume_accepting()
            except Exception:
                if not is_logged:
                    is_logged = True
                    logger.exception("the sweep of the broker has failed, and goes on")
            await asyncio.sleep(SWEEP_PERIOD)

    async def _close(self) -> None:
        self._fail(BrokerUnavailable("the publisher was closed before the broker had started"))
        tasks = [self._starting, self._sweeping]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        try:
            await self.broker.close()
        except Exception:
            logger.exception("the broker could not be closed")
        finally:
            self.events.reactor.release()


class Publisher:
    """Publishes from a program without asyncio, such as a task queue. Every method may be called from any thread.

    It connects at the first message, and keeps a thread of its own. A process that was forked connects anew.

    Args:
        url, hub: as for ``AsyncPublisher``.

    Raises:
        ConfigurationError: the URL names no broker.
    """

    def __init__(self, url: str, *, hub: str = "hub") -> None:
        # The URL is checked here rather than at the first message. The repr of the broker hides its password.
        self._shown = repr(_broker_of(url))
        self._url = url
        self._hub = hub
        # One state for each process, by the number of forks that led to it. A child never uses that of its parent:
        # another thread may have held the lock at the moment of the fork. It keeps it, so that nothing there is closed.
        self._processes: dict[int, _ProcessState] = {}

    def __repr__(self) -> str:
        return f"<Publisher to {self._shown}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def publish(
        self,
        message: str | Buffer,
        *,
        room: str | None = None,
        user: str | None = None,
        compress: bool | None = None,
        slow_consumer: str | None = None,
        key: str | None = None,
    ) -> Published:
        """Do what ``AsyncPublisher.publish`` does, and wait for it.

        If another thread calls ``close()`` meanwhile, it raises ``BrokerUnavailable``, or ``BrokerUncertain`` if the
        message may have been sent.
        """
        state = self._state()
        with state.lock:
            if state.thread is None:
                state.thread = _LoopThread(AsyncPublisher(self._url, hub=self._hub))
            thread = state.thread
            # From now on, close() waits for this call.
            thread.begin_call()
        try:
            return thread.run(
                lambda publisher: publisher.publish(
                    message, room=room, user=user, compress=compress, slow_consumer=slow_consumer, key=key
                )
            )
        finally:
            thread.end_call()

    def close(self) -> None:
        """Leave the broker, and end the thread. The next message connects again."""
        state = self._state()
        with state.lock:
            thread, state.thread = state.thread, None
        if thread is not None:
            thread.close()

    def _state(self) -> _ProcessState:
        state = self._processes.get(_forks)
        # setdefault() is atomic: two threads get the same one.
        return state if state is not None else self._processes.setdefault(_forks, _ProcessState())


class _ProcessState:
    """The thread of a ``Publisher`` in one process, and its lock."""

    __slots__ = ("lock", "thread")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: _LoopThread | None = None


class _LoopThread:
    """An event loop in a thread of its own, with a publisher."""

    def __init__(self, publisher: AsyncPublisher) -> None:
        self._publisher = publisher
        # Calls under way. The condition guards the number.
        self._calls = 0
        self._no_calls = threading.Condition()
        self._is_closing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wshub publisher", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._loop.close()
            raise

    def begin_call(self) -> None:
        """Count a call. ``close()`` waits until ``end_call()``."""
        with self._no_calls:
            self._calls += 1

    def end_call(self) -> None:
        """Count a call less."""
        with self._no_calls:
            self._calls -= 1
            self._no_calls.notify_all()

    def run(self, call: Callable[[AsyncPublisher], Coroutine[Any, Any, Result]]) -> Result:
        """Return what a coroutine function returns, which is called with the publisher on the loop.

        Raises:
            BrokerUnavailable: ``close()`` was called before.
            BrokerUncertain: ``close()`` was called, and the call has not ended.
        """
        future = asyncio.run_coroutine_threadsafe(self._call(call), self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise BrokerUncertain("the publisher was closed before the broker had answered") from None
        except BaseException:
            # Such as KeyboardInterrupt. The loop need not go on with it.
            future.cancel()
            raise

    async def _call(self, call: Callable[[AsyncPublisher], Coroutine[Any, Any, Result]]) -> Result:
        if self._is_closing:
            raise BrokerUnavailable("the publisher was closed")
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await call(self._publisher)

    async def _close(self) -> None:
        self._is_closing = True
        try:
            await self._publisher.close()
        finally:
            # The broker has ended what was under way. If it has not, nothing waits for it any longer.
            for task in tuple(self._tasks):
                task.cancel()

    def close(self) -> None:
        """Close the publisher, wait for the calls that are under way, and end the loop and the thread."""
        try:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        finally:
            with self._no_calls:
                self._no_calls.wait_for(lambda: not self._calls)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class _Events:
    """The side of a broker that wants no messages."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reactor: Reactor = create_reactor(loop, LinkCounters(), native=True, clock=time.monotonic)

    def now(self) -> float:
        return time.monotonic()

    def receive(self, envelope: bytes) -> None:
        """Ignore it: a publisher has no connections."""

    def interrupted(self, channels: Collection[str] | None, reason: str) -> None:
        """Ignore it: nothing is received."""

    def restored(self, channels: Collection[str] | None) -> None:
        """Ignore it: nothing is received."""


def _broker_of(url: str) -> Broker:
    broker = broker_from_url(url)
    if broker is None:
        raise ConfigurationError("a publisher needs a broker, such as redis://localhost")
    return broker


def _addressed(
    message: str | Buffer,
    room: str | None,
    user: str | None,
    compress: bool | None,
    slow_consumer: str | None,
    key: str | None,
) -> tuple[str, bytes]:
    """Return the channel and the envelope of a message."""
    if room is not None and user is not None:
        raise MisuseError("give publish() a room or a user, not both")
    kind, name = ("room", room) if room is not None else ("user", user) if user is not None else ("all", "")
    # A str of a subclass, such as StrEnum, may have another __str__.
    name = exact_str(f"the name of a {kind} must be a str", name)
    if kind == "user" and not name:
        raise MisuseError("an empty name is no user")
    if compress is not None and not isinstance(compress, bool):
        raise MisuseError(f"compress must be True, False or None, not {compress!r}")
    if key is not None and not isinstance(key, str):
        raise MisuseError(f"key must be a str or None, not {type(key).__name__}")
    if slow_consumer is not None:
        try:
            slow_consumer = check_choice("slow_consumer", slow_consumer, POLICIES)
        except ConfigurationError as error:
            raise MisuseError(str(error)) from None
    is_binary = not isinstance(message, str)
    try:
        envelope = encode_envelope(
            kind,  # type: ignore[arg-type]
            name,
            str.encode(message) if isinstance(message, str) else bytes(memoryview(message)),
            is_binary=is_binary,
            sent_at=time.time_ns() // 1000,
            compress=compress,
            slow_consumer=slow_consumer,
            key=str.__str__(key) if key is not None else None,
        )
    except UnicodeEncodeError as error:
        raise InvalidMessageError(f"the message cannot be sent: {error}") from None
    if room is not None:
        return room_channel(name), envelope
    return (user_channel(name) if user is not None else ALL_NODES), envelope
