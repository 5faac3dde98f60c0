"""The opening handshake of a server (RFC 6455 sections 1.3 and 4.2): requests judged, responses written."""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha1
from http import HTTPStatus
from typing import Any, Protocol, TypeAlias

from wshub.errors import HandshakeError, InvalidMessageError, MisuseError
from wshub.protocol.http.headers import Headers, is_token, split_list
from wshub.protocol.validation import check_fields, check_strings

__all__ = ["Handshake", "HasHeaders", "HasRequest", "HeaderField"]

HeaderField: TypeAlias = tuple[str | bytes, str | bytes]
"""A header field of a response: name and value, as latin-1 text or as octets."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_SWITCHING_PROTOCOLS = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
)

# Fields that a 101 says itself, or that would promise a body, which a 101 does not have.
_OWN_NAMES_OF_101 = frozenset(
    (
        b"connection",
        b"content-length",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_OWN_NAMES_OF_ERRORS = frozenset((b"content-length", b"content-type", b"trailer", b"transfer-encoding"))

# Tab is left out, although HTTP has it in values: nobody needs it, and some readers treat it as the end of a
# line.
_VALUE_CHARACTERS = bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))

_HANDSHAKE_NAMES = ("Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version")

_UPGRADE_REQUIRED = (("Upgrade", "websocket"), ("Connection", "Upgrade"))


class HasHeaders(Protocol):
    """A request: whatever finds its header fields by name, in any case."""

    def get_header(self, name: str, /) -> str | None: ...


class HasRequest(Protocol):
    """A context: whatever has a request."""

    @property
    def request(self) -> HasHeaders: ...


class Handshake:
    """The pieces of an opening handshake. Functions only: there is nothing to make one of."""

    __slots__ = ()

    @staticmethod
    def validate_request(request_or_context: HasHeaders | HasRequest) -> bool:
        """Whether a request, or that of a context, is a valid WebSocket handshake.

        It judges as ``check_request`` does. Of a request that does not tell its method or version, or has no
        ``Headers``, only what ``get_header`` returns is judged.
        """
        request: Any = request_or_context
        if not hasattr(request, "get_header"):
            request = request.request
        method = getattr(request, "method", "GET")
        http_version = getattr(request, "http_version", "1.1")
        headers = getattr(request, "headers", None)
        try:
            if not isinstance(headers, Headers):
                found = [(name, request.get_header(name)) for name in _HANDSHAKE_NAMES]
                headers = Headers(
                    (name.encode("ascii"), value.encode("latin-1")) for name, value in found if value is not None
                )
            Handshake.check_request(method, http_version, headers)
        except (HandshakeError, UnicodeEncodeError):
            return False
        return True

    @staticmethod
    def is_upgrade(headers: Headers) -> bool:
        """Whether a request asks for a WebSocket, be its handshake right or wrong (RFC 9110 section 7.8)."""
        return _has_token(headers.get_all_raw(b"upgrade"), b"websocket") and _has_token(
            headers.get_all_raw(b"connection"), b"upgrade"
        )

    @staticmethod
    def check_request(method: str, http_version: str, headers: Headers) -> str:
        """Return the ``Sec-WebSocket-Key`` of a valid handshake (RFC 6455 section 4.2.1).

        Raises ``HandshakeError``, whose status and headers say what is wrong: 405 with ``Allow`` for a method
        other than GET; 426 with ``Upgrade`` for a request that does not ask for a WebSocket, and with
        ``Sec-WebSocket-Version`` besides for one that asks for another version; 400 for everything else,
        HTTP/1.0 included: it has no upgrades (RFC 9110 section 7.8), and 505 is for major versions. Host,
        target and body are for ``parse_request_head``; origin and subprotocol have functions of their own.
        """
        if method != "GET":
            raise HandshakeError(405, "A WebSocket handshake is a GET request.", (("Allow", "GET"),))
        if http_version != "1.1" and not _is_later_than_1_1(http_version):
            raise HandshakeError(400, "A WebSocket handshake needs HTTP/1.1.")
        if not _has_token(headers.get_all_raw(b"upgrade"), b"websocket"):
            raise HandshakeError(426, "Only WebSocket handshakes are answered here.", _UPGRADE_REQUIRED)
        if not _has_token(headers.get_all_raw(b"connection"), b"upgrade"):
            raise HandshakeError(400, "The Connection header field must contain Upgrade.")
        versions = headers.get_all_raw(b"sec-websocket-version")
        if len(versions) != 1:
            raise HandshakeError(400, "A handshake must have exactly one Sec-WebSocket-Version.")
        if versions[0] != b"13":
            raise HandshakeError(
                426,
                "Only version 13 of the WebSocket protocol is supported.",
                (*_UPGRADE_REQUIRED, ("Sec-WebSocket-Version", "13")),
            )
        keys = headers.get_all_raw(b"sec-websocket-key")
        if len(keys) != 1:
            raise HandshakeError(400, "A handshake must have exactly one Sec-WebSocket-Key.")
        key = keys[0]
        try:
            # The bits of the last character that base64 does not use are not looked at: the key is only
            # echoed, hashed.
            valid = len(key) == 24 and len(binascii.a2b_base64(key, strict_mode=True)) == 16
        except binascii.Error:
            valid = False
        if not valid:
            raise HandshakeError(400, "The Sec-WebSocket-Key must be 16 octets in base64.")
        return key.decode("ascii")

    @staticmethod
    def choose_subprotocol(headers: Headers, supported: Sequence[str]) -> str | None:
        """Return the first subprotocol that the client names and ``supported`` contains; ``None`` if none is.

        The order is the client's, which RFC 6455 section 4.1 defines as its preference; that of ``supported``
        has no meaning. Names are compared exactly. ``None`` still leads to a connection, without a
        subprotocol: a server that insists on one refuses it itself. An empty field counts as none: embedded
        clients send it. Raises ``HandshakeError`` with 400 for a field that has nothing but commas, names a
        subprotocol twice, or has something that is not a token, even if nothing is supported.
        """
        values = headers.get_all_raw(b"sec-websocket-protocol")
        if not any(values):
            return None
        offered = split_list(values)
        if not offered or not all(map(is_token, offered)):
            raise HandshakeError(400, "The Sec-WebSocket-Protocol must be a list of tokens.")
        if len(set(offered)) != len(offered):
            raise HandshakeError(400, "The Sec-WebSocket-Protocol must not name a subprotocol twice.")
        names = frozenset(check_strings("supported", supported))
        return next((name for name in (element.decode("ascii") for element in offered) if name in names), None)

    @staticmethod
    def check_origin(headers: Headers, allowed_origins: Sequence[str], *, allow_missing: bool = False) -> None:
        """Return if the request may come from where it does; raises ``HandshakeError`` with 403 if not.

        With no ``allowed_origins``, or with ``*`` among them, everything passes. Otherwise the ``Origin`` must be one
        of them, as RFC 6454 section 6.2 serialises it: ``scheme://host``, then ``:port`` if it is not the scheme's own,
        and no slash at the end. All of it is compared, the case of ASCII letters aside. A host of ``*.example.com``
        stands for every host that ends in ``.example.com``. ``null`` never passes, even if listed: every sandboxed page
        has that origin. A request without an ``Origin`` passes if ``allow_missing`` is true: browsers always send one.
        More than one ``Origin`` field is answered with 400. The reason of the error says which of these it was.
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

    @staticmethod
    def generate_accept_key(key: str | bytes) -> str:
        """Return the 28 characters of ``Sec-WebSocket-Accept`` that answer ``key`` (RFC 6455 section 4.2.2).

        The key is not checked. Raises ``InvalidMessageError`` if it is text that is not latin-1.
        """
        return _accept(key).decode("ascii")

    @staticmethod
    def create_response(
        key: str | bytes,
        *,
        subprotocol: str | None = None,
        extensions: str | None = None,
        headers: Iterable[HeaderField] | bytes = (),
    ) -> bytes:
        """Return the complete 101 response that accepts the handshake whose key is ``key``.

        ``subprotocol`` is one that the client offered, ``extensions`` the value of
        ``Sec-WebSocket-Extensions`` that was negotiated, ``headers`` are fields to add, in order, or what
        ``encode_headers`` has made of them. Raises ``InvalidMessageError`` for a subprotocol or a name that is
        not a token, for a value with a control character (CR, LF, NUL and tab are some) or text that is not
        latin-1, and for fields that the handshake itself writes.
        """
        response = [_SWITCHING_PROTOCOLS, _accept(key), b"\r\n"]
        if subprotocol is not None:
            value = _encode(subprotocol, "a subprotocol")
            if not is_token(value):
                raise InvalidMessageError("a subprotocol must be a token of HTTP")
            response += (b"Sec-WebSocket-Protocol: ", value, b"\r\n")
        if extensions is not None:
            response += (b"Sec-WebSocket-Extensions: ", _encode(extensions, "the extensions"), b"\r\n")
        if headers:
            response.append(headers if isinstance(headers, bytes) else Handshake.encode_headers(headers))
        response.append(b"\r\n")
        return b"".join(response)

    @staticmethod
    def encode_headers(headers: Iterable[HeaderField]) -> bytes:
        """Return the lines of ``headers`` for many a ``create_response``, which raises as this does."""
        return b"".join(b"%s: %s\r\n" % field for field in _encode_fields(headers, _OWN_NAMES_OF_101))

    @staticmethod
    def encode_fields(fields: Iterable[HeaderField]) -> bytes:
        """Return the lines of the fields of any response.

        Raises ``InvalidMessageError`` for a name that is not a token and for a value with a control character.
        """
        return b"".join(b"%s: %s\r\n" % field for field in _encode_fields(fields, frozenset()))

    @staticmethod
    def create_error_response(error: HandshakeError) -> bytes:
        """Return the complete response that refuses a request; the connection is closed after it.

        The body is ``error.reason`` as plain text. Raises ``InvalidMessageError`` for a status that is not
        final or has no body (1xx, 204, 304), and as ``create_response`` does for ``error.headers``, which
        must not describe the body.
        """
        if not 200 <= error.status <= 599 or error.status in (204, 304):
            raise InvalidMessageError(f"a handshake cannot be refused with status {error.status}")
        try:
            phrase = HTTPStatus(error.status).phrase
        except ValueError:
            phrase = ""
        body = error.reason.encode("utf-8", "replace")
        connection = b"close"
        fields = []
        for name, value in _encode_fields(error.headers, _OWN_NAMES_OF_ERRORS):
            if name.lower() == b"connection":
                # A 426 has to say "Upgrade" here (RFC 9110 section 7.8), and every refusal ends the
                # connection.
                connection = value if _has_token([value], b"close") else value + b", close"
            else:
                fields.append(name + b": " + value + b"\r\n")
        return b"".join(
            (
                f"HTTP/1.1 {error.status} {phrase}\r\n".encode("ascii"),
                b"Connection: " + connection + b"\r\n",
                b"Content-Type: text/plain; charset=utf-8\r\n",
                b"Content-Length: %d\r\n" % len(body),
                *fields,
                b"\r\n",
                body,
            )
        )


