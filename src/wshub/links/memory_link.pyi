import asyncio

from wshub.links.link import Link

class MemoryLink(Link):
    """One end of a pair. ``create_memory_links()`` makes both."""

    def deliver(self, limit: int | None = None) -> bool:
        """Take one step at this end. Return whether anything happened.

        A step sends what is queued at both ends, as far as it fits. It then calls the receiver:
        with up to ``limit`` bytes or the end of the other side, with ``drained()``, and with the end of the link.
        Within a receiver this does nothing.
        """

    def end_output(self) -> None:
        """End this side once the queue has left. The other end may go on to send."""

    def cut(self, error: int = ...) -> None:
        """Lose the connection. Both ends end with that error, and the bytes between them are gone."""

    @property
    def bytes_on_the_way(self) -> int:
        """The number of bytes that this end has sent and the other has not received."""

def create_memory_links(
    *, loop: asyncio.AbstractEventLoop | None = None, capacity: int = 65536
) -> tuple[MemoryLink, MemoryLink]:
    """Return the two ends of a connection in memory.

    Args:
        loop: an event loop that calls ``deliver()`` when there is something to do; None leaves that to the caller.
        capacity: the bytes that may be on the way in each direction.
    """

def deliver_all(link: MemoryLink) -> None:
    """Let both ends take steps until nothing is left to do."""
