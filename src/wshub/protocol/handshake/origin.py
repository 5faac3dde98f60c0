"""The check of the Origin header field: pages of which origins may connect (RFC 6455 section 10.2)."""

from __future__ import annotations

from collections.abc import Sequence

from wshub.errors import HandshakeError, MisuseError
from wshub.protocol.http.headers import Headers

__all__ = ["check_origin"]


def check_origin(headers: Headers, allowed_origins: Sequence[str], *, allow_missing: bool = False) -> None:
    """Raise ``HandshakeError`` with 403 if the request comes from an origin that may not connect.

    With no ``allowed_origins``, or with ``*`` among them, every request passes. Otherwise the ``Origin`` must be one of
    them. Its form is that of RFC 6454 section 6.2: ``scheme://host``, then ``:port`` if it is not the scheme's own.
    There is no slash at the end. All of it is compared, except for the case of ASCII letters. The host
    ``*.example.com`` stands for every host that ends in ``.example.com``.

    ``null`` never passes, even if listed: every sandboxed page has that origin. A request without an ``Origin`` passes
    if ``allow_missing`` is true: browsers always send one. More than one ``Origin`` field is answered with 400. The
    reason of the error says which of these it was.
    """
    if isinstance(allowed_origins, str):
        raise MisuseError(f"allowed_origins must be a sequence, such as [{allowed_origins!r}], not one string")
    if not allowed_origins or "*" in allowed_origins:
        return
    origins = headers.get_all_raw(b"origin")
    if len(origins) > 1:
        raise HandshakeError(400, "A request has at most one Origin.")
    # As latin-1 text, no letter outside ASCII becomes one of ASCII in lower case.
    origin = origins[0].decode("latin-1").lower() if origins else ""
    if not origin:
        if allow_missing:
            return
        raise HandshakeError(
            403, "WebSocket connections without an origin are not allowed: the Origin header field is missing."
        )
    if origin == "null":
        raise HandshakeError(403, "WebSocket connections from the origin null are not allowed.")
    if not any(_matches(origin, str.lower(allowed)) for allowed in allowed_origins):
        raise HandshakeError(403, "WebSocket connections from this origin are not allowed.")


def _matches(origin: str, pattern: str) -> bool:
    """Whether an origin is the allowed one, or one of its hosts if that begins with ``*.``. Both are in lower case."""
    scheme, _, host = pattern.partition("://")
    if not host.startswith("*."):
        return origin == pattern
    prefix = f"{scheme}://"
    # The asterisk stands for a part of a host: nothing that would end the host earlier.
    found = origin[len(prefix) : -len(host) + 1]
    return (
        origin.startswith(prefix)
        and origin.endswith(host[1:])
        and bool(found)
        and not any(character in found for character in "/:@?#")
    )