def _matches(origin: str, pattern: str) -> bool:
    """Whether an origin is the one allowed, or one of them if its host begins with ``*.``: both in lower case."""
    scheme, _, host = pattern.partition("://")
    if not host.startswith("*."):
        return origin == pattern
    prefix = f"{scheme}://"
    # What the asterisk stands for is part of a host: nothing that would end the host before.
    found = origin[len(prefix) : -len(host) + 1]
    return (
        origin.startswith(prefix)
        and origin.endswith(host[1:])
        and bool(found)
        and not any(character in found for character in "/:@?#")
    )


def _accept(key: str | bytes) -> bytes:
    octets = key if isinstance(key, bytes) else _encode_latin_1(key, "a key")
    # The protocol asks for SHA-1 as a checksum: a build that allows it for no secret allows it for this.
    return binascii.b2a_base64(sha1(octets + _GUID, usedforsecurity=False).digest(), newline=False)


def _is_later_than_1_1(http_version: str) -> bool:
    return len(http_version) == 3 and http_version.startswith("1.") and "2" <= http_version[2] <= "9"


def _has_token(values: Sequence[bytes], token: bytes) -> bool:
    """Whether a list that may be spread over several fields has ``token``, which is in lower case."""
    if len(values) == 1 and values[0].lower() == token:
        return True
    return any(element.lower() == token for element in split_list(values))


def _encode_fields(fields: Iterable[HeaderField], own_names: frozenset[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for name, value in check_fields("headers", fields):
        encoded_name = _encode(name, "the name of a header field")
        if not is_token(encoded_name):
            raise InvalidMessageError("the name of a header field must be a token of HTTP")
        if encoded_name.lower() in own_names:
            raise InvalidMessageError(f"the response itself has the field {encoded_name.decode('ascii')}")
        yield encoded_name, _encode(value, "the value of a header field")


def _encode(value: str | bytes, what: str) -> bytes:
    encoded = value if isinstance(value, bytes) else _encode_latin_1(value, what)
    if encoded.translate(None, _VALUE_CHARACTERS):
        raise InvalidMessageError(f"{what} must not contain control characters")
    return encoded


def _encode_latin_1(value: str, what: str) -> bytes:
    if not isinstance(value, str):
        raise InvalidMessageError(f"{what} must be a str or bytes, not {type(value).__name__}")
    try:
        return str.encode(value, "latin-1")
    except UnicodeEncodeError:
        raise InvalidMessageError(f"{what} must be latin-1 text") from None
