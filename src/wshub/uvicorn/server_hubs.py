"""The hubs of a uvicorn server."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

from uvicorn.config import Config
from uvicorn.server import ServerState

from wshub.brokers.choosing import NO_BROKER
from wshub.core.binding import bind_for_request
from wshub.core.config import HubConfig
from wshub.core.lifecycle import HubLifecycle
from wshub.hub import Hub
from wshub.uvicorn.native_routes import native_hubs
from wshub.uvicorn.proxies import application_of

__all__ = ["Hubs", "primary_hub"]


class Hubs:
    """The hubs that a server has used. The server closes them when it shuts down.

    uvicorn calls ``shutdown()`` of each of its connections once, and waits until none is left.
    """

    def __init__(self, connections: Any) -> None:
        self._connections: set[Any] = connections
        self.hubs: dict[HubLifecycle, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._late: set[asyncio.Task[None]] = set()
        self._guard = asyncio.get_running_loop().create_task(self._close_when_cancelled())
        self._default: Hub | None = None
        connections.add(self)

    @classmethod
    def of(cls, state: ServerState) -> Hubs:
        """Return the Hubs of a server. Create it if there is none."""
        if state not in _of_servers:
            _of_servers[state] = cls(state.connections)
        return _of_servers[state]

    def add(self, hub: HubLifecycle) -> None:
        """Close the hub at shutdown, or now if that has begun: an application may still accept a request then."""
        self.hubs[hub] = None
        if self._task is not None:
            closing = asyncio.get_running_loop().create_task(hub.close())
            self._late.add(closing)
            closing.add_done_callback(self._late.discard)

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
            self._guard.cancel()

    async def _close_when_cancelled(self) -> None:
        """Close the hubs even if ``shutdown()`` is not called.

        After a SystemExit out of a handler, the program only cancels its tasks and waits for them.
        """
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if self._task is None:
                await self._close()


def primary_hub(config: Config, state: ServerState) -> HubLifecycle | None:
    """Return the hub that a refusal counts for when no application has been called.

    It is the hub of an ``App``, or of the application's first native route, or else the first hub that has had a
    connection of the server. If there is none of these, return None.
    """
    hub = _primary_hubs.get(state)
    if hub is None:
        app, _ = application_of(config)
        of_server = _of_servers.get(state)
        candidates = chain((getattr(app, "ws_hub", None),), native_hubs(app), of_server.hubs if of_server else ())
        hub = next((candidate for candidate in candidates if isinstance(candidate, HubLifecycle)), None)
        if hub is not None:
            _primary_hubs[state] = hub
    return hub


_of_servers: WeakKeyDictionary[ServerState, Hubs] = WeakKeyDictionary()
_primary_hubs: WeakKeyDictionary[ServerState, HubLifecycle] = WeakKeyDictionary()
