"""What every reactor promises."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from wshub.links.link import Link, Receiver
from wshub.links.tls.contexts import ServerTls

__all__ = ["Reactor"]


class Reactor(Protocol):
    """Accepts connections and carries them, each through a link of its own.

    A reactor belongs to one event loop. Call its methods on the thread of that loop only. It calls its receivers there,
    from the loop and never from within a task.
    """

    @property
    def connection_count(self) -> int:
        """The number of open links."""

    @property
    def adopts(self) -> bool:
        """Whether a connected socket can become a link by ``adopt()``."""

    async def listen(
        self,
        listening_socket: socket.socket,
        accepted: Callable[[Link], Receiver | None],
        *,
        backlog: int = 100,
        ssl: ServerTls | None = None,
    ) -> None:
        """Accept the connections of a bound socket. The caller still owns the socket.

        Args:
            listening_socket: a bound TCP or Unix socket. It becomes non-blocking.
            accepted: called once with each new link, before anything is read from it, and before a TLS handshake. It
                returns the receiver. If it raises, or returns None, the connection is closed.
            backlog: connections that the kernel may hold until they are accepted.
            ssl: for TLS, the context and its settings. Until the handshake is over, nothing arrives or leaves, and an
                abort after the flush ends the link at once.

        Raises:
            OSError: the socket cannot listen, or cannot be watched. Then nothing has changed.
        """

    def unlisten(self, descriptor: int) -> None:
        """Accept no more connections of that listening socket, which stays open. The links that it brought stay too.

        An unknown descriptor is ignored. Call it before the socket is closed.
        """

    def resume_accepting(self) -> None:
        """Try again to accept, and to send, after a shortage of descriptors or memory. The hub's sweep calls it."""

    def adopt(self, descriptor: int, receiver: Receiver) -> Link:
        """Make a link of a connected, non-blocking socket. Only a reactor that ``adopts`` can.

        The reactor owns the descriptor from now on, also if this raises.

        Raises:
            OSError: the socket cannot be watched.
            MemoryError: there is no memory for a link.
        """

    def retain(self) -> None:
        """Count one more user of the reactor. Each user calls ``release()`` once; whoever made the reactor is one."""

    def release(self) -> None:
        """Count one user less. The last one closes the reactor. Never call it from within a receiver."""

    def close(self) -> None:
        """End every link at once, and leave the loop. Every receiver's connection_lost() is called before this returns.

        A second call does nothing.
        """
