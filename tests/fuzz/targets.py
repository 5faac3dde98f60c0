"""The fuzz targets. Each takes any bytes, and raises only if the code under test is wrong."""

from __future__ import annotations

from collections.abc import Callable

from wshub.brokers.envelope import decode_envelope, encode_envelope
from wshub.errors import HandshakeError, InvalidMessageError, ProtocolError
from wshub.protocol.close_code import is_valid_on_wire
from wshub.protocol.compression.compressed_once import DeflatePool
from wshub.protocol.compression.config import CompressionConfig
from wshub.protocol.compression.negotiation import PermessageDeflate, negotiate
from wshub.protocol.frame import Frame, Opcode
from wshub.protocol.handshake.origin import check_origin
from wshub.protocol.handshake.server import Handshake
from wshub.protocol.http.request import RequestReader, parse_request_head
from wshub.protocol.message import Message, MessageType
from wshub.protocol.parser import FrameParser
from wshub.protocol.role import Role

LIMITS = (1, 2, 125, 126, 1000, 65_536, 1 << 20, 1 << 40)
COMPRESSION = CompressionConfig(threshold=0, server_context_takeover=True, client_context_takeover=True)
POOL = DeflatePool(COMPRESSION)


def pieces_of(data: bytes, pattern: int) -> list[bytes]:
    """Split the data as a network might: whole, byte by byte, or in other lengths."""
    if pattern == 0:
        return [data]
    if pattern == 1:
        return [data[index : index + 1] for index in range(len(data))]
    pieces = []
    start = 0
    while start < len(data):
        pattern = pattern * 1_103_515_245 + 12_345 & 0x7FFF_FFFF
        length = 1 + pattern % 61
        pieces.append(data[start : start + length])
        start += length
    return pieces


def plain(events: list) -> list:
    """Return events as values that compare with ==."""
    result: list = []
    for name, value in events:
        if isinstance(value, Message):
            result.append((name, value.type, bytes(value)))
        elif isinstance(value, ProtocolError):
            result.append((name, value.code, value.reason))
        else:
            result.append((name, value))
    return result


def negotiated(offer: bytes) -> PermessageDeflate | None:
    return negotiate(COMPRESSION, [offer])


AGREEMENTS = (
    None,
    negotiated(b"permessage-deflate"),
    negotiated(b"permessage-deflate; client_no_context_takeover"),
    negotiated(b"permessage-deflate; client_max_window_bits=9"),
)


def check_events(events: list, limit: int) -> None:
    """Check the properties that every sequence of events has."""
    for index, (name, *value) in enumerate(events):
        if name == "message":
            kind, payload = value
            assert len(payload) <= limit
            if kind is MessageType.TEXT:
                payload.decode()
        elif name in ("ping", "pong"):
            assert len(value[0]) <= 125
        elif name == "close":
            code, payload = value[0]
            assert code == 1005 or is_valid_on_wire(code)
            payload[2:].decode()
            assert index == len(events) - 1
        else:
            assert name == "failure"
            assert value[0] in (1002, 1007, 1009)
            assert index == len(events) - 1


def fuzz_parser(data: bytes) -> None:
    """A server's parser gives the same events for any pieces, and in any buffer."""
    check_parser(data, Role.SERVER)


def fuzz_client_parser(data: bytes) -> None:
    """Do the same with a client's parser, which reads unmasked frames."""
    check_parser(data, Role.CLIENT)


def check_parser(data: bytes, role: Role) -> None:
    """Parse the data whole and in pieces, in both ways, and compare the events."""
    if len(data) < 3:
        return
    limit = LIMITS[data[0] % len(LIMITS)]
    compression = AGREEMENTS[data[1] % len(AGREEMENTS)]
    received = data[3:]
    whole = FrameParser(limit, compression, role)
    expected = plain(whole.feed(received))
    check_events(expected, limit)
    for feed in ("feed", "feed_directly"):
        parser = FrameParser(limit, compression, role)
        events: list = []
        for piece in pieces_of(received, data[2]):
            events += plain(getattr(parser, feed)(piece))
        assert events == expected, (feed, events, expected)
        assert parser.stopped == whole.stopped
        if parser.stopped:
            assert parser.feed(b"\x81\x80abcd") == []


