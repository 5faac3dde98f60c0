"""The server's side of the opening handshake: checks requests, writes responses (RFC 6455 sections 1.3 and 4.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Protocol

from wshub.errors import HandshakeError, InvalidMessageError
from wshub.protocol.handshake.key import compute_accept, is_valid_key
from wshub.protocol.http.fields import HeaderField, encode_fields, encode_latin_1, encode_value
from wshub.protocol.http.headers import Headers, has_token, is_token, split_list
from wshub.protocol.validation import check_strings

__all__ = ["Handshake", "HasHeaders", "HasRequest"]

_SWITCHING_PROTOCOLS = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
)

# Fields that a 101 writes itself, or that would promise a body, which a 101 does not have.
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

_HANDSHAKE_NAMES = ("Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version")

_UPGRADE_REQUIRED = (("Upgrade", "websocket"), ("Connection", "Upgrade"))


class HasHeaders(Protocol):
    """A request: finds its header fields by name, in any case."""

    def get_header(self, name: str, /) -> str | None: ...


class HasRequest(Protocol):
    """A context: has a request."""

    @property
    def request(self) -> HasHeaders: ...


class Handshake:
    """The steps of an opening handshake, as static methods: there are no instances."""

    __slots__ = ()

    @staticmethod
    def validate_request(request_or_context: HasHeaders | HasRequest) -> bool:
        """Whether a request, or that of a context, is a valid WebSocket handshake.

        It checks what ``check_request`` checks. If a request has no method, no version or no ``Headers``, it checks
        only what ``get_header`` returns.
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
        """Whether a request asks for a WebSocket, with a valid handshake or not (RFC 9110 section 7.8)."""
        return has_token(headers.get_all_raw(b"upgrade"), b"websocket") and has_token(
            headers.get_all_raw(b"connection"), b"upgrade"
        )

    @staticmethod
    def check_request(method: str, http_version: str, headers: Headers) -> str:
        """Return the ``Sec-WebSocket-Key`` of a valid handshake (RFC 6455 section 4.2.1).

        Raises ``HandshakeError``, whose status and headers say what is wrong.

        - 405 with ``Allow`` is for a method other than GET.
        - 426 with ``Upgrade`` is for a request that does not ask for a WebSocket.
        - 426 with ``Upgrade`` and ``Sec-WebSocket-Version`` is for another version of the protocol.
        - 400 is for everything else. That includes HTTP/1.0, which has no upgrades (RFC 9110 section 7.8): 505 is for
          major versions.

        ``parse_request_head`` checks host, target and body; ``check_origin`` and ``choose_subprotocol`` the rest.
        """
        if method != "GET":
            raise HandshakeError(405, "A WebSocket handshake is a GET request.", (("Allow", "GET"),))
        if http_version != "1.1" and not _is_later_than_1_1(http_version):
            raise HandshakeError(400, "A WebSocket handshake needs HTTP/1.1.")
        if not has_token(headers.get_all_raw(b"upgrade"), b"websocket"):
            raise HandshakeError(426, "Only WebSocket handshakes are answered here.", _UPGRADE_REQUIRED)
        if not has_token(headers.get_all_raw(b"connection"), b"upgrade"):
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
        if not is_valid_key(key):
            raise HandshakeError(400, "The Sec-WebSocket-Key must be 16 bytes in base64.")
        return key.decode("ascii")

    @staticmethod
    def choose_subprotocol(headers: Headers, supported: Sequence[str]) -> str | None:
        """Return the first subprotocol of the client that ``supported`` contains, or ``None``.

        The client's order is its preference (RFC 6455 section 4.1); the order of ``supported`` has no meaning. Names
        are compared exactly. ``None`` still leads to a connection, without a subprotocol: a server that insists on one
        must refuse the request itself. An empty field counts as no field: embedded clients send it.

        Raises ``HandshakeError`` with 400 for a field that has only commas, names a subprotocol twice, or contains
        something that is not a token. This holds even if nothing is supported.
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
    def generate_accept_key(key: str | bytes) -> str:
        """Return the 28 characters of ``Sec-WebSocket-Accept`` that answer ``key`` (RFC 6455 section 4.2.2).

        The key is not checked. Raises ``InvalidMessageError`` if it is text that is not latin-1.
        """
        return _accept_for(key).decode("ascii")

    @staticmethod
    def create_response(
        key: str | bytes,
        *,
        subprotocol: str | None = None,
        extensions: str | None = None,
        headers: Iterable[HeaderField] | bytes = (),
    ) -> bytes:
        """Return the complete 101 response that accepts the handshake whose key is ``key``.

        ``subprotocol`` is one that the client offered. ``extensions`` is the negotiated value of
        ``Sec-WebSocket-Extensions``. ``headers`` are fields to add, in order, or the result of ``encode_headers``.

        Raises ``InvalidMessageError`` for a subprotocol or a name that is not a token, and for fields that the
        handshake itself writes. It also refuses values that are not latin-1 or have a control character, such as CR,
        LF, NUL or tab.
        """
        response = [_SWITCHING_PROTOCOLS, _accept_for(key), b"\r\n"]
        if subprotocol is not None:
            value = encode_value(subprotocol, "a subprotocol")
            if not is_token(value):
                raise InvalidMessageError("a subprotocol must be a token of HTTP")
            response += (b"Sec-WebSocket-Protocol: ", value, b"\r\n")
        if extensions is not None:
            response += (b"Sec-WebSocket-Extensions: ", encode_value(extensions, "the extensions"), b"\r\n")
        if headers:
            response.append(headers if isinstance(headers, bytes) else Handshake.encode_headers(headers))
        response.append(b"\r\n")
        return b"".join(response)

    @staticmethod
    def encode_headers(headers: Iterable[HeaderField]) -> bytes:
        """Return the lines of ``headers``, to be used in many responses. Raises as ``create_response`` does."""
        return b"".join(b"%s: %s\r\n" % field for field in encode_fields(headers, _OWN_NAMES_OF_101))

    @staticmethod
    def encode_fields(fields: Iterable[HeaderField]) -> bytes:
        """Return the lines of the fields of any response.

        Raises ``InvalidMessageError`` for a name that is not a token and for a value with a control character.
        """
        return b"".join(b"%s: %s\r\n" % field for field in encode_fields(fields, frozenset()))

    @staticmethod
    def create_error_response(error: HandshakeError) -> bytes:
        """Return the complete response that refuses a request; the connection is closed after it.

        The body is ``error.reason`` as plain text. Raises ``InvalidMessageError`` for a status that is not final or has
        no body (1xx, 204, 304). It checks ``error.headers`` as ``create_response`` does; they must not describe the
        body.
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
        for name, value in encode_fields(error.headers, _OWN_NAMES_OF_ERRORS):
            if name.lower() == b"connection":
                # A 426 must have "Upgrade" here (RFC 9110 section 7.8), and every refusal ends the connection.
                connection = value if has_token([value], b"close") else value + b", close"
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


def _accept_for(key: str | bytes) -> bytes:
    return compute_accept(key if isinstance(key, bytes) else encode_latin_1(key, "a key"))


def _is_later_than_1_1(http_version: str) -> bool:
    return len(http_version) == 3 and http_version.startswith("1.") and "2" <= http_version[2] <= "9"
