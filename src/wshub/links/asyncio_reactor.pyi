import asyncio
import socket
from collections.abc import Callable
from typing import NoReturn

from wshub.links.asyncio_link import AsyncioLink
from wshub.links.link import Link, LinkCounters, Receiver
from wshub.links.tls.contexts import ServerTls

class AcceptedLink(AsyncioLink):
    """The link of an accepted connection, and the protocol of its transport. It sends once it has the transport."""

    def connection_made(self, transport: asyncio.Transport) -> None: ...
    def setup_failed(self) -> None:
        """End the link: there will be no transport."""

class AsyncioReactor:
    """Serves connections over the transports of an asyncio loop, where there is no epoll.

    Args:
        loop: any asyncio event loop. Use the reactor only on the thread of that loop.
        counters: where bytes and messages are counted.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: LinkCounters) -> None: ...
    @property
    def connection_count(self) -> int:
        """The number of open links."""

    @property
    def adopts(self) -> bool: ...
    async def listen(
        self,
        listening_socket: socket.socket,
        accepted: Callable[[Link], Receiver | None],
        *,
        backlog: int = 100,
        ssl: ServerTls | None = None,
    ) -> None:
        """Accept the connections of a bound socket, with TLS if ``ssl`` is a ServerTls.

        ``accepted(link)`` is called with each new link, before any TLS handshake. It returns the Receiver, or None to
        close the connection.
        """

    def unlisten(self, descriptor: int) -> None:
        """Accept no more connections of that listening socket, which stays open."""

    def resume_accepting(self) -> None:
        """Do nothing: after a shortage each listener tries again by itself."""

    def adopt(self, descriptor: int, receiver: Receiver) -> NoReturn:
        """Raise NotImplementedError: a transport needs the socket object."""

    def retain(self) -> None:
        """Count one more user of the reactor, which will call release()."""

    def release(self) -> None:
        """Count one user less, and close the reactor after the last one."""

    def close(self) -> None:
        """End every connection at once. The receivers are called before this returns."""
