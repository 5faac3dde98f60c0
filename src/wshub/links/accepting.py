"""Accepts connections on any asyncio loop, and gives each one a transport of the loop's.

The loop's own ``create_server`` reports a connection only once its TLS handshake is done. Here a connection is known
from accept(2) on, so it counts and can be ended while the handshake is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

from wshub.links.shortage import ShortageLog, is_shortage
from wshub.links.tls.contexts import ServerTls

__all__ = ["SocketListener", "TransportSetup"]

logger = logging.getLogger("wshub.server")

ACCEPT_BURST = 64
"""Connections that a listening socket may bring in one iteration of the loop."""

RETRY_DELAY = 1.0
"""Seconds until a listening socket is tried again after a shortage."""

NOT_ACCEPTED = ShortageLog(
    "no more connections can be accepted for now (%s): raise the limit on open files, or lower max_connections"
)
NOT_SET_UP = ShortageLog("no transport can be had for a connection (%s)")


class SocketListener:
    """Accepts the connections of a bound socket. The caller still owns the socket.

    Args:
        loop: any asyncio event loop with ``add_reader``.
        listening: the socket.
        accepted: called with each connected socket, which is non-blocking. The callee owns it.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listening: socket.socket, accepted: Callable[[socket.socket], None]
    ) -> None:
        self._loop = loop
        self._socket = listening
        self._accepted = accepted
        self._retry: asyncio.TimerHandle | None = None

    def start(self, backlog: int) -> None:
        """Listen. Raises ``OSError`` where that cannot be."""
        self._socket.setblocking(False)
        self._socket.listen(backlog)
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more. It is called before the socket is closed."""
        if self._retry is not None:
            self._retry.cancel()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._socket.fileno())

    def _accept(self) -> None:
        for _ in range(ACCEPT_BURST):
            # The callback of one connection may close the listener.
            if self._socket.fileno() < 0:
                return
            try:
                connected, _ = self._socket.accept()
            except BlockingIOError:
                NOT_ACCEPTED.recovered()
                return
            except (ConnectionAbortedError, InterruptedError, PermissionError):
                continue
            except (OSError, MemoryError) as error:
                if isinstance(error, OSError) and error.errno == errno.EPROTO:
                    continue
                # The connections wait in the backlog. To ask again at once would keep the loop busy for nothing.
                self._pause(error)
                return
            connected.setblocking(False)
            self._accepted(connected)

    def _pause(self, error: BaseException) -> None:
        NOT_ACCEPTED.failed(error)
        self._loop.remove_reader(self._socket.fileno())
        self._retry = self._loop.call_later(RETRY_DELAY, self._resume)

    def _resume(self) -> None:
        try:
            self._loop.add_reader(self._socket.fileno(), self._accept)
        except (OSError, MemoryError):
            self._retry = self._loop.call_later(RETRY_DELAY, self._resume)


class TransportSetup:
    """Gives a connected socket its transport, and with it the protocol.

    With TLS nothing is made for the connection before its first byte has come.

    Args:
        loop: the running loop.
        connected: the socket. It is owned by this object from here on.
        create_protocol: returns the protocol.
        ssl: for TLS, the context, and the time that the handshake may take after the first byte.
        failed: called if the protocol will not be connected.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connected: socket.socket,
        create_protocol: Callable[[], Any],
        *,
        ssl: ServerTls | None,
        failed: Callable[[], None],
    ) -> None:
        self.socket = connected
        self._loop = loop
        self._create_protocol = create_protocol
        self._ssl = ssl
        self._failed = failed
        self.aborted = False
        self._task = loop.create_task(self._run())

    def abort(self) -> None:
        """End the connection soon, without its protocol."""
        self.aborted = True
        # A task or transport that waits for the socket reads its end now, and closes it.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    async def _run(self) -> None:
        try:
            if self._ssl is not None and not self.aborted:
                await self._wait_for_first_byte()
            if not self.aborted:
                await connect_accepted_socket(self._loop, self._create_protocol, self.socket, self._ssl)
                NOT_SET_UP.recovered()
                return
        except (OSError, MemoryError) as error:
            if is_shortage(error):
                NOT_SET_UP.failed(error)
            # Any other is the client's: it has gone, or speaks no TLS.
        except Exception:
            logger.exception("a connection cannot be served")
        except BaseException:
            self._give_up()
            raise
        self._give_up()

    async def _wait_for_first_byte(self) -> None:
        descriptor = self.socket.fileno()
        readable = self._loop.create_future()
        self._loop.add_reader(descriptor, _set_done, readable)
        try:
            await readable
        finally:
            self._loop.remove_reader(descriptor)

    def _give_up(self) -> None:
        self.socket.close()
        self._failed()


async def connect_accepted_socket(
    loop: asyncio.AbstractEventLoop,
    create_protocol: Callable[[], Any],
    connected: socket.socket,
    tls: ServerTls | None,
) -> None:
    """Connect a protocol to an accepted, non-blocking socket."""
    if tls is None:
        await loop.connect_accepted_socket(create_protocol, connected)
        return
    timeout = tls.handshake_timeout
    await loop.connect_accepted_socket(
        create_protocol, connected, ssl=tls.context, ssl_handshake_timeout=timeout, ssl_shutdown_timeout=timeout
    )


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
