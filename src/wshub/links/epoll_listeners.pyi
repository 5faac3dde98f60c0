from typing import Self

from wshub.links.epoll_link import EpollLinks

class Listener:
    """One listening socket."""

class EpollListeners:
    """The listening sockets of one reactor."""

    def __new__(cls, links: EpollLinks) -> Self: ...
