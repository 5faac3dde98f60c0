import asyncio
import socket
import ssl as ssl_module
from collections.abc import Callable
from typing import Self

from wshub.links.link import Link, LinkCounters, Receiver
from wshub.links.tls.contexts import ServerTls

class EpollReactor:
    """Serves connections from an asyncio loop.

    Args:
        loop: any asyncio event loop with ``add_reader``. Use the reactor only on the thread of that loop.
        counters: where the bytes and messages of a link are counted, as long as it has no other.
        clock: a function without arguments that returns seconds and never goes back.
    """

    def __new__(
        cls, loop: asyncio.AbstractEventLoop, counters: LinkCounters, clock: Callable[[], float] = ...
    ) -> Self: ...
    @property
    def connection_count(self) -> int:
        """The number of open links."""

    @property
    def bytes_in_shared_pair(self) -> int:
        """Bytes in the BIOs that all TLS links share: 0 whenever other code than a callback of ``ssl`` runs."""

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

        ``accepted(link)`` is called with each new link, before any TLS handshake, and returns its Receiver.
        """

    def adopt(self, descriptor: int, receiver: Receiver) -> Link:
        """Make a link of a connected, non-blocking socket, which the reactor owns from now on, also if this raises."""

    def adopt_client(
        self,
        descriptor: int,
        receiver: Receiver,
        context: ssl_module.SSLContext,
        server_hostname: str | None,
        established: Callable[[BaseException | None], None],
    ) -> Link:
        """Make a TLS link of a socket that is connected to a server. It owns the descriptor, also if this raises.

        Args:
            descriptor: a connected, non-blocking socket.
            receiver: gets what arrives. It is not called if the handshake fails.
            context: an SSLContext of the client's side.
            server_hostname: the name that the server's certificate must have, or None.
            established: called once, after the handshake: with None, or with the exception that it failed with.
        """

    def unlisten(self, descriptor: int) -> None:
        """Accept no more connections of that listening socket, which stays open."""

    def resume_accepting(self) -> None:
        """Try again to accept, and to send, after there were no descriptors or no memory."""

    def retain(self) -> None:
        """Count one more user of the reactor, which will call release()."""

    def release(self) -> None:
        """Count one user less, and close the reactor after the last one. The caller's connections have ended."""

    def close(self) -> None:
        """End every connection at once and leave the loop. The receivers are called before this returns."""
