from typing import Any, Self

from wshub.links.epoll_link import EpollLink, EpollLinks

class EpollTls:
    """The pair, the buffers and the waiting handshakes of a reactor."""

    def __new__(cls, links: EpollLinks) -> Self: ...
    @property
    def pending(self) -> int:
        """The bytes in the shared pair: 0 between two steps."""

class EpollTlsLink(EpollLink):
    """One TLS connection of an epoll reactor, of the server's or the client's side."""

    session: Any
    ciphertext: bytes | None
    partial_length: int
