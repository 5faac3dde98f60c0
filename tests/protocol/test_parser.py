"""The native parser, in both roles. Any split of the bytes gives the same events; a violation has its close code."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.deflated import deflated_on
from wshub.errors import ConfigurationError, ProtocolError
from wshub.protocol.close_code import is_valid_on_wire
from wshub.protocol.compression.negotiation import PermessageDeflate
from wshub.protocol.frame import Frame, Opcode
from wshub.protocol.message import Message, MessageType
from wshub.protocol.parser import FrameParser
from wshub.protocol.role import Role

MASK = b"\x9a\x01\xff\x5c"
LIMIT = 1 << 20


@pytest.fixture(params=Role, ids=lambda role: role.name.lower())
def role(request: pytest.FixtureRequest) -> Role:
    """The side that reads."""
    return request.param


# Hypothesis does not allow a fixture that is set up again for each example.
both_roles = pytest.mark.parametrize("role", Role, ids=lambda role: role.name.lower())


def sent(frame: Frame, role: Role, mask: bytes = MASK) -> bytes:
    """Return the bytes of a frame as that role's peer sends it."""
    return frame.with_mask(mask).encode() if role is Role.SERVER else frame.encode()


def parser_of(role: Role, limit: int = 65536, compression: PermessageDeflate | None = None) -> FrameParser:
    return FrameParser(limit, compression, role)


def header_of(header: bytes, role: Role) -> bytes:
    """Return a header as that role's peer sends it. The argument has no mask bit."""
    if role is Role.CLIENT:
        return header
    return header[:1] + bytes([header[1] | 0x80]) + header[2:] + MASK


def plain(events):
    """Return events as values that compare with ==."""
    result = []
    for name, value in events:
        if isinstance(value, Message):
            result.append((value.type, value.data))
        elif isinstance(value, ProtocolError):
            result.append((name, value.code))
        else:
            result.append((name, value))
    return result


def events_of(data: bytes, role: Role, limit: int = LIMIT):
    return plain(parser_of(role, limit).feed(data))


def failure_of(data: bytes, role: Role, limit: int = LIMIT) -> int:
    events = events_of(data, role, limit)
    assert events, "the parser waits for more"
    assert events[-1][0] == "failure"
    return events[-1][1]


payloads = st.one_of(
    st.binary(max_size=300),
    st.sampled_from([0, 1, 125, 126, 127, 65535, 65536, 70000]).map(lambda size: b"\x80" * size),
)
texts = st.one_of(st.text(max_size=200), st.sampled_from(["x" * 126, "é" * 40000, "\U0010ffff" * 33]))


@st.composite
def conversations(draw, roles=Role):
    """Draw a role, a valid sequence of frames for it, and the expected events."""
    role = draw(st.sampled_from(list(roles)))
    frames, expected = [], []
    control = st.tuples(st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125))

    def put_controls() -> None:
        for opcode, payload in draw(st.lists(control, max_size=2)):
            frames.append(sent(Frame(opcode, payload), role, draw(st.binary(min_size=4, max_size=4))))
            expected.append((opcode.name.lower(), payload))

    for _ in range(draw(st.integers(0, 4))):
        put_controls()
        if draw(st.booleans()):
            text = draw(texts)
            payload, opcode, event = text.encode(), Opcode.TEXT, (MessageType.TEXT, text)
        else:
            payload = draw(payloads)
            opcode, event = Opcode.BINARY, (MessageType.BINARY, payload)
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        starts, ends = [0, *cuts], [*cuts, len(payload)]
        for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
            final = index == len(ends) - 1
            part = Frame(opcode if index == 0 else Opcode.CONTINUATION, payload[start:end], fin=final)
            frames.append(sent(part, role, draw(st.binary(min_size=4, max_size=4))))
            if not final:
                put_controls()
        expected.append(event)
    if draw(st.booleans()):
        frames.append(sent(Frame.close(1000, "bye"), role))
        expected.append(("close", (1000, b"\x03\xe8bye")))
    return role, b"".join(frames), expected


@given(conversations(), st.data())
def test_any_split_of_any_frame_sequence_gives_the_same_events(conversation, data) -> None:
    role, received, expected = conversation
    assert events_of(received, role) == expected
    cuts = sorted(data.draw(st.lists(st.integers(0, len(received)), max_size=12)))
    parser, split = parser_of(role, LIMIT), []
    for start, end in zip([0, *cuts], [*cuts, len(received)], strict=True):
        split += parser.feed(received[start:end])
    assert plain(split) == expected


