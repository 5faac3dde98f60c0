"""The frame writer in both roles, and the masking of a client's frames."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshub.errors import ConfigurationError, InvalidMessageError
from wshub.protocol.frame import Frame, Opcode
from wshub.protocol.message import Message, MessageType
from wshub.protocol.parser import FrameParser
from wshub.protocol.role import Role
from wshub.protocol.writer import FrameWriter, apply_mask, encode_frame, encode_header

MASK = bytes.fromhex("37fa213d")
SIZES = [0, 1, 7, 8, 9, 124, 125, 126, 127, 65535, 65536, 65537]
control_frames = st.tuples(st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125))
messages = st.one_of(st.text(max_size=200), st.binary(max_size=300), st.sampled_from(SIZES).map(bytes))


def other(role: Role) -> Role:
    return Role.CLIENT if role is Role.SERVER else Role.SERVER


@pytest.mark.parametrize("role", Role)
@given(sent=st.lists(st.one_of(messages, control_frames), max_size=8))
def test_what_one_side_writes_the_other_reads(role: Role, sent) -> None:
    writer, reader = FrameWriter(role), FrameParser(1 << 20, role=other(role))
    received, expected = [], []
    for item in sent:
        if isinstance(item, tuple):
            received += reader.feed(writer.control(*item))
            expected.append((item[0].name.lower(), item[1]))
        else:
            received += reader.feed(writer.message(item))
            expected.append(("message", Message(item)))
    received += reader.feed(writer.control(Opcode.CLOSE, b"\x03\xe8bye"))
    assert received == [*expected, ("close", (1000, b"\x03\xe8bye"))]


@given(messages, st.sampled_from(Role))
def test_no_side_reads_what_its_own_role_writes(data, role: Role) -> None:
    ((name, error),) = FrameParser(1 << 20, role=role).feed(FrameWriter(role).message(data))
    assert (name, error.code) == ("failure", 1002)


@pytest.mark.parametrize("size", SIZES)
def test_a_client_writes_the_frame_that_the_value_encodes(size: int) -> None:
    payload = bytes(index & 0xFF for index in range(size))
    writer = FrameWriter(Role.CLIENT, lambda length: (MASK * length)[:length])
    assert writer.message(payload) == Frame.binary(payload).with_mask(MASK).encode()
    assert writer.message("é" * (size // 2)) == Frame.text("é" * (size // 2)).with_mask(MASK).encode()


@pytest.mark.parametrize("size", SIZES)
def test_a_server_writes_the_frame_of_the_message(size: int) -> None:
    message = Message(bytes(size))
    assert FrameWriter(Role.SERVER).message(message) == message.frame_bytes == Frame.binary(bytes(size)).encode()


def test_masking_leaves_the_message_as_it_was() -> None:
    message = Message("shared by many")
    before = message.frame_bytes
    client = FrameWriter(Role.CLIENT)
    assert client.message(message) != client.message(message)
    assert message.frame_bytes == before
    assert (message.type, message.data) == (MessageType.TEXT, "shared by many")


def test_every_frame_has_a_new_key_from_the_source() -> None:
    keys = [number.to_bytes(4, "big") for number in range(1000)]
    rest = b"".join(keys)
    asked = []

    def random_bytes(length: int) -> bytes:
        nonlocal rest
        asked.append(length)
        taken, rest = rest[:length], rest[length:]
        return taken

    writer = FrameWriter(Role.CLIENT, random_bytes)
    assert asked == []
    assert [writer.message(b"")[2:6] for _ in range(200)] == keys[:200]
    assert 1 <= len(asked) < 10


def test_keys_come_from_the_operating_system_by_default() -> None:
    writers = [FrameWriter(Role.CLIENT) for _ in range(3)]
    seen = {writer.message(b"")[2:6] for writer in writers for _ in range(300)}
    # Among 900 random keys, two are equal in one run of 10,000.
    assert len(seen) >= 898


def test_a_server_asks_for_no_keys() -> None:
    def random_bytes(length: int) -> bytes:
        raise AssertionError

    assert FrameWriter(Role.SERVER, random_bytes).message(b"x") == b"\x82\x01x"


@pytest.mark.parametrize("length", [0, 4, 255, 257])
def test_a_source_that_returns_another_length_is_refused(length: int) -> None:
    with pytest.raises(InvalidMessageError, match="random_bytes"):
        FrameWriter(Role.CLIENT, lambda _: bytes(length)).message(b"")


def test_a_source_that_fails_costs_no_key() -> None:
    fails = True

    def random_bytes(length: int) -> bytes:
        if fails:
            raise OSError("no randomness")
        return os.urandom(length)

    writer = FrameWriter(Role.CLIENT, random_bytes)
    with pytest.raises(OSError, match="no randomness"):
        writer.message(b"x")
    fails = False
    assert Frame.decode(writer.message(b"x"))[0].payload == b"x"


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION, 0xB, 0xFF])
def test_control_writes_control_frames_only(opcode: int) -> None:
    with pytest.raises(InvalidMessageError, match="control frame"):
        FrameWriter(Role.CLIENT).control(opcode)


@pytest.mark.parametrize("role", Role)
def test_a_control_frame_has_at_most_125_bytes(role: Role) -> None:
    assert len(FrameWriter(role).control(Opcode.PING, bytes(125))) == 2 + 125 + 4 * (role is Role.CLIENT)
    with pytest.raises(InvalidMessageError, match="at most 125 bytes"):
        FrameWriter(role).control(Opcode.PING, bytes(126))


def test_a_writer_has_a_role() -> None:
    assert FrameWriter(Role.CLIENT).role is Role.CLIENT
    with pytest.raises(ConfigurationError, match="role must be"):
        FrameWriter(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [None, 1, ["a"]])
def test_a_message_is_text_or_bytes(data) -> None:
    with pytest.raises(TypeError, match="a message is"):
        FrameWriter(Role.CLIENT).message(data)


@pytest.mark.parametrize(
    ("length", "end"),
    [
        (0, b"\x00"),
        (125, b"\x7d"),
        (126, b"\x7e\x00\x7e"),
        (65535, b"\x7e\xff\xff"),
        (65536, b"\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
        ((1 << 63) - 1, b"\x7f\x7f" + b"\xff" * 7),
    ],
)
def test_a_header_has_its_length_in_the_fewest_bytes(length: int, end: bytes) -> None:
    assert encode_header(0x82, 0, length) == b"\x82" + end
    assert encode_header(0x82, 0x80, length) == b"\x82" + bytes([end[0] | 0x80]) + end[1:]


@given(st.binary(max_size=70), st.binary(min_size=4, max_size=4))
def test_masking_is_that_of_a_loop_over_bytes(payload, key) -> None:
    masked = apply_mask(payload, key)
    assert masked == bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
    assert apply_mask(masked, key) == payload
    assert encode_frame(0x82, payload, key) == bytes([0x82, 0x80 | len(payload)]) + key + masked


@pytest.mark.parametrize("key", [b"", b"abc", b"abcde"])
def test_a_key_has_four_bytes(key: bytes) -> None:
    with pytest.raises(InvalidMessageError, match="4 bytes"):
        apply_mask(b"x", key)
    with pytest.raises(InvalidMessageError, match="4 bytes"):
        encode_frame(0x82, b"x", key)


def test_a_frame_masked_without_a_key_has_a_random_one() -> None:
    masked = [Frame.text("x").with_mask() for _ in range(50)]
    assert len({frame.mask_key for frame in masked}) >= 49
    assert all(Frame.decode(frame.encode()) == (frame, 7) for frame in masked)
