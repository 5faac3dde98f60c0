import asyncio
from typing import Self

from wshub.links.link import Link, LinkCounters

class EpollLink(Link):
    """One connection of an epoll reactor."""

class EpollLinks:
    """All links of one reactor.

    Args:
        loop: the event loop that calls the reactor.
        counters: where the bytes and messages of a new link are counted.
    """

    def __new__(cls, loop: asyncio.AbstractEventLoop, counters: LinkCounters) -> Self: ...
