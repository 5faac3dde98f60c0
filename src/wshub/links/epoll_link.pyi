import asyncio

from wshub.links.link import Ledger, Link

class EpollLink(Link):
    """One connection of an epoll reactor."""

class EpollLinks:
    """All links of one reactor.

    Args:
        loop: the event loop that calls the reactor.
        ledger: where the bytes and messages of a new link are counted.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ledger: Ledger) -> None: ...
