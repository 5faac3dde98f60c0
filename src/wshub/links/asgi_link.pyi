from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from wshub.links.link import Link

class AsgiLink(Link):
    """Carries a connection that an ASGI application has accepted, once ``start()`` is called."""

    def __init__(
        self,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
        client: tuple[str, int] | None,
        *,
        private_codes: bool = False,
    ) -> None: ...
    def start(self) -> None:
        """Start to receive and send, in tasks of its own."""

    def end(self) -> None:
        """End the link: the server ends the connection."""

    def leave_close(self, code: int, reason: str) -> None:
        """Leave the close message, with that code and reason, to the framework. Send and receive nothing more."""
