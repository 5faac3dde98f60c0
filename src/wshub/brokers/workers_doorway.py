"""How a worker listens for others, and how sockets become links."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial

from wshub.brokers.workers_directory import SocketDirectory, enlarge_send_buffer, is_same_user
from wshub.brokers.workers_peer import Peer
from wshub.errors import ConfigurationError
from wshub.links.accepting import SocketListener
from wshub.links.connecting import connect_link
from wshub.links.link import LinkCounters
from wshub.links.reactor_api import Reactor

__all__ = ["Doorway"]

logger = logging.getLogger("wshub.broker")

BACKLOG = 1024


class Doorway:
    """Listens in the directory, and gives peers their links.

    The sockets are accepted here and not by the reactor, since only a socket can be asked for the user at its other
    end.

    Args:
        loop: the running loop.
        reactor: that is to have the links.
        directory: where workers find one another.
        counters: where bytes and envelopes are counted.
        accepted: called with a socket that another worker of the same user has connected.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reactor: Reactor,
        directory: SocketDirectory,
        counters: LinkCounters,
        accepted: Callable[[socket.socket], None],
    ) -> None:
        self._loop = loop
        self._reactor = reactor
        self._directory = directory
        self._counters = counters
        self._accepted = accepted
        self._socket: socket.socket | None = None
        self._listener: SocketListener | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self) -> Exception | None:
        """Listen, unless it does already. Return why it cannot; a later call tries again."""
        if self._socket is not None and self._directory.has_own_socket():
            return None
        self.close()
        try:
            self._socket = self._directory.bind()
            listener = SocketListener(self._loop, self._socket, self._check)
            listener.start(BACKLOG)
            self._listener = listener
            self._directory.publish()
        except (OSError, ConfigurationError) as error:
            self.close()
            return error
        return None

    def close(self) -> None:
        """Accept no more, and remove the socket from the directory."""
        self._directory.remove()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _check(self, connected: socket.socket) -> None:
        if not is_same_user(connected):
            connected.close()
            return
        enlarge_send_buffer(connected)
        self._accepted(connected)

    def open(self, peer: Peer, connected: socket.socket, opened: Callable[[Peer], None]) -> None:
        """Give the peer a link. ``opened`` is called once it has one, unless it has ended; else the peer is lost."""
        # A transport is not made at once.
        task = self._loop.create_task(self._open(peer, connected, opened))
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, peer, connected))

    async def _open(self, peer: Peer, connected: socket.socket, opened: Callable[[Peer], None]) -> None:
        peer.attach(await connect_link(self._reactor, connected, peer, self._counters))
        if not peer.ended:
            opened(peer)

    def _ended(self, peer: Peer, connected: socket.socket, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            # Perhaps before its first step, when nothing owned the socket yet.
            connected.close()
            peer.drop()
        elif (error := task.exception()) is not None:
            logger.error("a connection to a worker cannot be opened: %r", error)
            peer.drop()

    async def wait_opened(self, timeout: float) -> None:
        """Wait until every peer has its link or is lost, but no longer than so many seconds."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
