"""The life of a hub: it belongs to an event loop, looks at its connections regularly, and closes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import Context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

from wshub.brokers.history_interface import HistoryBroker
from wshub.brokers.interface import Broker, HandoverBroker
from wshub.brokers.presence_interface import PresenceBroker
from wshub.core.brokers_in_use import BROKERS_IN_USE
from wshub.core.cluster import Cluster
from wshub.core.cluster_surveys import Answer
from wshub.core.cluster_types import HasMembers
from wshub.core.config import HubConfig
from wshub.core.handler_checks import check_function
from wshub.core.histories import Histories
from wshub.core.hub_core import HubCore
from wshub.core.hubs_to_join import HUBS_OF_THREAD
from wshub.core.local_history import LocalHistory
from wshub.core.local_presence import LocalPresence
from wshub.core.presences import Presences
from wshub.core.remote_messages import RemoteMessages
from wshub.core.shutdown import Shutdown, WaitingHandlers
from wshub.core.watches import calling_watch
from wshub.errors import BrokerError, ConfigurationError, MisuseError
from wshub.protocol.close_code import CloseCode, encode_close_payload
from wshub.protocol.http.request import RequestHead
from wshub.protocol.validation import check_str

if TYPE_CHECKING:
    from wshub.links.reactor_api import Reactor

__all__ = ["HandshakeWait", "HubLifecycle", "HubServer", "UpgradeHook"]

UpgradeHook: TypeAlias = Callable[[RequestHead], Awaitable[Mapping[str, Any] | None] | Mapping[str, Any] | None]

logger = logging.getLogger("wshub.server")

ALONE = "0" * 16
"""The id of the only node, where there is no broker."""

JOIN_SECONDS = 2.0
"""Seconds that a server waits until its hub has joined other nodes. uvicorn gives a new worker five to start."""

WATCH_PERIOD = 1.0
"""Seconds between two calls of each watcher."""


class HubServer(Protocol):
    """A server that ends with its hub."""

    def on_hub_sweep(self) -> None:
        """End the handshakes whose time is over. The hub calls it several times within its shortest timeout."""

    def on_hub_end(self) -> None:
        """Stop listening and refuse the handshakes that wait: the hub's last connections end now."""

    def on_hub_closed(self) -> None:
        """End: the hub has closed."""


class HandshakeWait(Protocol):
    """A handshake that waits for what ``on_upgrade`` decides."""

    @property
    def deadline(self) -> float:
        """When its time is over, by the hub's clock."""

    def expire(self) -> None:
        """End the wait since its time is over."""

    def shut_down(self) -> None:
        """End the wait since the hub has closed."""