@given(conversations())
def test_receiving_into_place_gives_the_same_events(conversation) -> None:
    role, received, expected = conversation
    assert plain(parser_of(role, LIMIT).feed_directly(received)) == expected


@both_roles
@given(received=st.binary(max_size=400))
def test_any_bytes_give_the_same_events_however_they_are_split(role: Role, received) -> None:
    whole = events_of(received, role, 1000)
    parser, split = parser_of(role, 1000), []
    for index in range(len(received)):
        split += parser.feed(received[index : index + 1])
    assert plain(split) == whole


def decoded_or_code(data: bytes) -> tuple[Frame, int] | int | None:
    try:
        return Frame.decode(data)
    except ProtocolError as error:
        return error.code


@both_roles
@given(data=st.binary(min_size=2, max_size=80))
@example(data=b"\x02\x7f" + bytes(8))
@example(data=b"\x02\x7e\x00\x7d")
def test_the_first_frame_is_judged_as_frame_decode_judges_it(role: Role, data: bytes) -> None:
    mask_bit = 0x80 if role is Role.SERVER else 0
    data = bytes([data[0] & 0x8F, data[1] & 0x7F | mask_bit, *data[2:]])
    decoded = decoded_or_code(data)
    if isinstance(decoded, int):
        assert events_of(data, role)[0] == ("failure", decoded)
    elif decoded is not None:
        frame, consumed = decoded
        events = events_of(data[:consumed], role)
        if frame.opcode in (Opcode.PING, Opcode.PONG):
            assert events == [(frame.opcode.name.lower(), frame.payload)]
        elif frame.opcode is Opcode.BINARY and frame.fin:
            assert events == [(MessageType.BINARY, frame.payload)]


@pytest.mark.parametrize("alignment", range(9))
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 31, 32, 33, 125, 126, 127, 1000])
def test_payloads_at_every_alignment_agree_with_a_byte_loop(role: Role, size: int, alignment: int) -> None:
    payload = bytes((7 * index + alignment) & 0xFF for index in range(size))
    data = sent(Frame.binary(payload), role)
    parser = parser_of(role)
    head = len(data) - size + min(alignment, size)
    events = parser.feed(data[:head]) + parser.feed(data[head:])
    assert plain(events) == [(MessageType.BINARY, payload)]


@pytest.mark.parametrize("size", [125, 126, 65535, 65536])
def test_lengths_around_the_boundaries_are_read_in_their_shortest_form(role: Role, size: int) -> None:
    assert events_of(sent(Frame.binary(bytes(size)), role), role) == [(MessageType.BINARY, bytes(size))]


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"\x82\x7e\x00\x7d", id="125 in 16 bits"),
        pytest.param(b"\x82\x7f" + (65535).to_bytes(8, "big"), id="65535 in 64 bits"),
        pytest.param(b"\x82\x7f" + (1 << 63).to_bytes(8, "big"), id="highest bit set"),
        pytest.param(b"\x82\x7f" + b"\xff" * 8, id="2**64 - 1"),
        pytest.param(b"\xc2\x00", id="RSV1"),
        pytest.param(b"\xa2\x00", id="RSV2"),
        pytest.param(b"\x92\x00", id="RSV3"),
        pytest.param(b"\x83\x00", id="reserved data opcode"),
        pytest.param(b"\x8b\x00", id="reserved control opcode"),
        pytest.param(b"\x09\x00", id="fragmented ping"),
        pytest.param(b"\x89\x7e\x00\x7e", id="ping of 126"),
        pytest.param(b"\x80\x00", id="continuation of nothing"),
    ],
)
def test_a_header_that_breaks_the_rules_fails_with_1002(role: Role, header: bytes) -> None:
    assert failure_of(header_of(header, role), role) == 1002


@pytest.mark.parametrize(
    ("first", "length"),
    [(first, length) for first in (0x81, 0x02) for length in (0, 5, 125, 126, 127)]
    + [(first, length) for first in (0x88, 0x89, 0x8A) for length in (0, 5, 125)],
)
def test_a_wrong_mask_bit_fails_with_1002_at_the_second_byte(role: Role, first: int, length: int) -> None:
    wrong = bytes([first, length | (0 if role is Role.SERVER else 0x80)])
    for data in (wrong, wrong + bytes(200)):
        ((name, error),) = parser_of(role).feed(data)
        assert (name, error.code) == ("failure", 1002)
        expected = "a client's frame is not masked" if role is Role.SERVER else "a server's frame is masked"
        assert error.reason == expected
    parser = parser_of(role)
    assert parser.feed(wrong[:1]) == []
    assert plain(parser.feed(wrong[1:])) == [("failure", 1002)]


