import asyncio
import socket
from collections.abc import Callable
from typing import Self

from wshub.links.link import Link, LinkCounters, Receiver

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
    def adopts(self) -> bool: ...
    async def listen(
        self, listening_socket: socket.socket, accepted: Callable[[Link], Receiver | None], *, backlog: int = 100
    ) -> None:
        """Accept the connections of a bound socket.

        ``accepted(link)`` is called with each new link, and returns its Receiver.
        """

    def adopt(self, descriptor: int, receiver: Receiver) -> Link:
        """Make a link of a connected, non-blocking socket, which the reactor owns from now on, also if this raises."""

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
