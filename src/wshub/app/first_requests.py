"""Bounds on what uvicorn reads of a connection before its first request: uvicorn itself has none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from wshub.errors import HandshakeError
from wshub.hub.pending import PendingHandshakes
from wshub.protocol.handshake import Handshake

__all__ = ["MAX_FIRST_HEAD", "FirstRequests"]

MAX_FIRST_HEAD = 64 * 1024
"""Octets that the head of a first request may have, as in uvicorn's h11: more than a handshake may."""

SWEEP_PERIOD = 1.0
"""Seconds between two looks at whose time is over."""


class FirstRequests:
    """The connections of a uvicorn server whose first request has not come, in the order in which they came.

    A connection is one of them until uvicorn has the head of its first request, or another protocol has the
    connection. Whoever takes longer than ``timeout`` is ended, whoever sends more than ``MAX_FIRST_HEAD`` octets is
    refused with 431, and where there are more than ``at_most``, the oldest is ended.

    Args:
        create_protocol: makes uvicorn's HTTP protocol for a connection.
        at_most: how many there may be.
        timeout: seconds from the connection to the end of the request's head.
    """

    def __init__(self, create_protocol: Callable[[], Any], at_most: int, timeout: float) -> None:
        self._create_protocol = create_protocol
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._waiting: PendingHandshakes[_FirstRequest] = PendingHandshakes(at_most)
        self._sweeper: asyncio.TimerHandle | None = None

    def create_protocol(self) -> asyncio.Protocol:
        """uvicorn's protocol for a connection that has just been accepted."""
        return self.create_protocol_with(b"", time.monotonic() + self._timeout)

    def create_protocol_with(self, data: bytes, deadline: float) -> asyncio.Protocol:
        """uvicorn's protocol for a connection of which ``data`` has been read already.

        The protocol receives that as soon as it has its transport, and is to have its first request by ``deadline``.
        """
        first = _FirstRequest(self._create_protocol(), data, deadline, self._waiting.discard)
        self._waiting.add(first)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_PERIOD, self._sweep)
        return first.protocol  # type: ignore[no-any-return]

    def _sweep(self) -> None:
        self._waiting.expire(time.monotonic())
        # None is left waiting for the loop's end when there is nothing to look at.
        self._sweeper = self._loop.call_later(SWEEP_PERIOD, self._sweep) if self._waiting else None


class _FirstRequest:
    """Stands before a protocol of uvicorn's until it has its first request."""

    def __init__(self, protocol: Any, data: bytes, deadline: float, discard: Callable[[_FirstRequest], None]) -> None:
        self.protocol = protocol
        self.deadline = deadline
        self._early = data
        self._discard = discard
        self._received = 0
        self._transport: Any = None
        self._connection_made = protocol.connection_made
        self._data_received = protocol.data_received
        self._connection_lost = protocol.connection_lost
        protocol.connection_made = self.connection_made
        protocol.data_received = self.data_received
        protocol.connection_lost = self.connection_lost

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._connection_made(transport)
        if self._early:
            self.data_received(self._early)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        self._data_received(data)
        # A protocol that is not uvicorn's own does not tell of its requests.
        asked = getattr(self.protocol, "cycle", True) is not None
        if asked or self._transport.get_protocol() is not self.protocol:
            self._step_aside()
        elif self._received > MAX_FIRST_HEAD and not self._transport.is_closing():
            too_large = HandshakeError(431, "The request head is too large.")
            self._transport.write(Handshake.create_error_response(too_large))
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._discard(self)
        self._connection_lost(error)

    def drop(self) -> None:
        """End the connection, which has not asked for anything in time, or has not read why it is refused."""
        if self._transport is not None:
            self._transport.abort()

    def expire(self) -> None:
        """What ``drop`` does, of one that is still waited for."""
        self._discard(self)
        self.drop()

    def _step_aside(self) -> None:
        self._discard(self)
        del self.protocol.connection_made, self.protocol.data_received, self.protocol.connection_lost
        if self._transport.get_protocol() is self.protocol:
            # Transports may remember the methods of their protocol.
            self._transport.set_protocol(self.protocol)
