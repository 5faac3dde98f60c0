"""Write the first inputs of the corpus: ``python -m tests.fuzz.seeds``. Inputs that fuzzing found are beside them."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.targets import compressed_frame
from tests.support.deflated import deflated
from wshub.brokers.envelope import encode_envelope
from wshub.protocol.frame import Frame, Opcode

CORPUS = Path(__file__).parent / "corpus"
REQUEST = (
    b"GET /chat?token=1 HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def from_client(*frames: Frame) -> bytes:
    return b"".join(frame.with_mask(b"\x9a\x01\xff\x5c").encode() for frame in frames)


def from_server(*frames: Frame) -> bytes:
    return b"".join(frame.encode() for frame in frames)


FRAMES = {
    "text": from_client(Frame.text("grüße")),
    "conversation": from_client(Frame.ping(b"p"), Frame.text("a"), Frame.pong(b""), Frame.close(1000, "bye")),
    "fragments": from_client(
        Frame(Opcode.TEXT, b"\xe2\x82", fin=False), Frame.ping(b""), Frame(Opcode.CONTINUATION, b"\xac")
    ),
    "lengths": from_client(Frame.binary(bytes(126)), Frame.binary(bytes(65_536))),
    "length-2-63": b"\x82\xff\x80" + bytes(11),
    "length-2-62": b"\x82\xff\x40" + bytes(11),
    "unmasked": Frame.text("x").encode(),
    "compressed": compressed_frame(deflated(b"hello hello hello")) * 2,
    "close-1": from_client(Frame(Opcode.CLOSE, b"\x03")),
}
SERVER_FRAMES = {
    "text": from_server(Frame.text("grüße")),
    "conversation": from_server(Frame.ping(b"p"), Frame.text("a"), Frame.pong(b""), Frame.close(1000, "bye")),
    "fragments": from_server(
        Frame(Opcode.TEXT, b"\xe2\x82", fin=False), Frame.ping(b""), Frame(Opcode.CONTINUATION, b"\xac")
    ),
    "lengths": from_server(Frame.binary(bytes(126)), Frame.binary(bytes(65_536))),
    "length-2-63": b"\x82\x7f\x80" + bytes(11),
    "length-2-62": b"\x82\x7f\x40" + bytes(11),
    "masked": from_client(Frame.text("x")),
    "compressed": from_server(Frame(Opcode.BINARY, deflated(b"hello hello hello"), rsv1=True)) * 2,
    "close-1": from_server(Frame(Opcode.CLOSE, b"\x03")),
}
HANDSHAKES = {
    "plain": REQUEST + b"\r\n",
    "full": REQUEST
    + b"Origin: https://a.example.org\r\nSec-WebSocket-Protocol: superchat, chat\r\n"
    + b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-webkit\r\n\r\nrest",
    "two-hosts": REQUEST + b"Host: evil.example\r\n\r\n",
    "folded": REQUEST + b"X: a\r\n b\r\n\r\n",
    "body": REQUEST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
    "absolute": REQUEST.replace(b"/chat", b"http://example.com/chat") + b"\r\n",
    "http-1.0": REQUEST.replace(b"1.1", b"1.0") + b"\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}

ENVELOPE = encode_envelope(
    "room", "grüße", b"text", node=2**63, number=2**31, sent_at=1 << 50, compress=True, slow_consumer="latest", key="k"
)
ENVELOPES = {
    "room": encode_envelope("room", "chat", b"hello", node=1, number=2, sent_at=3),
    "binary": encode_envelope("all", "", bytes(range(256)), is_binary=True, compress=False),
    "user": encode_envelope("user", "u" * 300, b"", slow_consumer="close"),
    "control": encode_envelope("control", "", b'{"command": "disconnect"}', key=""),
    "full": ENVELOPE,
    "truncated-key": ENVELOPE[:40],
    "name-too-long": ENVELOPE[:24] + b"\xff\xff\xff\xff" + ENVELOPE[28:],
    "name-not-utf-8": ENVELOPE[:28] + b"\xff" + ENVELOPE[29:],
    "critical-flag": ENVELOPE[:3] + bytes([ENVELOPE[3] | 0x80]) + ENVELOPE[4:],
    "unknown-flag": ENVELOPE[:3] + bytes([ENVELOPE[3] | 0x08]) + ENVELOPE[4:],
    "version-2": b"\xb2" + ENVELOPE[1:],
}


def write(target: str, name: str, data: bytes) -> None:
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def main() -> None:
    """Write all inputs."""
    for name, frames in FRAMES.items():
        write("parser", name, bytes([5, 1, 7]) + frames)
    for name, frames in SERVER_FRAMES.items():
        write("client_parser", name, bytes([5, 1, 7]) + frames)
    for name, request in HANDSHAKES.items():
        write("handshake", name, b"\x05" + request)
    for index, payload in enumerate((b"hello hello hello", bytes(20_000), b"\x00", bytes(range(256)))):
        write("deflate", f"message-{index}", bytes([index, 1]) + payload)
        write("deflate", f"stream-{index}", bytes([index, 0xC0]) + deflated(payload))
    for name, envelope in ENVELOPES.items():
        write("envelope", name, envelope)


if __name__ == "__main__":
    main()
