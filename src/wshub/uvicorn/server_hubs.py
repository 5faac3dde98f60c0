"""The hubs of a uvicorn server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Container, Iterable, Iterator
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

__all__ = ["Hubs", "hubs_in_use", "hubs_to_join", "primary_hub"]


class Hubs:
    """The hubs of a server: those that have had a connection of it, and those that have joined other nodes before.

    The first ones close when the server shuts down: uvicorn calls ``shutdown()`` of each of its connections once, and
    waits until none is left. This object becomes one of them with the first connection of a hub. The others close when
    the application has ended, which may use them until then.
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

    def add(self, hub: HubLifecycle) -> None:
        """Close the hub at shutdown, or now if that has begun: an application may still accept a request then."""
        self.hubs[hub] = None
        if self._task is None and not self._has_ended:
            self._connections.add(self)
        else:
            closing = asyncio.get_running_loop().create_task(hub.close())
            self._late.add(closing)
            closing.add_done_callback(self._late.discard)

    async def join(self, hubs: Iterable[HubLifecycle]) -> None:
        """Have hubs join other nodes, and close them in ``leave()``. One that cannot join does so at its first use."""
        self._joined.update(dict.fromkeys(hubs))
        await asyncio.gather(*(self._join(hub) for hub in tuple(self._joined)))

    async def _join(self, hub: HubLifecycle) -> None:
        if not await join_nodes(hub):
            del self._joined[hub]

    async def leave(self) -> None:
        """Close the hubs that have joined: the application has ended, or the server has failed to start."""
        self._has_ended = True
        # Several servers of an event loop may have had the same hub join. The last one closes it.
        shared = {hub for other in _hubs_of_servers() for hub in (*other.hubs, *other._joined)}
        try:
            await asyncio.gather(*(close_joined(hub) for hub in self._joined if hub not in shared))
        finally:
            self._guard.cancel()

    def has_joined(self, hub: HubLifecycle) -> bool:
        """Return whether the server has had a hub join."""
        return hub in self._joined

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
        try:
            await asyncio.gather(*(hub.close() for hub in self.hubs))
        finally:
            self._connections.discard(self)
            if not self._joined:
                self._has_ended = True
                self._guard.cancel()

    async def _close_when_cancelled(self) -> None:
        """Close the hubs even if ``shutdown()`` and ``leave()`` are not called.

        After a SystemExit out of a handler, the program only cancels its tasks and waits for them.
        """
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if self._task is None and not self._has_ended:
                await self._close()
            if not self._has_ended:
                await self.leave()


def _hubs_of_servers() -> list[Hubs]:
    """Return those of all servers that have not ended. Other threads may add some meanwhile."""
    found = (_of_servers.get(state) for reference in _of_servers.keyrefs() if (state := reference()) is not None)
    return [hubs for hubs in found if hubs is not None and not hubs._has_ended]


def hubs_in_use() -> set[HubLifecycle]:
    """Return the hubs with a broker that this thread has made and that are in use."""
    return {hub for hub in _made_hubs() if hub.is_in_use}


def hubs_to_join(config: Config, in_use_before: Container[HubLifecycle]) -> list[HubLifecycle]:
    """Return the hubs that are to join other nodes before a server accepts.

    They are the hubs of known routes, and most of those that the thread has made: the unused ones, and those that the
    application has begun to use. If an unused hub has the name and the place of another one, nothing tells which of
    them the application uses. It joins at its first use.

    Args:
        config: of the server, whose application has started.
        in_use_before: the hubs that were in use before that. They belong to the program around the server.
    """
    app, _ = application_of(config)
    routes = [hub for hub in _hubs_of_routes(app) if hub.broker is not None]
    made = _made_hubs()
    servers = _hubs_of_servers()
    shared = [hub for hub in made if any(hubs.has_joined(hub) for hubs in servers)]
    begun = [hub for hub in made if hub.is_in_use and hub not in in_use_before]
    unused = [hub for hub in made if not hub._has_been_used]
    names = Counter(map(_node_of, {*routes, *unused, *(hub for hub in made if hub.is_in_use)}))
    alone = [hub for hub in unused if names[_node_of(hub)] == 1]
    return list(dict.fromkeys((*routes, *shared, *begun, *alone)))


def _made_hubs() -> list[HubLifecycle]:
    return [hub for hub in HUBS_OF_THREAD.hubs if isinstance(hub, HubLifecycle)]


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
