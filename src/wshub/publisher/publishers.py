"""Publishers: one for programs with asyncio, one for programs without."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from wshub.brokers.choosing import broker_from_url
from wshub.brokers.history_interface import HistoryBroker
from wshub.brokers.idempotency_keys import check_idempotency_key
from wshub.brokers.interface import Broker, BrokerHealth, HistoryConfig, NodeInfo, Published
from wshub.errors import BrokerUnavailable, BrokerUncertain, ConfigurationError, MisuseError
from wshub.protocol.close_code import CloseCode
from wshub.publisher.forks import fork_count
from wshub.publisher.histories import PublisherHistories
from wshub.publisher.loop_thread import LoopThread
from wshub.publisher.messages import disconnect_command, message_to
from wshub.publisher.session import BrokerSession, SessionEvents

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["AsyncPublisher", "Publisher"]

Result = TypeVar("Result")


class AsyncPublisher:
    """Publishes from an asyncio program. It connects at the first message, or at ``async with``.

    It belongs to one loop at a time. A process that was forked connects anew.

    Args:
        url: of the broker: ``redis://HOST``, or ``workers:DIRECTORY`` for the workers of this machine.
        hub: the name of the hubs.
        histories: the HistoryConfig of each room with history, as the hubs have it: by the name of the room, or a
            pattern such as ``chat:*``. Hubs drop a message to such a room that was not stored.

    Raises:
        ConfigurationError: the URL names no broker; or a history has no HistoryConfig.
    """

    def __init__(self, url: str, *, hub: str = "hub", histories: Mapping[str, HistoryConfig] | None = None) -> None:
        # Both are checked here rather than at the first message. The repr of the broker hides its password.
        broker = _broker_of(url)
        self._shown = repr(broker)
        self._histories = PublisherHistories(histories)
        self._url = url
        self._hub = hub
        self._session: BrokerSession | None = None
        # Sessions that close() has begun to end.
        self._ending: set[BrokerSession] = set()
        self._process = fork_count()
        # The sessions of the parent process. They are kept, so that nothing there is closed.
        self._inherited: list[BrokerSession] = []

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
        publisher: str | None = None,
        idempotency_key: str = "",
    ) -> Published:
        """Send a message, and return when the broker has it.

        Args:
            message: a str makes a text message; bytes, or any object with a buffer, make a binary one.
            room: the name of a room; or
            user: the name of a user; without either, all connections get it.
            compress, slow_consumer, key: as in ``Connection.send``.
            publisher: the name of the user who has written it. A room with history keeps it with the message.
            idempotency_key: as in ``Hub.publish``, for a room with history.

        Returns:
            A ``Published``. For a room with history it has the position of the message.

        Raises:
            BrokerUnavailable: nothing was sent. Try again later.
            BrokerUncertain: the answer was lost, so it may have been sent.
            ConfigurationError: the broker cannot work, such as with a wrong password.
            MisuseError: both a room and a user are given, the user is empty, an option has another value, or an
                idempotency key is given without a history.
            InvalidMessageError: text with a lone surrogate, or an idempotency key of more than 512 characters.
            TypeError: the message, the room or the user is of another type.
        """
        check_idempotency_key(idempotency_key)
        channel, envelope = message_to(message, room, user, compress, slow_consumer, key, publisher)
        history = self._histories.find(str.__str__(room)) if room is not None else None
        if history is not None:
            return await self._store(channel, envelope, history, idempotency_key)
        if idempotency_key:
            raise MisuseError(
                "an idempotency key is for a message to a room with history: give the publisher the settings of the "
                "room, histories={room: HistoryConfig()}"
            )
        return await self._send(channel, envelope)

    async def disconnect_user(self, user: str, code: int = CloseCode.POLICY_VIOLATION, reason: str = "") -> Published:
        """Have every hub close the connections of a user, and return when the broker has told them.

        Args:
            user: the name of the user. An empty name is no user.
            code: a close code that an application may send (RFC 6455 section 7.4).
            reason: at most 123 bytes of UTF-8.

        Raises:
            BrokerUnavailable, BrokerUncertain, ConfigurationError: as ``publish``.
            InvalidMessageError: the code or the reason cannot be sent.
            MisuseError: the user is empty.
            TypeError: the user or the reason is no str.
        """
        return await self._send(*disconnect_command(user, code, reason))

    def health(self) -> BrokerHealth:
        """Return how the connection to the broker is. The first call on a loop has it connect.

        Raises:
            MisuseError: the publisher is in use on another loop.
        """
        return self._running().broker.health()

    async def _send(self, channel: str, envelope: bytes) -> Published:
        session = self._running()
        await session.wait_started()
        return await session.broker.publish(channel, envelope)

    async def _store(self, channel: str, envelope: bytes, history: HistoryConfig, idempotency_key: str) -> Published:
        session = self._running()
        await session.wait_started()
        # PublisherHistories has looked at it.
        broker = cast(HistoryBroker, session.broker)
        return await broker.publish_stored(channel, envelope, history, idempotency_key=idempotency_key)

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

    def _running(self) -> BrokerSession:
        """Return a session of the running loop that has not failed: a new one if there is none."""
        self._check_loop()
        loop = asyncio.get_running_loop()
        session = self._session
        if session is None or session.has_failed:
            self._session = session = self._new_session(_broker_of(self._url), loop)
        elif session.loop is not loop:
            session.abandon()
            self._session = session = self._new_session(session.broker, loop)
        return session

    def _new_session(self, broker: Broker, loop: asyncio.AbstractEventLoop) -> BrokerSession:
        node = NodeInfo.of_this_process(self._hub, receives=False)
        return BrokerSession(broker, node, SessionEvents(loop), loop)

    def _check_loop(self) -> None:
        """Raise ``MisuseError`` if the publisher is in use on another loop of this process that still runs."""
        if self._process != fork_count():
            self._process = fork_count()
            self._inherited += [*self._ending, *([self._session] if self._session is not None else [])]
            self._session = None
            self._ending.clear()
        session = self._session
        if session is not None and session.loop is not asyncio.get_running_loop() and not session.loop.is_closed():
            raise MisuseError("the publisher is used on another loop: give each loop a publisher of its own")


class Publisher:
    """Publishes from a program without asyncio, such as a task queue. Every method may be called from any thread.

    It connects at the first message, and keeps a thread of its own. A process that was forked connects anew.

    Args:
        url, hub, histories: as for ``AsyncPublisher``.

    Raises:
        ConfigurationError: as for ``AsyncPublisher``.
    """

    def __init__(self, url: str, *, hub: str = "hub", histories: Mapping[str, HistoryConfig] | None = None) -> None:
        # All is checked here rather than at the first message. It connects to nothing.
        self._shown = AsyncPublisher(url, hub=hub, histories=histories)._shown
        self._new_publisher = partial(AsyncPublisher, url, hub=hub, histories=dict(histories or {}))
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
        publisher: str | None = None,
        idempotency_key: str = "",
    ) -> Published:
        """Do what ``AsyncPublisher.publish`` does, and wait for it.

        If another thread calls ``close()`` meanwhile, it raises ``BrokerUnavailable``, or ``BrokerUncertain`` if the
        message may have been sent.
        """
        return self._run(
            lambda asynchronous: asynchronous.publish(
                message,
                room=room,
                user=user,
                compress=compress,
                slow_consumer=slow_consumer,
                key=key,
                publisher=publisher,
                idempotency_key=idempotency_key,
            )
        )

    def disconnect_user(self, user: str, code: int = CloseCode.POLICY_VIOLATION, reason: str = "") -> Published:
        """Do what ``AsyncPublisher.disconnect_user`` does, and wait for it. It raises as ``publish``."""
        return self._run(lambda publisher: publisher.disconnect_user(user, code, reason))

    def _run(self, call: Callable[[AsyncPublisher], Coroutine[Any, Any, Published]]) -> Published:
        state = self._state()
        with state.lock:
            if state.thread is None:
                state.thread = _PublisherThread(self._new_publisher())
            thread = state.thread
            # From now on, close() waits for this call.
            thread.begin_call()
        try:
            return thread.run(call)
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
        forks = fork_count()
        state = self._processes.get(forks)
        # setdefault() is atomic: two threads get the same one.
        return state if state is not None else self._processes.setdefault(forks, _ProcessState())


class _ProcessState:
    """The thread of a ``Publisher`` in one process, and its lock."""

    __slots__ = ("lock", "thread")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: _PublisherThread | None = None


class _PublisherThread:
    """A publisher on an event loop in a thread of its own."""

    def __init__(self, publisher: AsyncPublisher) -> None:
        self._publisher = publisher
        # Calls under way. The condition guards the number.
        self._calls = 0
        self._no_calls = threading.Condition()
        self._is_closing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = LoopThread("wshub publisher")

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
        future = self._thread.submit(self._call(call))
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise BrokerUncertain("the publisher was closed before the broker had answered") from None
        except BaseException:
            # Such as KeyboardInterrupt. The loop need not go on with it.
            future.cancel()
            raise
        finally:
            # An error of this future holds the traceback, and so this frame and the future: only the collector would
            # free them.
            del future

    async def _call(self, call: Callable[[AsyncPublisher], Coroutine[Any, Any, Result]]) -> Result:
        if self._is_closing:
            raise BrokerUnavailable("the publisher was closed")
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # As in run().
        del task
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
            self._thread.submit(self._close()).result()
        finally:
            with self._no_calls:
                self._no_calls.wait_for(lambda: not self._calls)
            self._thread.stop()


def _broker_of(url: str) -> Broker:
    broker = broker_from_url(url)
    if broker is None:
        raise ConfigurationError("a publisher needs a broker, such as redis://localhost")
    return broker