def fuzz_handshake(data: bytes) -> None:
    """A request has the same outcome in any pieces, and the response has only well-formed lines."""
    if not data:
        return
    received = data[1:]
    expected = outcome_of([received])
    assert outcome_of(pieces_of(received, data[0])) == expected
    kind, value = expected
    response = value if kind == "accepted" else Handshake.create_error_response(HandshakeError(*value))
    head, _, _ = response.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 101 " if kind == "accepted" else b"HTTP/1.1 ")
    for line in lines[1:]:
        name, separator, field = line.partition(b": ")
        assert separator
        assert name.replace(b"-", b"").isalnum()
        assert not field.translate(None, bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100)))


def outcome_of(pieces: list[bytes]) -> tuple:
    """Return the outcome of a request: the response, or status and reason, or that it is incomplete."""
    reader = RequestReader()
    try:
        for index, piece in enumerate(pieces):
            found = reader.feed(piece)
            if found is not None:
                head, rest = found
                assert rest + b"".join(pieces[index + 1 :]) == b"".join(pieces)[len(head) :]
                break
        else:
            return ("refused", (408, "incomplete"))
        request = parse_request_head(head)
        assert request.path is not None
        assert dict(request.query_params) is not None
        key = Handshake.check_request(request.method, request.http_version, request.headers)
        check_origin(request.headers, ("https://example.com", "https://*.example.org"))
        subprotocol = Handshake.choose_subprotocol(request.headers, ("chat", "superchat"))
        agreed = negotiate(COMPRESSION, request.headers.get_all_raw(b"sec-websocket-extensions"))
        extensions = agreed.response if agreed is not None else None
        return ("accepted", Handshake.create_response(key, subprotocol=subprotocol, extensions=extensions))
    except HandshakeError as error:
        return ("refused", (error.status, error.reason, error.headers))


def fuzz_deflate(data: bytes) -> None:
    """Compressed data is restored exactly. Any other data stays within the limit, or fails."""
    if len(data) < 2:
        return
    plain_bytes = data[2:]
    compression = AGREEMENTS[1 + data[0] % (len(AGREEMENTS) - 1)]
    limit = (100, 10_000)[data[1] & 1]
    events = plain(FrameParser(limit, compression).feed(compressed_frame(plain_bytes) * (1 + (data[1] >> 6))))
    check_events(events, limit)
    try:
        message = Message(plain_bytes.decode()) if data[1] & 2 else Message(plain_bytes)
    except (UnicodeDecodeError, InvalidMessageError):
        return
    form = POOL.compress_message(message, 8 + data[1] % 8)
    if form is not None:
        assert len(form) < len(message)
        received = plain(FrameParser(1 << 20, AGREEMENTS[1]).feed(compressed_frame(form)))
        assert received == [("message", MessageType.BINARY, plain_bytes)]


def compressed_frame(payload: bytes) -> bytes:
    """Return a client's compressed binary frame. Its mask is zero, so the payload is unchanged."""
    return Frame(Opcode.BINARY, payload, rsv1=True).with_mask(bytes(4)).encode()


def fuzz_envelope(data: bytes) -> None:
    """Any bytes are an envelope that can be encoded again, or a ValueError. So is each part of an envelope."""
    try:
        decoded = decode_envelope(data)
    except ValueError:
        return
    assert data.endswith(decoded.payload)
    encoded = encode_envelope(**decoded._asdict())
    # Only unknown flags, and one of two that exclude each other, are not encoded again.
    assert decode_envelope(encoded) == decoded
    assert len(encoded) == len(data)
    assert encoded[4:] == data[4:]
    without_payload = len(data) - len(decoded.payload)
    for length in {0, 1, 2, 27, 28, without_payload - 1, without_payload, len(data) - 1}:
        if not 0 <= length <= len(data):
            continue
        try:
            shorter = decode_envelope(data[:length])
        except ValueError:
            assert length < without_payload
        else:
            assert shorter == decoded._replace(payload=data[without_payload:length])


TARGETS: dict[str, Callable[[bytes], None]] = {
    "parser": fuzz_parser,
    "client_parser": fuzz_client_parser,
    "handshake": fuzz_handshake,
    "deflate": fuzz_deflate,
    "envelope": fuzz_envelope,
}