class HubLifecycle(HubCore):
    """A hub that lives in an event loop. See :class:`wshub.Hub`.

    Methods that the reference does not list are for wshub's own packages.
    """

    on_upgrade: UpgradeHook | None
    broker: Broker | None
    """The broker that joins the hub to those of other processes; None if the hub is alone."""

    name: str
    """The name of the hub: a broker joins hubs of the same name."""

    _cluster: Cluster | None
    # The rooms whose messages are kept; None if the hub is not in use, or no settings ask for it.
    _histories: Histories | None
    # The rooms whose members are known on all nodes; None likewise.
    _presences: Presences | None
    # The functions with which the application answers surveys, by topic.
    _survey_answers: dict[str, Answer]
    # Closes the broker, after a close() that was cancelled.
    _leaving: asyncio.Task[None] | None
    wants_address: bool
    """Whether each request needs a client address: for ``on_upgrade``, or for a limit of each address."""
    servers: set[HubServer]
    """The servers that have been entered and have not ended."""

    waits: set[HandshakeWait]
    """The waits for what ``on_upgrade`` decides that no server ends by itself."""

    # Whether the hub has belonged to an event loop.
    _has_been_used: bool
    _sweeper: asyncio.TimerHandle | None
    _closing: asyncio.Task[None] | None
    _exiting: asyncio.Task[None] | None
    # They are called about once a second, from watched_at on.
    _watchers: list[Callable[[], None]]
    _watched_at: float

    waiting_handlers: WaitingHandlers
    """The handlers that wait for the hub, or a server of it, to close."""

    def __init__(
        self,
        config: HubConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_upgrade: UpgradeHook | None = None,
        broker: Broker | None = None,
        broker_place: str | None = None,
        name: str = "hub",
    ) -> None:
        if on_upgrade is not None:
            check_function("on_upgrade", on_upgrade, ("request",))
        if broker is not None and (isinstance(broker, type) or not isinstance(broker, Broker)):
            raise MisuseError(f"a broker has the methods of wshub.brokers.interface.Broker: {broker!r} has not")
        self.broker = broker
        self._broker_place = broker_place
        self._leaving = None
        self._survey_answers = {}
        self._watchers = []
        self._watched_at = 0.0
        self.name = check_str("name", name)
        self.on_upgrade = on_upgrade
        # Most hubs have no use for the address, which costs time and memory for each connection.
        self.wants_address = on_upgrade is not None or self._admission.needs_address
        self._has_been_used = False
        if broker is not None:
            HUBS_OF_THREAD.hubs.add(self)
        self._begin_anew()

    def __repr__(self) -> str:
        if not self.is_in_use:
            return f"<{type(self).__qualname__} {self.name!r} not in use>"
        state = "closing" if self.is_closing else "in use"
        counts = f"{self.connection_count} connections, {len(self.rooms)} rooms"
        return f"<{type(self).__qualname__} {self.name!r} {state}, {counts}>"

    async def __aenter__(self) -> Self:
        try:
            await self.join_nodes()
        except asyncio.CancelledError:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def bind(self) -> Reactor:
        """Take the running loop for the hub's, begin to sweep there, and return the hub's reactor."""
        reactor = super().bind()
        if self._sweeper is None and self._closing is None:
            if self.broker is not None:
                BROKERS_IN_USE.take(self, self.broker, self.name, self._broker_place)
                self._start_cluster(self.broker, reactor)
            if self._keeps_histories:
                self._start_histories()
            if self._keeps_presences:
                self._start_presences()
            self._has_been_used = True
            self._start_sweeping()
            logger.info("the hub %r has started", self.name, extra={"event": "started", "hub": self.name})
        return reactor

    async def join_nodes(self) -> None:
        """Bind the hub. Its broker starts, and joins it to other nodes.

        If the nodes of the broker hand over to each other, it returns when the others can hand over to this one, or
        after two seconds. Any other broker starts while the hub is used already. Raises as ``bind``.
        """
        self.bind()
        cluster, broker = self._cluster, self.broker
        if cluster is None or not isinstance(broker, HandoverBroker):
            return
        # A broker that cannot work has been logged.
        with suppress(TimeoutError, BrokerError, ConfigurationError):
            async with asyncio.timeout(JOIN_SECONDS):
                await cluster.wait_started()
                if self._presences is not None:
                    # With the first beat, the node takes part in presence.
                    await self._presences.begin()
                await broker.joined()

    def _start_cluster(self, broker: Broker, reactor: Reactor) -> None:
        self._cluster = Cluster(self, broker, self.name, reactor, self._survey_answers)
        self._join_cluster(self._cluster)
        leaving, self._leaving = self._leaving, None
        of_this_loop = leaving is not None and leaving.get_loop() is asyncio.get_running_loop()
        self._cluster.start(leaving if of_this_loop else None)

    def _start_histories(self) -> None:
        """Keep the messages of the rooms whose settings say so: at the broker, or in memory without one."""
        cluster, broker = self._cluster, self._history_broker()
        if cluster is not None and broker is not None:
            self._histories = cluster.histories = Histories(self, cluster, broker)
        else:
            messages = RemoteMessages(self, secrets.randbits(64), None)
            self._histories = Histories(self, messages, LocalHistory(self, messages.receive))
        self._keep_histories(self._histories)

    def _start_presences(self) -> None:
        """Know who is in the rooms whose settings say so: at the broker, or in memory without one."""
        cluster, broker = self._cluster, self._presence_broker()
        if cluster is not None and broker is not None:
            self._presences = Presences(self, cluster.info.id, broker)
        else:
            self._presences = Presences(self, ALONE, LocalPresence(ALONE, self.now))
        self._keep_presences(self._presences)

    def _history_broker(self) -> HistoryBroker | None:
        """Return the broker, which keeps messages; None without one. Raises ``ConfigurationError`` if it keeps none."""
        if self.broker is None or isinstance(self.broker, HistoryBroker):
            return self.broker
        raise ConfigurationError(f"rooms with history need a broker that keeps messages, not {self.broker!r}")

    def _presence_broker(self) -> PresenceBroker | None:
        """Return the broker, which knows members; None without one. Raises ``ConfigurationError`` if it does not."""
        if self.broker is None or isinstance(self.broker, PresenceBroker):
            return self.broker
        raise ConfigurationError(f"rooms with presence need a broker that knows who is there, not {self.broker!r}")

    def _subscribe_for(self, room: HasMembers) -> None:
        """Have messages of a room arrive for as long as it has members."""
        if self._cluster is not None:
            self._cluster.members_changed(room)

    def _bind_to_send(self) -> bool:
        if self.broker is None and not self._keeps_histories:
            return False
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            # Another thread, or no asyncio at all: there is no loop to send from.
            return False
        self.bind()
        return True

    def _begin_anew(self) -> None:
        super()._begin_anew()
        self._cluster = None
        self._histories = None
        self._presences = None
        self._watches = None
        self._sweeper = None
        self._closing = None
        self._exiting = None
        self.waiting_handlers = WaitingHandlers()
        self._kept_reactors: set[Reactor] = set()
        self.servers = set()
        self.waits = set()

    @property
    def is_closing(self) -> bool:
        """Whether the hub closes at present."""
        return self._closing is not None and not self._closing.done()

    @property
    def is_exiting(self) -> bool:
        """Whether the hub closes because a handler has raised SystemExit or KeyboardInterrupt."""
        return self._exiting is not None

    def _start_sweeping(self) -> None:
        """Sweep from now on, often enough to keep the shortest timeout to a tenth."""
        config = self.config
        timeouts = (
            config.ping_interval_ms,
            config.pong_timeout_ms,
            config.close_timeout_ms,
            config.handshake_timeout_ms,
            config.send_timeout_ms,
            config.idle_timeout_ms,
            config.max_lifetime_ms,
        )
        shortest = min(timeout for timeout in timeouts if timeout)
        period = min(max(shortest / 10_000, 0.01), config.rates.sweep_period)
        loop = asyncio.get_running_loop()

        def sweep() -> None:
            self._sweeper = loop.call_later(period, sweep)
            self._sweep()
            self._admission.sweep()
            for server in tuple(self.servers):
                server.on_hub_sweep()
            now = self.now()
            for wait in tuple(self.waits):
                if wait.deadline <= now:
                    wait.expire()
            if self._cluster is not None:
                self._cluster.sweep(now)
            if self._histories is not None:
                self._histories.sweep(now)
            if self._presences is not None:
                self._presences.sweep(now)
            if self._watchers and now >= self._watched_at:
                self._watched_at = now + WATCH_PERIOD
                self._call_watchers()

        self._sweeper = loop.call_later(period, sweep)

    async def close(self, code: int = CloseCode.GOING_AWAY, reason: str = "") -> None:
        """Close every connection, and return when all are gone and their handlers have ended.

        Everything queued is sent first. Connections that are still there after ``close_timeout_ms`` are aborted. Then
        handlers, ``on_close`` included, have ``close_timeout_ms`` to end before they are cancelled. So it returns at
        the latest ``shutdown_spread_ms`` and four times ``close_timeout_ms`` after the call. With a broker, it may be
        twice ``close_timeout_ms`` later.

        Every server of the hub ends with it: requests get 503 meanwhile, at the end it listens no more,
        and ``Server.serve_forever`` and ``Server.wait_closed`` return. Enter a new server to serve again.

        A handler may call it, itself or in a task that it has started. The handlers of its connection are not waited
        for then. The function of a watch may call it itself. It is not waited for either. A second call waits for the
        same end. Cancelling a call ends the waiting, and not the closing. The next use of the hub begins anew.
        """
        payload = encode_close_payload(code, reason)
        if not self.is_in_use:
            return
        if self._closing is None:
            self.bind()
            self._closing = asyncio.get_running_loop().create_task(self._close(payload))
        if (watch := calling_watch.get()) is not None:
            watch.hub_close_called(self)
        with self.waiting_handlers.joined_by(self._handled_connection):
            await asyncio.shield(self._closing)

    async def _close(self, payload: bytes) -> None:
        timeout = self.config.close_timeout_ms / 1000
        began, connections = self.now(), self.connection_count
        try:
            await Shutdown(self, self.waiting_handlers).run(payload)
            if self._histories is not None:
                self._histories.close()
            if self._presences is not None:
                await self._presences.close(timeout)
            if self._watches is not None:
                await self._watches.close(timeout)
            if self._cluster is not None:
                await self._cluster.close(timeout)
        except asyncio.CancelledError:
            if self._cluster is not None:
                # The program does not wait for the close. The broker ends all the same, before it may start again.
                self._leaving = asyncio.get_running_loop().create_task(self._cluster.close(timeout))
            raise
        finally:
            if self._sweeper is not None:
                self._sweeper.cancel()
            if self.is_in_use:
                for server in self.servers:
                    server.on_hub_end()
                for wait in tuple(self.waits):
                    wait.shut_down()
            self._end()
            self._release_reactors()
            if self._exiting is None:
                self._end_servers()
            fields = {
                "event": "closed",
                "hub": self.name,
                "connections": connections,
                "duration_ms": round((self.now() - began) * 1000, 3),
            }
            logger.info(
                "the hub %(hub)r has closed: it had %(connections)d connections and took %(duration_ms)d ms",
                fields,
                extra=fields,
            )
            self._call_watchers()

    def _watch(self, watcher: Callable[[], None]) -> None:
        """Call a function about once a second while the hub is in use, and when it has closed."""
        self._watchers.append(watcher)

    def _call_watchers(self) -> None:
        for watcher in self._watchers:
            try:
                watcher()
            except Exception:
                logger.exception("the counts of the hub could not be reported")

    def _end_servers(self) -> None:
        servers, self.servers = self.servers, set()
        for server in servers:
            server.on_hub_closed()

    def _keep_reactor(self, reactor: Reactor) -> None:
        """Keep a reactor open until the hub has closed: the hub is about to get a connection on one of its links."""
        if self.is_in_use and reactor is not self.bind() and reactor not in self._kept_reactors:
            reactor.retain()
            self._kept_reactors.add(reactor)

    def _release_reactors(self) -> None:
        reactors, self._kept_reactors = self._kept_reactors, set()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # The loop has ended before the hub, and runs nothing any more.
            return
        for reactor in reactors:
            # The loop makes the call: release() may call handlers, and only the loop calls them.
            loop.call_soon(reactor.release)

    def hurry_closing(self) -> None:
        """Shorten the closing that is under way: abort what is left of the connections, cancel the handlers."""
        Shutdown(self, self.waiting_handlers).hurry()

    def close_and_raise(self, error: BaseException) -> None:
        """Close, and then let the loop raise the SystemExit or KeyboardInterrupt that a handler has raised.

        Only the first one is raised, so that nothing interrupts the program while it ends.
        """
        if self._exiting is not None:
            return

        def raise_it(closing: asyncio.Task[None]) -> None:
            # Not earlier: the program must not be past its wait for a server when the exit is raised.
            self._end_servers()
            raise error

        # In a context of its own: this is no call of the handler's, whose on_close is waited for.
        self._exiting = Context().run(asyncio.get_running_loop().create_task, self.close())
        self._exiting.add_done_callback(raise_it)
