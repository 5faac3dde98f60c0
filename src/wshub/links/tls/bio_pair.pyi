import ssl
from typing import Any

class Window:
    """Memory that a function of ``ssl`` reads or writes: a buffer object whose place changes with each call."""

class BioPair:
    """One pair of memory BIOs, and the functions of ``ssl`` that use it. No method but ``take_output()`` raises."""

    def wrap(
        self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> tuple[ssl.SSLObject, Any]:
        """Return the SSLObject of a new connection, and the object whose methods it calls.

        That object is found through a private attribute. A class of the application's that overrides a method, or an
        implementation without the attribute, keeps its own methods.
        """

    @property
    def pending(self) -> int:
        """The number of bytes in both BIOs: 0 between two steps."""

class OwnMethods:
    """The methods of an SSLObject whose class is the application's own, as a session has them."""

    def __init__(self, wrapped: ssl.SSLObject) -> None: ...
    def read(self, size: int, buffer: Any) -> int: ...
    def write(self, data: Any) -> int: ...
    def do_handshake(self) -> None: ...
    def shutdown(self) -> None: ...
    def version(self) -> str | None: ...

def ssl_object_of(session: Any) -> ssl.SSLObject:
    """Return an SSLObject for a session that ``BioPair.wrap()`` has returned. Its own one may be gone."""