@given(conversations(), st.data())
def test_each_role_refuses_what_the_other_reads(conversation, data) -> None:
    role, received, _ = conversation
    if not received:
        return
    other = Role.CLIENT if role is Role.SERVER else Role.SERVER
    assert events_of(received, other) == [("failure", 1002)]


def test_the_key_of_one_frame_is_not_that_of_the_next() -> None:
    frames = [Frame.binary(b"x" * 40).with_mask(bytes([key] * 4)) for key in range(1, 9)]
    data = b"".join(frame.encode() for frame in frames)
    assert events_of(data, Role.SERVER) == [(MessageType.BINARY, b"x" * 40)] * 8


def test_a_new_message_within_a_fragmented_one_fails_with_1002(role: Role) -> None:
    data = sent(Frame(Opcode.TEXT, b"a", fin=False), role) + sent(Frame.text("b"), role)
    assert failure_of(data, role) == 1002


@pytest.mark.parametrize("length", [1001, 65535, 65536, 1 << 31, 1 << 32, (1 << 62) + 1, (1 << 63) - 1])
def test_a_message_above_the_limit_is_refused_from_its_header(role: Role, length: int) -> None:
    form = b"\x7e" + length.to_bytes(2, "big") if length < 65536 else b"\x7f" + length.to_bytes(8, "big")
    assert failure_of(header_of(b"\x82" + form, role), role, limit=1000) == 1009


@pytest.mark.parametrize("first", [b"", b"\x02\x00"])
def test_a_length_that_is_only_declared_costs_no_memory(role: Role, first: bytes) -> None:
    """This holds for the first frame of a message and for later ones."""
    parser = parser_of(role, 1 << 40)
    declared = (b"\x80" if first else b"\x82") + b"\x7f" + (1 << 35).to_bytes(8, "big")
    tracemalloc.start()
    assert parser.feed((header_of(first, role) if first else b"") + header_of(declared, role)) == []
    assert parser.feed(bytes(3 << 20)) == []
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 3 << 20 <= held <= 9 << 20


def test_the_limit_holds_for_the_sum_of_the_fragments(role: Role) -> None:
    parser = parser_of(role, 1000)
    assert parser.feed(sent(Frame(Opcode.BINARY, bytes(999), fin=False), role)) == []
    assert parser.feed(sent(Frame(Opcode.CONTINUATION, b"x", fin=False), role)) == []
    header = header_of(b"\x00\x01", role)
    assert plain(parser.feed(header[:1])) == []
    assert plain(parser.feed(header[1:])) == [("failure", 1009)]


def test_a_message_of_exactly_the_limit_is_taken(role: Role) -> None:
    assert events_of(sent(Frame.binary(bytes(1000)), role), role, limit=1000) == [(MessageType.BINARY, bytes(1000))]


@pytest.mark.parametrize(
    "text",
    [
        b"\xc0\xaf",
        b"\xe0\x80\x80",
        b"\xed\xa0\x80",
        b"\xf0\x80\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\xff",
        b"\x80",
    ],
)
def test_invalid_utf8_fails_with_1007_at_the_first_byte_that_cannot_be(role: Role, text: bytes) -> None:
    parser = parser_of(role)
    # The header announces more data, so the parser fails before the end of the frame.
    data = sent(Frame(Opcode.TEXT, text + b"x" * 100, fin=False), role)
    header = len(data) - len(text) - 100
    assert plain(parser.feed(data[: header + len(text)])) == [("failure", 1007)]


def test_invalid_utf8_is_found_across_fragments(role: Role) -> None:
    parser = parser_of(role)
    assert parser.feed(sent(Frame(Opcode.TEXT, b"\xed", fin=False), role)) == []
    assert plain(parser.feed(sent(Frame(Opcode.CONTINUATION, b"\xa0", fin=False), role))) == [("failure", 1007)]


def test_text_that_ends_within_a_character_fails_with_1007(role: Role) -> None:
    assert failure_of(sent(Frame(Opcode.TEXT, b"\xe2\x82"), role), role) == 1007


