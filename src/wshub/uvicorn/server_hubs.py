"""The hubs of a uvicorn server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

from uvicorn.config import Config
from uvicorn.server import ServerState

from wshub.asgi.lifespan import close_joined, join_nodes
from wshub.brokers.choosing import NO_BROKER
from wshub.core.binding import bind_for_request
from wshub.core.config import HubConfig
from wshub.core.hubs_to_join import HUBS_OF_THREAD
from wshub.core.lifecycle import HubLifecycle
from wshub.hub import Hub
from wshub.uvicorn.native_routes import native_hubs
from wshub.uvicorn.proxies import application_of

__all__ = ["Hubs", "hubs_to_join", "primary_hub"]


class Hubs:
    """The hubs of a server: those that it has used, and those that have joined other nodes before it accepted.

    The server closes them when it shuts down. uvicorn calls ``shutdown()`` of each of its connections once, and waits
    until none is left. So this object becomes one of them once a hub has a connection, or the server ends.
    """

    def __init__(self, connections: Any) -> None:
        self._connections: set[Any] = connections
        self.hubs: dict[HubLifecycle, None] = {}
        self._joined: dict[HubLifecycle, None] = {}
        self._has_ended = False
        self._task: asyncio.Task[None] | None = None
        self._late: set[asyncio.Task[None]] = set()
        self._guard = asyncio.get_running_loop().create_task(self._close_when_cancelled())
        self._default: Hub | None = None

    @classmethod
    def of(cls, state: ServerState) -> Hubs:
        """Return the Hubs of a server. Create them if there are none."""
        if state not in _of_servers:
            _of_servers[state] = cls(state.connections)
        return _of_servers[state]

    @staticmethod
    def existing(state: ServerState) -> Hubs | None:
        """Return the Hubs of a server, if there are any."""
        return _of_servers.get(state)

    def count_as_connection(self) -> None:
        """Become one of uvicorn's connections: at the end, uvicorn waits until the hubs have closed."""
        if not self._has_ended:
            self._connections.add(self)

    async def join(self, hubs: Iterable[HubLifecycle]) -> None:
        """Have hubs join other nodes, and close them at shutdown. One that cannot join does so at its first use."""
        self._joined.update(dict.fromkeys(hubs))
        await asyncio.gather(*(self._join(hub) for hub in tuple(self._joined)))

    async def _join(self, hub: HubLifecycle) -> None:
        if not await join_nodes(hub):
            del self._joined[hub]

    async def leave(self) -> None:
        """Close the hubs, since the server has failed to start."""
        if self._task is None:
            await self._close()

    def add(self, hub: HubLifecycle) -> None:
        """Close the hub at shutdown, or now if that has begun: an application may still accept a request then."""
        self.hubs[hub] = None
        self.count_as_connection()
        if self._task is not None:
            closing = asyncio.get_running_loop().create_task(hub.close())
            self._late.add(closing)
            closing.add_done_callback(self._late.discard)

    def all_hubs(self) -> Iterator[HubLifecycle]:
        """Yield the hubs that have had a connection of the server or have joined other nodes."""
        yield from self.hubs
        yield from self._joined

    def default(self, config: Config) -> Hub:
        """Return the hub for applications that do not use a hub, with the settings that uvicorn was given.

        Raises ``HandshakeError`` (503) if there are no descriptors or no memory for it.
        """
        if self._default is None:
            hub = Hub(
                HubConfig(
                    max_connections=2**31,
                    max_message_size=config.ws_max_size,
                    # Practically unlimited: the ASGI application's send() waits instead of a full queue.
                    max_send_buffer=2**40,
                    send_timeout_ms=0,
                    ping_interval_ms=int((config.ws_ping_interval or 1_000_000) * 1000),
                    pong_timeout_ms=int((config.ws_ping_timeout or 1_000_000) * 1000),
                    enable_compression=config.ws_per_message_deflate,
                ),
                # It has no rooms: its connections are the application's own.
                broker=NO_BROKER,
            )
            # Bind the hub first: if that fails, the hub must not be kept.
            bind_for_request(hub)
            self.add(hub)
            self._default = hub
        return self._default

    def shutdown(self) -> None:
        """Close all hubs, then leave the connections of the server."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        self._has_ended = True
        # Several servers of an event loop may have had the same hub join. The last one closes it.
        shared = {hub for other in _hubs_of_servers() for hub in other.all_hubs()}
        joined = (hub for hub in self._joined if hub not in shared)
        try:
            await asyncio.gather(*(close_joined(hub) for hub in dict.fromkeys((*self.hubs, *joined))))
        finally:
            self._connections.discard(self)
            self._guard.cancel()

    async def _close_when_cancelled(self) -> None:
        """Close the hubs even if ``shutdown()`` is not called.

        After a SystemExit out of a handler, the program only cancels its tasks and waits for them.
        """
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if self._task is None and not self._has_ended:
                await self._close()


def _hubs_of_servers() -> list[Hubs]:
    """Return those of all servers that have not ended. Other threads may add some meanwhile."""
    found = (_of_servers.get(state) for reference in _of_servers.keyrefs() if (state := reference()) is not None)
    return [hubs for hubs in found if hubs is not None and not hubs._has_ended]


def hubs_to_join(config: Config) -> list[HubLifecycle]:
    """Return the hubs that are to join other nodes before a server accepts, once its application has started.

    They are those of the routes that are known, those that other servers of the thread have had join, and the unused
    ones that the thread has made. If an unused hub has the name and the place of another one, nothing tells which of
    them the application uses: it joins at its first use.
    """
    app, _ = application_of(config)
    routes = [hub for hub in _hubs_of_routes(app) if hub.broker is not None]
    made = [hub for hub in HUBS_OF_THREAD.hubs if isinstance(hub, HubLifecycle)]
    joined = [hub for hub in made if any(hub in hubs._joined for hubs in _hubs_of_servers())]
    unused = [hub for hub in made if not hub._has_been_used]
    names = Counter(map(_node_of, {*routes, *unused, *(hub for hub in made if hub.is_in_use)}))
    return [*dict.fromkeys((*routes, *joined, *(hub for hub in unused if names[_node_of(hub)] == 1)))]


def _hubs_of_routes(app: Any) -> Iterator[HubLifecycle]:
    """Yield the hub of an ``App``, and those of the native routes of an application."""
    hub = getattr(app, "ws_hub", None)
    if isinstance(hub, HubLifecycle):
        yield hub
    yield from native_hubs(app)


def _node_of(hub: HubLifecycle) -> tuple[str, Any]:
    """Return what two hubs of a process must not have in common."""
    return hub.name, getattr(hub.broker, "place", None) or hub._broker_place or hub


def primary_hub(config: Config, state: ServerState) -> HubLifecycle | None:
    """Return the hub that a refusal counts for when no application has been called.

    It is the hub of an ``App``, or of the application's first native route, or else the first hub that has had a
    connection of the server. If there is none of these, return None.
    """
    hub = _primary_hubs.get(state)
    if hub is None:
        app, _ = application_of(config)
        of_server = _of_servers.get(state)
        hub = next(chain(_hubs_of_routes(app), of_server.hubs if of_server else ()), None)
        if hub is not None:
            _primary_hubs[state] = hub
    return hub


_of_servers: WeakKeyDictionary[ServerState, Hubs] = WeakKeyDictionary()
_primary_hubs: WeakKeyDictionary[ServerState, HubLifecycle] = WeakKeyDictionary()
