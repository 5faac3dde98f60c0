"""Frames as values (RFC 6455 section 5)."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshub.errors import InvalidMessageError, ProtocolError
from wshub.protocol.close_code import CloseCode
from wshub.protocol.frame import Frame, Opcode

MASK = bytes.fromhex("37fa213d")

# Section 5.7, in its order.
RFC_EXAMPLES = [
    ("810548656c6c6f", Frame.text("Hello")),
    ("818537fa213d7f9f4d5158", Frame.text("Hello").with_mask(MASK)),
    ("010348656c", Frame(Opcode.TEXT, b"Hel", fin=False)),
    ("80026c6f", Frame(Opcode.CONTINUATION, b"lo")),
    ("890548656c6c6f", Frame.ping("Hello")),
    ("8a8537fa213d7f9f4d5158", Frame.pong("Hello").with_mask(MASK)),
    ("827e0100" + "5a" * 256, Frame.binary(b"Z" * 256)),
    ("827f0000000000010000" + "5a" * 65536, Frame.binary(b"Z" * 65536)),
]


@st.composite
def frames(draw):
    opcode = draw(st.sampled_from(Opcode))
    payload = draw(st.binary(max_size=125 if opcode.is_control else 300))
    key = draw(st.none() | st.binary(min_size=4, max_size=4))
    return Frame(
        opcode,
        payload,
        fin=opcode.is_control or draw(st.booleans()),
        rsv1=draw(st.booleans()),
        rsv2=draw(st.booleans()),
        rsv3=draw(st.booleans()),
        masked=key is not None,
        mask_key=key,
    )


@pytest.mark.parametrize(("digits", "frame"), RFC_EXAMPLES, ids=range(len(RFC_EXAMPLES)))
def test_the_examples_of_the_rfc_encode_and_decode(digits, frame):
    encoded = bytes.fromhex(digits)
    assert frame.encode() == encoded
    assert Frame.decode(encoded) == (frame, len(encoded))


@given(frames(), st.binary(max_size=8))
def test_what_is_encoded_is_decoded_and_what_follows_is_left(frame, rest):
    encoded = frame.encode()
    for data in (encoded + rest, bytearray(encoded + rest), memoryview(encoded + rest)):
        assert Frame.decode(data) == (frame, len(encoded))


@given(frames())
def test_every_prefix_of_a_frame_needs_more(frame):
    encoded = frame.encode()
    assert all(Frame.decode(encoded[:end]) is None for end in range(len(encoded)))


@given(st.binary(max_size=40))
def test_any_bytes_decode_need_more_or_are_a_protocol_error(data):
    try:
        decoded = Frame.decode(data)
    except ProtocolError as error:
        decoded, refused_with = None, error.code
    else:
        refused_with = None
    if decoded is not None:
        frame, consumed = decoded
        assert frame.encode() == data[:consumed]
    assert refused_with in (None, 1002)


@pytest.mark.parametrize("length", [0, 1, 124, 125, 126, 127, 65535, 65536, 65537])
@pytest.mark.parametrize("key", [None, MASK])
def test_a_length_takes_its_shortest_form(length, key):
    frame = Frame.binary(b"\xa5" * length)
    if key is not None:
        frame = frame.with_mask(key)
    encoded = frame.encode()
    extended = 0 if length <= 125 else 2 if length <= 65535 else 8
    assert len(encoded) == 2 + extended + (4 if key else 0) + length
    assert Frame.decode(encoded) == (frame, len(encoded))


@pytest.mark.parametrize("length", [0, 1, 125])
def test_a_16_bit_length_that_7_bits_can_hold_is_a_protocol_error(length):
    assert failure_code(b"\x82\x7e" + length.to_bytes(2, "big")) == 1002


@pytest.mark.parametrize("length", [0, 125, 126, 65535])
def test_a_64_bit_length_that_16_bits_can_hold_is_a_protocol_error(length):
    assert failure_code(b"\x82\x7f" + length.to_bytes(8, "big")) == 1002


@pytest.mark.parametrize("length", [1 << 63, (1 << 63) + 1, (1 << 64) - 1])
def test_a_length_with_its_top_bit_set_is_a_protocol_error(length):
    assert failure_code(b"\x82\x7f" + length.to_bytes(8, "big")) == 1002


@pytest.mark.parametrize("length", [(1 << 16) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1])
def test_a_huge_length_only_needs_more(length):
    assert Frame.decode(b"\x82\x7f" + length.to_bytes(8, "big") + b"data") is None


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_a_reserved_opcode_is_a_protocol_error_at_its_first_byte(opcode):
    assert failure_code(bytes([0x80 | opcode])) == 1002
    with pytest.raises(InvalidMessageError):
        Frame(opcode)


@pytest.mark.parametrize("opcode", [Opcode.CLOSE, Opcode.PING, Opcode.PONG])
def test_a_control_frame_is_not_fragmented_and_at_most_125_bytes(opcode):
    assert opcode.is_control
    assert failure_code(bytes([opcode])) == 1002
    assert failure_code(bytes([0x80 | opcode, 126])) == 1002
    assert failure_code(bytes([0x80 | opcode, 0x80 | 127])) == 1002
    assert Frame(opcode, b"x" * 125).encode()[1] == 125
    with pytest.raises(InvalidMessageError):
        Frame(opcode, fin=False)
    with pytest.raises(InvalidMessageError):
        Frame(opcode, b"x" * 126)


def test_data_frames_are_not_control_frames():
    assert [opcode for opcode in Opcode if not opcode.is_control] == [
        Opcode.CONTINUATION,
        Opcode.TEXT,
        Opcode.BINARY,
    ]


@pytest.mark.parametrize(
    ("field", "bit"), [("fin", 0x80), ("rsv1", 0x40), ("rsv2", 0x20), ("rsv3", 0x10)], ids=lambda value: str(value)
)
def test_each_bit_of_the_first_byte_has_its_field(field, bit):
    bits = {"fin": False, field: True}
    encoded = Frame(Opcode.BINARY, **bits).encode()
    assert encoded == bytes([bit | 2, 0])
    assert Frame.decode(encoded) == (Frame(Opcode.BINARY, **bits), 2)


def test_a_mask_key_and_masked_go_together():
    with pytest.raises(InvalidMessageError):
        Frame(Opcode.TEXT, b"", masked=True)
    with pytest.raises(InvalidMessageError):
        Frame(Opcode.TEXT, b"", mask_key=MASK)
    for key in (b"", b"abc", b"abcde"):
        with pytest.raises(InvalidMessageError):
            Frame.text("").with_mask(key)


def test_a_frame_is_a_value_that_does_not_change():
    frame = Frame.text("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        frame.fin = False
    assert not hasattr(frame, "__dict__")
    assert frame == Frame.text(b"a")
    assert hash(frame) == hash(Frame.text(b"a"))
    assert Frame(1).opcode is Opcode.TEXT


def test_the_defaults_are_those_of_an_unmasked_whole_message():
    frame = Frame(opcode=Opcode.BINARY, payload=b"x")
    assert (frame.fin, frame.rsv1, frame.rsv2, frame.rsv3) == (True, False, False, False)
    assert (frame.masked, frame.mask_key) == (False, None)


@pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"abc"), memoryview(b"aXbXc")[::2], "abc"])
def test_payloads_are_taken_as_text_and_as_anything_bytes_like(data):
    for make in (Frame.text, Frame.binary, Frame.ping, Frame.pong):
        assert make(data).payload == b"abc"
        assert type(make(data).payload) is bytes


def test_a_mutable_payload_is_copied():
    data = bytearray(b"abc")
    frame = Frame.binary(data)
    data[0] = 0
    assert frame.payload == b"abc"


@pytest.mark.parametrize("data", [3, None, [1, 2], object()])
def test_what_is_not_bytes_like_is_refused(data):
    for make in (Frame.text, Frame.binary, Frame.ping, Frame.pong):
        with pytest.raises(InvalidMessageError):
            make(data)
    with pytest.raises(InvalidMessageError):
        Frame(Opcode.BINARY, data)


def test_a_text_message_is_utf_8():
    assert Frame.text("κόσμε").payload == "κόσμε".encode()
    for text in ("\ud800", b"\xff"):
        with pytest.raises(InvalidMessageError):
            Frame.text(text)
    with pytest.raises(InvalidMessageError):
        Frame.ping("\ud800")


def test_a_fragment_of_text_may_end_within_a_character():
    assert Frame(Opcode.TEXT, b"\xce", fin=False).payload == b"\xce"


def test_close_carries_its_code_and_reason():
    assert Frame.close().payload == b"\x03\xe8"
    assert Frame.close(CloseCode.GOING_AWAY, "bye").payload == b"\x03\xe9bye"
    assert Frame.close(4000, b"bye").encode() == b"\x88\x05\x0f\xa0bye"
    assert Frame(Opcode.CLOSE).encode() == b"\x88\x00"
    with pytest.raises(InvalidMessageError):
        Frame.close(CloseCode.NO_STATUS)


def failure_code(data: bytes) -> int:
    with pytest.raises(ProtocolError) as caught:
        Frame.decode(data)
    return caught.value.code
