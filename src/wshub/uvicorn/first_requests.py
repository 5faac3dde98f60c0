"""Limits on time and bytes until uvicorn has the first request of a connection. uvicorn itself has no such limits."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.utils import get_remote_addr

from wshub.core.config import HubConfig
from wshub.core.lifecycle import HubLifecycle
from wshub.core.refusals import refuse
from wshub.errors import HandshakeError
from wshub.links.accepting import TransportSetup
from wshub.links.reactor_api import Reactor
from wshub.links.stream_transport import StreamTransport
from wshub.links.tls.contexts import ServerTls
from wshub.protocol.http.request import HEAD_TOO_LARGE
from wshub.serving.first_request import FirstRequest
from wshub.serving.pending import PendingHandshakes

__all__ = ["MAX_FIRST_HEAD", "FirstRequests", "protocol_of"]

logger = logging.getLogger("uvicorn.error")

MAX_FIRST_HEAD = 64 * 1024
"""Maximum size in bytes of the head of a first request, as with uvicorn's h11. A handshake may have less."""

SWEEP_PERIOD = 1.0
"""Seconds between two searches for connections whose time is over."""


class FirstRequests:
    """The connections of a uvicorn server whose first request is not complete, the oldest first.

    A connection is one of them until uvicorn has the head of its first request, or another protocol has the
    connection. A connection whose request takes longer than ``handshake_timeout_ms`` is dropped. A client that sends
    more than ``MAX_FIRST_HEAD`` bytes is refused with 431. If there are more than ``max_pending_handshakes``, the
    oldest is dropped.

    Args:
        create_protocol: makes uvicorn's HTTP protocol for a connection.
        hub: the hub whose settings apply; None means the default settings.
        find_hub: returns the hub that a refusal counts for, if there is one.
    """

    def __init__(
        self,
        create_protocol: Callable[[], Any],
        hub: HubLifecycle | None,
        find_hub: Callable[[], HubLifecycle | None],
    ) -> None:
        config = hub.config if hub is not None else HubConfig()
        self._create_protocol = create_protocol
        self._find_hub = find_hub
        self.timeout = config.handshake_timeout_ms / 1000
        """Seconds that a connection may take until its first request is complete."""
        self._loop = asyncio.get_running_loop()
        self.now = hub.now if hub is not None else self._loop.time
        self._hub = hub
        self._waiting: PendingHandshakes[_FirstRequest] = PendingHandshakes(
            config.max_pending_handshakes, self._note_limit
        )
        self._sweeper: asyncio.TimerHandle | None = None

    def serve(
        self,
        connected: socket.socket,
        *,
        ssl: ServerTls | None = None,
        data: bytes = b"",
        deadline: float | None = None,
    ) -> None:
        """Serve an accepted socket, which this object owns from now on.

        The connection counts as waiting from now on, also during its TLS handshake.

        Args:
            connected: a non-blocking socket.
            ssl: for TLS, the context and its settings.
            data: the bytes of the request that have been read.
            deadline: when the request has to be complete; None means ``handshake_timeout_ms`` from now.
        """
        if deadline is None:
            deadline = self.now() + self.timeout
        try:
            first = _FirstRequest(self._create_protocol(), data, deadline, self._waiting.discard, self._find_hub)
            first.setup = TransportSetup(
                self._loop,
                connected,
                lambda: first,
                ssl=ssl,
                failed=partial(self._waiting.discard, first),
            )
        except Exception:
            connected.close()
            logger.exception("a connection cannot be served")
            return
        self._add(first)

    def serve_link(self, request: FirstRequest, reactor: Reactor, data: bytes) -> None:
        """Serve the TLS connection of a first request on its link, which this object owns from now on.

        If there can be no protocol for it, this raises, and the request keeps its link.

        Args:
            request: has read the bytes.
            reactor: that the link is one of.
            data: the bytes that have been read.
        """
        protocol = self._create_protocol()
        link = request.take()
        if link is None:
            return
        first = _FirstRequest(protocol, b"", request.deadline, self._waiting.discard, self._find_hub)
        transport = StreamTransport(self._loop, reactor, link, first)
        self._add(first)
        transport.start(data)

    def _add(self, first: _FirstRequest) -> None:
        self._waiting.add(first)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_PERIOD, self._sweep)

    def close(self) -> None:
        """End the connections that do not have their transport yet."""
        self._waiting.shut_down()

    def _note_limit(self) -> None:
        if self._hub is not None:
            self._hub._limit_log.reached("max_pending_handshakes")

    def _sweep(self) -> None:
        self._sweeper = None
        try:
            self._waiting.expire(self.now())
        finally:
            # Without waiting connections, no timer is left when the loop ends.
            if self._waiting:
                self._sweeper = self._loop.call_later(SWEEP_PERIOD, self._sweep)


