"""The head of an HTTP/1.1 request: its reader, its strict parser and its value (RFC 9112 sections 2 to 5).

A WebSocket server needs one GET without a body, so nothing is repaired here. A head that two programs could read in two
ways is refused. All work is linear in the bytes, however they arrive. There are no regular expressions, no
``splitlines`` and no ``split`` without an argument: these also split on bytes that HTTP does not split on. The message
of an error never repeats a part of the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, Protocol, overload
from urllib.parse import parse_qsl, unquote

from wshub.errors import HandshakeError, MisuseError
from wshub.protocol.http.headers import TOKEN_CHARACTERS, Headers, index_fields, is_token

__all__ = [
    "HEAD_TOO_LARGE",
    "MAX_EARLY_SIZE",
    "MAX_HEADERS",
    "MAX_HEAD_SIZE",
    "MAX_METHOD_LENGTH",
    "MAX_TARGET_LENGTH",
    "RequestHead",
    "RequestReader",
    "TlsPeer",
    "TlsRequestHead",
    "parse_request_head",
    "request_head",
]

MAX_HEAD_SIZE = 16 * 1024
"""Maximum bytes of a request head by default: 8 KiB of target, 8 KiB of fields."""

MAX_EARLY_SIZE = 64 * 1024
"""Maximum bytes that may follow a request and wait for its answer. RFC 6455 allows none."""

MAX_HEADERS = 100
"""Maximum number of field lines in a request head. Browsers send under 20, and proxies add a few."""

MAX_TARGET_LENGTH = 8 * 1024
"""Maximum bytes of a request target: the length that RFC 9112 section 3 recommends to support."""

MAX_METHOD_LENGTH = 32
"""Maximum bytes of a method. The longest one that IANA has registered takes 17."""

HEAD_TOO_LARGE = (431, "The head of the request is too large.")
"""The arguments of the ``HandshakeError`` that refuses a larger head."""

_END = b"\r\n\r\n"

# The bytes of a head besides CR LF: tab, space, visible ASCII and obs-text.
_LINE_CHARACTERS = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))

# Browsers do not encode some characters of a query that RFC 3986 would have encoded, such as "|". They are accepted: no
# reader of a target splits on them. A "#" would begin a fragment, which has no place in a request.
_TARGET_CHARACTERS = bytes(range(0x21, 0x7F)).replace(b"#", b"")

# Host and port in RFC 3986. "/", "?", "#" and "@" are left out: they would make it a different URL.
_HOST_CHARACTERS = (
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789" + b"-._~" + b"%" + b"!$&'()*+,;=" + b":[]"
)


_DEFAULT_PORTS = {b"http": b"80", b"ws": b"80", b"https": b"443", b"wss": b"443"}


class TlsPeer(Protocol):
    """The other end of a TLS connection, such as an ``ssl.SSLObject`` knows it."""

    def getpeercert(self, binary_form: bool = False, /) -> Any:
        """Return its certificate, or None."""


class RequestHead:
    """The head of a request: method, target, version and header fields. Do not change it."""

    __slots__ = ("_query_params", "headers", "http_version", "method", "remote_address", "target")

    # A slot in requests over TLS. The others take no memory for it.
    _tls: TlsPeer | None = None

    def __init__(self, method: str, target: str, http_version: str, headers: Headers) -> None:
        self.method = method
        """The method, in the case in which it came: ``GET`` for a handshake."""
        self.target = target
        """The path and the query of the request target, percent-encoded as they came, in ASCII."""
        self.http_version = http_version
        """Such as ``1.1``."""
        self.headers = headers
        """The header fields."""
        self.remote_address: tuple[Any, ...] | None = None
        """The client's host and port, for ``on_upgrade``; ``None`` if it has none. Behind a trusted proxy it is the
        host that the proxy names, with port 0. After the handshake, ask the connection."""
        self._query_params: Mapping[str, str] | None = None

    @property
    def path(self) -> str:
        """The path of the target, percent-decoded. Bytes that are not UTF-8 become U+FFFD, as in ASGI servers."""
        path = self.target.partition("?")[0]
        return unquote(path) if "%" in path else path

    @property
    def raw_path(self) -> bytes:
        """The path as it came, percent-encoded and without the query: ASGI's ``raw_path``."""
        return self.target.partition("?")[0].encode("ascii")

    @property
    def query_string(self) -> str:
        """The query: the part of the target after the first ``?``, percent-encoded. Empty if there is none."""
        return self.target.partition("?")[2]

    @property
    def raw_query_string(self) -> bytes:
        """The query string as bytes: ASGI's ``query_string``."""
        return self.query_string.encode("ascii")

    @property
    def query_params(self) -> Mapping[str, str]:
        """The parameters of the query, decoded, with the last value of each name. They are parsed when first used."""
        if self._query_params is None:
            self._query_params = MappingProxyType(dict(parse_qsl(self.query_string, keep_blank_values=True)))
        return self._query_params

    def get_header(self, name: str) -> str | None:
        """Return the first value of the header field called ``name``, in any case, or ``None``."""
        return self.headers.get(name)

    @overload
    def getpeercert(self, binary_form: Literal[False] = False) -> dict[str, Any] | None: ...
    @overload
    def getpeercert(self, binary_form: Literal[True]) -> bytes | None: ...
    @overload
    def getpeercert(self, binary_form: bool) -> dict[str, Any] | bytes | None: ...
    def getpeercert(self, binary_form: bool = False) -> dict[str, Any] | bytes | None:
        """Return the client's certificate, as ``ssl.SSLObject.getpeercert()`` does.

        It has been verified. The result is None without TLS, if the client has sent no certificate, and once the
        connection has ended. The server asks clients for one if ``verify_mode`` of its SSLContext is ``CERT_OPTIONAL``
        or ``CERT_REQUIRED``.

        Args:
            binary_form: True returns the certificate in DER, as bytes. False returns a dict with its ``subject``,
                ``subjectAltName``, ``serialNumber`` and more.
        """
        return self._tls.getpeercert(binary_form) if self._tls is not None else None

    def __repr__(self) -> str:
        """Show all but the query: clients send tokens in it."""
        path, question_mark, _ = self.target.partition("?")
        return f"<RequestHead {self.method} {path}{question_mark and '?...'} HTTP/{self.http_version}>"


