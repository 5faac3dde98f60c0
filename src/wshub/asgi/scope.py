"""Reads the scope of an ASGI request."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import quote

from wshub.core.admission import UNKNOWN_ADDRESS, is_address
from wshub.errors import InvalidMessageError
from wshub.protocol.http.fields import HeaderField
from wshub.protocol.http.headers import Headers
from wshub.protocol.http.request import RequestHead, request_head
from wshub.protocol.validation import check_fields

__all__ = [
    "ENDS_WITH_APPLICATION",
    "TAKEOVER",
    "Fields",
    "Receive",
    "Scope",
    "ScopePeer",
    "Send",
    "address_of",
    "encode_fields",
    "is_of_daphne",
    "request_of",
    "takeover_of",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Fields = list[tuple[bytes, bytes]]

TAKEOVER = "wshub.takeover"
"""The key of what the server and the hub tell each other about giving the connection to the hub.

In the scope's extensions it says that the server can do that. ``peer`` there is the address that has connected to the
server. With TLS, ``tls`` there tells the client's certificate. The server adds ``accepted`` and ``subprotocol`` when it
has accepted the WebSocket. If middleware has made an accept message of its own, the server keeps the connection; then
``guest`` is the connection to close when the application ends.

In the accept message it is the ``Opening`` of the connection."""

ENDS_WITH_APPLICATION = "wshub.ends_with_application"
"""The key, in the accept message, that says whether the server closes that connection when the application ends."""


def takeover_of(scope: Mapping[str, Any]) -> MutableMapping[str, Any] | None:
    """Return what the server says about giving the connection away; None if it cannot."""
    return (scope.get("extensions") or {}).get(TAKEOVER)


def request_of(scope: Mapping[str, Any]) -> RequestHead:
    """Return the request of a scope."""
    tls = (takeover_of(scope) or {}).get("tls")
    headers = Headers(scope["headers"])
    return request_head(scope.get("method", "GET"), _target_of(scope), scope.get("http_version", "1.1"), headers, tls)


def address_of(scope: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return the client's address, or the peer's if what proxies tell is no address; None if neither is known."""
    client = scope.get("client")
    if client and not is_address(client[0]):
        # Where the server does not tell of its peer, all of these have the limits of one address.
        client = (takeover_of(scope) or {}).get("peer") or UNKNOWN_ADDRESS
    return tuple(client[:2]) if client else None


class ScopePeer:
    """The source of a request: the client of its scope."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self._scope = scope

    @property
    def peer(self) -> tuple[Any, ...] | None:
        """The client's address; None if it is not known."""
        return address_of(self._scope)


def is_of_daphne(scope: Mapping[str, Any]) -> bool:
    """Return whether the server is daphne: it refuses the close codes that RFC 6455 defines, except 1000."""
    return "http_version" not in scope and "daphne.server" in sys.modules


def encode_fields(fields: Iterable[HeaderField]) -> Fields:
    """Return header fields as ASGI has them. Raises ``InvalidMessageError`` for what is not latin-1 text."""
    pairs = check_fields("headers", fields)
    return [(_encode_latin_1(name).lower(), _encode_latin_1(value)) for name, value in pairs]


def _encode_latin_1(text: str | bytes) -> bytes:
    if not isinstance(text, str | bytes):
        raise InvalidMessageError(f"the name and the value of a header must be str or bytes, not {text!r}")
    try:
        return text if isinstance(text, bytes) else str.encode(text, "latin-1")
    except UnicodeEncodeError:
        raise InvalidMessageError(f"the name and the value of a header must be latin-1 text, not {text!r}") from None


def _target_of(scope: Mapping[str, Any]) -> str:
    target: bytes = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
    if scope.get("query_string"):
        target += b"?" + scope["query_string"]
    return target.decode("ascii", "replace")
