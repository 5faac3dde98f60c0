from typing import Any, Self

from wshub.links.epoll_link import EpollLink, EpollLinks

class TlsBuffers:
    """The shared pair and the buffers of a reactor."""

    def __new__(cls, links: EpollLinks) -> Self: ...
    @property
    def pending(self) -> int:
        """The bytes in the shared pair: 0 between two steps."""

class EpollTlsOutput(EpollLink):
    """The sending side of a TLS link."""

    session: Any
    ciphertext: bytes | None