@both_roles
@given(encoded=st.binary(max_size=40))
def test_utf8_is_judged_as_python_judges_it(role: Role, encoded: bytes) -> None:
    frame = sent(Frame(Opcode.TEXT, encoded), role)
    try:
        text = encoded.decode()
    except UnicodeDecodeError:
        assert failure_of(frame, role) == 1007
    else:
        assert events_of(frame, role) == [(MessageType.TEXT, text)]


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_a_close_code_that_may_not_be_sent_fails_with_1002(role: Role, code: int) -> None:
    payload = code.to_bytes(2, "big")
    assert failure_of(sent(Frame(Opcode.CLOSE, payload), role), role) == 1002


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999])
def test_a_valid_close_code_is_given(role: Role, code: int) -> None:
    payload = code.to_bytes(2, "big")
    assert events_of(sent(Frame(Opcode.CLOSE, payload), role), role) == [("close", (code, payload))]


def test_every_close_code_is_judged_as_python_judges_it() -> None:
    for code in range(1 << 16):
        payload = code.to_bytes(2, "big")
        ((name, _),) = FrameParser(role=Role.CLIENT).feed(b"\x88\x02" + payload)
        assert name == ("close" if is_valid_on_wire(code) else "failure"), code


def test_a_close_frame_without_a_code_is_1005(role: Role) -> None:
    assert events_of(sent(Frame(Opcode.CLOSE), role), role) == [("close", (1005, b""))]


def test_a_close_frame_with_half_a_code_fails_with_1002(role: Role) -> None:
    assert failure_of(sent(Frame(Opcode.CLOSE, b"\x03"), role), role) == 1002


def test_a_close_reason_that_is_not_utf8_fails_with_1007(role: Role) -> None:
    assert failure_of(sent(Frame(Opcode.CLOSE, b"\x03\xe8\xff"), role), role) == 1007


def test_a_close_in_the_middle_of_a_fragmented_message_is_a_close(role: Role) -> None:
    data = sent(Frame(Opcode.TEXT, b"a", fin=False), role) + sent(Frame.close(), role)
    assert events_of(data, role) == [("close", (1000, b"\x03\xe8"))]


@pytest.mark.parametrize("kind", ["close", "RSV", "mask"])
def test_nothing_is_read_after_the_end(role: Role, kind: str) -> None:
    wrong_mask = b"\x81\x00" if role is Role.SERVER else b"\x81\x80" + MASK
    end = {"close": sent(Frame.close(), role), "RSV": b"\xff\xff", "mask": wrong_mask}[kind]
    parser = parser_of(role)
    assert len(parser.feed(end)) == 1
    assert parser.stopped
    assert parser.feed(sent(Frame.text("more"), role)) == []
    assert parser.feed_directly(sent(Frame.binary(bytes(20000)), role)) == []


def test_very_many_empty_and_tiny_fragments_are_one_bounded_message(role: Role) -> None:
    parser = parser_of(role, 65536)
    assert parser.feed(sent(Frame(Opcode.BINARY, b"", fin=False), role)) == []
    empty, tiny = (sent(Frame(Opcode.CONTINUATION, payload, fin=False), role) for payload in (b"", b"x"))
    assert parser.feed(empty * 100_000) == []
    assert parser.feed(tiny * 65536) == []
    assert plain(parser.feed(tiny)) == [("failure", 1009)]


def test_each_role_decompresses_with_the_window_of_its_peer() -> None:
    """The second message refers to the first. Only a role with context takeover can read it."""
    compressor = zlib.compressobj(wbits=-15)
    data = b"a message that comes twice, " * 3
    frames = [Frame(Opcode.BINARY, deflated_on(compressor, data), rsv1=True) for _ in range(2)]
    agreed = {
        Role.SERVER: PermessageDeflate(server_no_context_takeover=True, server_max_window_bits=9),
        Role.CLIENT: PermessageDeflate(client_no_context_takeover=True, client_max_window_bits=9),
    }
    for role in Role:
        received = b"".join(sent(frame, role) for frame in frames)
        assert plain(parser_of(role, compression=agreed[role]).feed(received)) == [(MessageType.BINARY, data)] * 2
        other = Role.CLIENT if role is Role.SERVER else Role.SERVER
        assert ("failure", 1007) in plain(parser_of(role, compression=agreed[other]).feed(received))


@pytest.mark.parametrize("size", [-1, 1 << 62, "64", None])
def test_a_limit_that_cannot_be_is_refused(size) -> None:
    with pytest.raises(ConfigurationError, match="max_message_size"):
        FrameParser(size)


@pytest.mark.parametrize("value", [0, 1, "client", None, True])
def test_a_role_is_one_of_the_two(value) -> None:
    with pytest.raises(ConfigurationError, match=r"role must be Role\.SERVER or Role\.CLIENT"):
        FrameParser(role=value)