def protocol_of(transport: asyncio.Transport) -> Any:
    """Return the protocol of a transport: uvicorn's own, also while a _FirstRequest stands in front of it."""
    protocol = transport.get_protocol()
    return protocol.protocol if isinstance(protocol, _FirstRequest) else protocol


class _FirstRequest(asyncio.Protocol):
    """Stands in front of a protocol of uvicorn's until that protocol has its first request."""

    __slots__ = ("_discard", "_early", "_find_hub", "_received", "_transport", "deadline", "protocol", "setup")

    def __init__(
        self,
        protocol: Any,
        data: bytes,
        deadline: float,
        discard: Callable[[_FirstRequest], None],
        find_hub: Callable[[], HubLifecycle | None],
    ) -> None:
        self.protocol = protocol
        self.deadline = deadline
        self._early = data
        self._discard = discard
        self._find_hub = find_hub
        self._received = 0
        self._transport: Any = None
        self.setup: TransportSetup | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.setup is not None and self.setup.aborted:
            # uvicorn does not know this connection.
            transport.abort()  # type: ignore[attr-defined]
            return
        self.setup = None
        self._transport = transport
        self.protocol.connection_made(transport)
        chosen = self._transport.get_protocol()
        if chosen is not self:
            # With HTTP/2, uvicorn has chosen a protocol by ALPN. The first request has not arrived all the same.
            self.protocol = chosen
            self._transport.set_protocol(self)
        if self._early:
            self.data_received(self._early)
            self._early = b""

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        self.protocol.data_received(data)
        if self._transport.get_protocol() is not self:
            # uvicorn has handed the connection on.
            self._discard(self)
        elif getattr(self.protocol, "cycle", True) is not None:
            # The protocol has a request. Or its class is not uvicorn's own, and its requests cannot be seen.
            self._discard(self)
            self._transport.set_protocol(self.protocol)
        elif self._received > MAX_FIRST_HEAD and not self._transport.is_closing():
            self._transport.write(refuse(self._find_hub(), HandshakeError(*HEAD_TOO_LARGE), source=self))
            self._transport.close()

    @property
    def peer(self) -> tuple[Any, ...] | None:
        """The peer's address; None for a Unix socket."""
        return get_remote_addr(self._transport)

    def eof_received(self) -> bool | None:
        return self.protocol.eof_received()  # type: ignore[no-any-return]

    def pause_writing(self) -> None:
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self.protocol.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._discard(self)
        if self._transport is not None:
            self.protocol.connection_lost(error)

    def drop(self) -> None:
        """Abort a connection that has sent no request in time, or has not read its refusal."""
        if self._transport is not None:
            self._transport.abort()
        elif self.setup is not None:
            self.setup.abort()

    def expire(self) -> None:
        """Drop the connection, and count it as waiting no longer."""
        self._discard(self)
        self.drop()

    def shut_down(self) -> None:
        """Drop the connection if it has no transport yet; uvicorn ends those that have one."""
        if self.setup is not None:
            self.expire()