class TlsRequestHead(RequestHead):
    """The head of a request over TLS. It refers to the connection, which is asked for the client's certificate."""

    __slots__ = ("_tls",)

    def __init__(self, method: str, target: str, http_version: str, headers: Headers, tls: TlsPeer) -> None:
        super().__init__(method, target, http_version, headers)
        self._tls = tls


def request_head(
    method: str, target: str, http_version: str, headers: Headers, tls: TlsPeer | None = None
) -> RequestHead:
    """Return the head of a request. ``tls`` is the client of a connection over TLS."""
    if tls is not None:
        return TlsRequestHead(method, target, http_version, headers, tls)
    return RequestHead(method, target, http_version, headers)


class RequestReader:
    """Collects the bytes of a connection until a request head is complete.

    It reads one head: feed it the bytes that arrive until ``feed`` returns something or raises.
    """

    __slots__ = ("_buffer", "_failure", "_finished", "_max_size", "_method_seen")

    def __init__(self, max_size: int = MAX_HEAD_SIZE) -> None:
        """``max_size`` is the maximum number of bytes of a head, with its empty line."""
        self._max_size = max_size
        self._buffer = bytearray()
        self._method_seen = False
        self._finished = False
        # Not the exception: its traceback would refer back to the reader, and grow with each raise.
        self._failure: tuple[int, str] | None = None

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Take ``data``. When the head is complete, return it and the bytes that follow it.

        ``None`` means that it needs more. ``parse_request_head`` takes the head. The reader never holds more than
        ``max_size`` bytes and the last ``data``.

        Raises ``HandshakeError`` with 431 for a head of more than ``max_size`` bytes. It raises 400 or 501, as early as
        possible, for first bytes that are no method of HTTP, such as a TLS ClientHello. Fed again after that, it raises
        the same error. Raises ``MisuseError`` if it has returned a head already.
        """
        if self._failure is not None:
            raise HandshakeError(*self._failure)
        if self._finished:
            raise MisuseError("a RequestReader reads one head: make another for the next")
        buffer = self._buffer
        try:
            if not buffer:
                # Nearly every head comes in one read, which is then cut without a copy into the buffer.
                self._check_method(data)
                end = data.find(_END, 0, self._max_size)
                if end >= 0:
                    self._finished = True
                    return data[: end + 4], data[end + 4 :]
                self._check_size(len(data))
                buffer += data
                return None
            # The end may have begun in the last three bytes; those before have been searched.
            searched = max(0, len(buffer) - 3)
            buffer += data
            self._check_method(buffer)
            end = buffer.find(_END, searched, self._max_size)
            if end < 0:
                self._check_size(len(buffer))
                return None
        except HandshakeError as failure:
            self._failure = failure.status, failure.reason
            self._buffer = bytearray()
            raise
        self._finished = True
        self._buffer = bytearray()
        return bytes(buffer[: end + 4]), bytes(buffer[end + 4 :])

    def _check_size(self, size: int) -> None:
        if size >= self._max_size:
            raise HandshakeError(*HEAD_TOO_LARGE)

    def _check_method(self, start: bytes | bytearray) -> None:
        if self._method_seen:
            return
        if start.startswith(b"GET "):
            self._method_seen = True
            return
        method, space, _ = start[: MAX_METHOD_LENGTH + 1].partition(b" ")
        if method.translate(None, TOKEN_CHARACTERS) or (space and not method):
            raise HandshakeError(400, "This is not an HTTP request.")
        if space:
            self._method_seen = True
        elif len(method) > MAX_METHOD_LENGTH:
            raise HandshakeError(501, "The method of the request is not implemented.")


def parse_request_head(head: bytes, tls: TlsPeer | None = None) -> RequestHead:
    """Return the request whose complete head, through the empty line, is ``head``.

    ``tls`` is the client of a connection over TLS.

    A target may be in absolute form (RFC 9112 section 3.2.2): a URL of HTTP or WebSocket, whose authority must be that
    of Host. Only its path and query are kept.

    Raises ``HandshakeError``.

    - 414 is for a target that is too long, and 431 for too many fields.
    - 501 is for a method longer than any that exists, and 505 for a major version of HTTP other than 1.
    - 400 is for all else that RFC 9112 does not allow in a request. Examples are folded
      lines, more or less than one valid Host, a body, and a target that is neither a path nor a URL.
    """
    request_line, _, block = head.partition(b"\r\n")
    lines = block.split(b"\r\n")
    if not head.endswith(_END):
        raise HandshakeError(400, "The head of the request is not complete.")
    # Every CR LF has split the head once. Without the characters of lines, exactly as many CR LF must be left: then
    # there is no other CR or LF and no control character.
    if head.translate(None, _LINE_CHARACTERS) != b"\r\n" * len(lines):
        raise HandshakeError(400, "The request has a control character, or a line that does not end in CR LF.")
    del lines[-2:]
    if len(lines) > MAX_HEADERS:
        raise HandshakeError(431, f"The request has more than {MAX_HEADERS} header fields.")

    method, target, http_version = _parse_request_line(request_line)

    try:
        index = index_fields(lines)
    except ValueError:
        raise HandshakeError(400, "A header field of the request has no colon.") from None
    # All names at once. White space in one is a folded line, or stands before the colon: both are refused.
    if b"" in index or b"".join(index).translate(None, TOKEN_CHARACTERS):
        raise HandshakeError(400, "A header field of the request has a name that is not a token.")
    headers = Headers.from_block(block, index)
    hosts = headers.get_all_raw(b"host")
    if len(hosts) != 1 or not hosts[0] or hosts[0].translate(None, _HOST_CHARACTERS):
        raise HandshakeError(400, "The request must have exactly one valid Host header field.")
    if not target.startswith("/"):
        target = _parse_absolute_form(target, hosts[0])
    if b"transfer-encoding" in index or (
        b"content-length" in index and headers.get_all_raw(b"content-length") != (b"0",)
    ):
        raise HandshakeError(400, "A WebSocket handshake has no body.")
    return request_head(method, target, http_version, headers, tls)


def _parse_request_line(line: bytes) -> tuple[str, str, str]:
    parts = line.split(b" ")
    if len(parts) != 3:
        if len(line) > MAX_TARGET_LENGTH:
            raise HandshakeError(414, "The target of the request is too long.")
        raise HandshakeError(400, "The request line is not a method, a target and a version.")
    method, target, version = parts
    method_name = "GET"
    if method != b"GET":
        if not is_token(method):
            raise HandshakeError(400, "The method of the request is not a token.")
        if len(method) > MAX_METHOD_LENGTH:
            raise HandshakeError(501, "The method of the request is not implemented.")
        method_name = method.decode("ascii")
    http_version = "1.1"
    if version != b"HTTP/1.1":
        # HTTP-version is case-sensitive, one digit on each side of the point (RFC 9112 section 2.3).
        if len(version) != 8 or not version.startswith(b"HTTP/") or version[6:7] != b".":
            raise HandshakeError(400, "The version of the request is malformed.")
        if not (version[5:6] + version[7:8]).isdigit():
            raise HandshakeError(400, "The version of the request is malformed.")
        if version[5:6] != b"1":
            raise HandshakeError(505, "Only HTTP/1.1 is supported here.")
        http_version = version[5:].decode("ascii")
    if len(target) > MAX_TARGET_LENGTH:
        raise HandshakeError(414, "The target of the request is too long.")
    if target.translate(None, _TARGET_CHARACTERS):
        raise HandshakeError(400, "The target of the request must be percent-encoded.")
    return method_name, target.decode("ascii"), http_version


def _parse_absolute_form(target: str, host: bytes) -> str:
    """Return the path and query of a target in absolute form, whose authority must be the Host of the request."""
    scheme, separator, rest = target.encode("ascii").partition(b"://")
    port = _DEFAULT_PORTS.get(scheme.lower())
    if not separator or port is None:
        raise HandshakeError(400, "The target of the request must be a path, or a URL of HTTP or WebSocket.")
    path, question_mark, query = rest.partition(b"?")
    authority, _, path = path.partition(b"/")
    if not authority or authority.translate(None, _HOST_CHARACTERS):
        raise HandshakeError(400, "The target of the request has an authority that is not a host and a port.")
    if _normalise_authority(authority, port) != _normalise_authority(host, port):
        raise HandshakeError(400, "The target of the request and its Host header field are different.")
    return (b"/" + path + question_mark + query).decode("ascii")


def _normalise_authority(authority: bytes, default_port: bytes) -> bytes:
    """A host in lower case, with its port unless that is the default (RFC 9110 section 4.2.3)."""
    host, colon, port = authority.lower().rpartition(b":")
    if not colon or port.endswith(b"]"):
        return authority.lower()
    return host if port in (b"", default_port) else host + colon + port
