"""The native parser: any split of the octets gives the same events, and each violation its close code."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshub.errors import ConfigurationError, ProtocolError
from wshub.protocol.frame import Frame, Opcode
from wshub.protocol.message import Message, MessageType
from wshub.protocol.parser import FrameParser

MASK = b"\x9a\x01\xff\x5c"
LIMIT = 1 << 20


def masked(frame: Frame, mask: bytes = MASK) -> bytes:
    return frame.with_mask(mask).encode()


def plain(events):
    """Events as values that compare with ==, whatever objects they are."""
    result = []
    for name, value in events:
        if isinstance(value, Message):
            result.append((value.type, value.data))
        elif isinstance(value, ProtocolError):
            result.append((name, value.code))
        else:
            result.append((name, value))
    return result


def events_of(octets: bytes, limit: int = LIMIT):
    return plain(FrameParser(limit).feed(octets))


def failure_of(octets: bytes, limit: int = LIMIT) -> int:
    events = events_of(octets, limit)
    assert events, "the parser waits for more"
    assert events[-1][0] == "failure"
    return events[-1][1]


payloads = st.one_of(
    st.binary(max_size=300),
    st.sampled_from([0, 1, 125, 126, 127, 65535, 65536, 70000]).map(lambda size: b"\x80" * size),
)
texts = st.one_of(st.text(max_size=200), st.sampled_from(["x" * 126, "é" * 40000, "\U0010ffff" * 33]))


@st.composite
def conversations(draw):
    """A valid sequence of frames, and the events that it must give."""
    octets, expected = [], []
    control = st.tuples(st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125))

    def put_controls() -> None:
        for opcode, payload in draw(st.lists(control, max_size=2)):
            octets.append(masked(Frame(opcode, payload), draw(st.binary(min_size=4, max_size=4))))
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
            octets.append(masked(part, draw(st.binary(min_size=4, max_size=4))))
            if not final:
                put_controls()
        expected.append(event)
    if draw(st.booleans()):
        octets.append(masked(Frame.close(1000, "bye")))
        expected.append(("close", (1000, b"\x03\xe8bye")))
    return b"".join(octets), expected


@given(conversations(), st.data())
def test_any_split_of_any_frame_sequence_gives_the_same_events(conversation, data) -> None:
    octets, expected = conversation
    assert events_of(octets) == expected
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=12)))
    parser, split = FrameParser(LIMIT), []
    for start, end in zip([0, *cuts], [*cuts, len(octets)], strict=True):
        split += parser.feed(octets[start:end])
    assert plain(split) == expected


@given(conversations())
def test_receiving_into_place_gives_the_same_events(conversation) -> None:
    octets, expected = conversation
    assert plain(FrameParser(LIMIT).feed_directly(octets)) == expected


@given(st.binary(max_size=400), st.data())
def test_any_octets_give_the_same_events_however_they_are_split(octets, data) -> None:
    whole = events_of(octets, 1000)
    parser, split = FrameParser(1000), []
    for index in range(len(octets)):
        split += parser.feed(octets[index : index + 1])
    assert plain(split) == whole


def decoded_or_code(octets: bytes) -> tuple[Frame, int] | int | None:
    try:
        return Frame.decode(octets)
    except ProtocolError as error:
        return error.code


@given(st.binary(min_size=2, max_size=80))
def test_the_first_frame_is_judged_as_frame_decode_judges_it(octets: bytes) -> None:
    octets = bytes([octets[0] & 0x8F, octets[1] | 0x80, *octets[2:]])
    decoded = decoded_or_code(octets)
    if isinstance(decoded, int):
        assert events_of(octets)[0] == ("failure", decoded)
    elif decoded is not None:
        frame, consumed = decoded
        events = events_of(octets[:consumed])
        if frame.opcode in (Opcode.PING, Opcode.PONG):
            assert events == [(frame.opcode.name.lower(), frame.payload)]
        elif frame.opcode is Opcode.BINARY and frame.fin:
            assert events == [(MessageType.BINARY, frame.payload)]


@pytest.mark.parametrize("alignment", range(9))
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 31, 32, 33, 125, 126, 127, 1000])
def test_masks_at_every_alignment_agree_with_a_byte_loop(size: int, alignment: int) -> None:
    payload = bytes((7 * index + alignment) & 0xFF for index in range(size))
    octets = masked(Frame.binary(payload))
    parser = FrameParser()
    head = len(octets) - size + min(alignment, size)
    events = parser.feed(octets[:head]) + parser.feed(octets[head:])
    assert plain(events) == [(MessageType.BINARY, payload)]


@pytest.mark.parametrize("size", [125, 126, 65535, 65536])
def test_lengths_around_the_boundaries_are_read_in_their_shortest_form(size: int) -> None:
    assert events_of(masked(Frame.binary(bytes(size)))) == [(MessageType.BINARY, bytes(size))]


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"\x82\xfe\x00\x7d", id="125 in 16 bits"),
        pytest.param(b"\x82\xff" + (65535).to_bytes(8, "big"), id="65535 in 64 bits"),
        pytest.param(b"\x82\xff" + (1 << 63).to_bytes(8, "big"), id="highest bit set"),
        pytest.param(b"\x82\xff" + b"\xff" * 8, id="2**64 - 1"),
        pytest.param(b"\xc2\x80", id="RSV1"),
        pytest.param(b"\xa2\x80", id="RSV2"),
        pytest.param(b"\x92\x80", id="RSV3"),
        pytest.param(b"\x83\x80", id="reserved data opcode"),
        pytest.param(b"\x8b\x80", id="reserved control opcode"),
        pytest.param(b"\x09\x80", id="fragmented ping"),
        pytest.param(b"\x89\xfe\x00\x7e", id="ping of 126"),
        pytest.param(b"\x80\x80", id="continuation of nothing"),
    ],
)
def test_a_header_that_breaks_the_rules_fails_with_1002(header: bytes) -> None:
    assert failure_of(header + MASK) == 1002


def test_a_frame_without_a_mask_fails_with_1002_at_its_second_octet() -> None:
    assert failure_of(b"\x81\x05") == 1002


def test_a_new_message_within_a_fragmented_one_fails_with_1002() -> None:
    octets = masked(Frame(Opcode.TEXT, b"a", fin=False)) + masked(Frame.text("b"))
    assert failure_of(octets) == 1002


@pytest.mark.parametrize("length", [1001, 65535, 65536, 1 << 31, 1 << 32, (1 << 62) + 1, (1 << 63) - 1])
def test_a_message_above_the_limit_is_refused_from_its_header(length: int) -> None:
    form = b"\xfe" + length.to_bytes(2, "big") if length < 65536 else b"\xff" + length.to_bytes(8, "big")
    assert failure_of(b"\x82" + form + MASK, limit=1000) == 1009


@pytest.mark.parametrize("first", [b"\x82", b"\x02\x80abcd\x80"])
def test_a_length_that_is_only_declared_costs_no_memory(first) -> None:
    """Neither in the first frame of a message nor in a later one."""
    parser = FrameParser(1 << 40)
    tracemalloc.start()
    assert parser.feed(first + b"\xff" + (1 << 35).to_bytes(8, "big") + b"abcd") == []
    assert parser.feed(bytes(3 << 20)) == []
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 3 << 20 <= held <= 9 << 20


def test_the_limit_holds_for_the_sum_of_the_fragments() -> None:
    parser = FrameParser(1000)
    assert parser.feed(masked(Frame(Opcode.BINARY, bytes(999), fin=False))) == []
    assert parser.feed(masked(Frame(Opcode.CONTINUATION, b"x", fin=False))) == []
    assert plain(parser.feed(b"\x00\x81")) == []
    assert plain(parser.feed(MASK)) == [("failure", 1009)]


def test_a_message_of_exactly_the_limit_is_taken() -> None:
    assert events_of(masked(Frame.binary(bytes(1000))), limit=1000) == [(MessageType.BINARY, bytes(1000))]


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
def test_invalid_utf8_fails_with_1007_at_the_first_octet_that_cannot_be(text: bytes) -> None:
    parser = FrameParser()
    # The message says that a lot is still to come, so the failure is not the end's.
    octets = masked(Frame(Opcode.TEXT, text + b"x" * 100, fin=False))
    header = len(octets) - len(text) - 100
    assert plain(parser.feed(octets[: header + len(text)])) == [("failure", 1007)]


def test_invalid_utf8_is_found_across_fragments() -> None:
    parser = FrameParser()
    assert parser.feed(masked(Frame(Opcode.TEXT, b"\xed", fin=False))) == []
    assert plain(parser.feed(masked(Frame(Opcode.CONTINUATION, b"\xa0", fin=False)))) == [("failure", 1007)]


def test_text_that_ends_within_a_character_fails_with_1007() -> None:
    assert failure_of(Frame(Opcode.TEXT, b"\xe2\x82", masked=True, mask_key=MASK).encode()) == 1007


@given(st.binary(max_size=40))
def test_utf8_is_judged_as_python_judges_it(octets: bytes) -> None:
    frame = Frame(Opcode.TEXT, octets, masked=True, mask_key=MASK).encode()
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        assert failure_of(frame) == 1007
    else:
        assert events_of(frame) == [(MessageType.TEXT, text)]


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_a_close_code_that_may_not_be_sent_fails_with_1002(code: int) -> None:
    payload = code.to_bytes(2, "big")
    assert failure_of(masked(Frame(Opcode.CLOSE, payload))) == 1002


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999])
def test_a_valid_close_code_is_given(code: int) -> None:
    payload = code.to_bytes(2, "big")
    assert events_of(masked(Frame(Opcode.CLOSE, payload))) == [("close", (code, payload))]


def test_a_close_frame_without_a_code_is_1005() -> None:
    assert events_of(masked(Frame(Opcode.CLOSE))) == [("close", (1005, b""))]


def test_a_close_frame_with_half_a_code_fails_with_1002() -> None:
    assert failure_of(masked(Frame(Opcode.CLOSE, b"\x03"))) == 1002


def test_a_close_reason_that_is_not_utf8_fails_with_1007() -> None:
    assert failure_of(masked(Frame(Opcode.CLOSE, b"\x03\xe8\xff"))) == 1007


def test_a_close_in_the_middle_of_a_fragmented_message_is_a_close() -> None:
    octets = masked(Frame(Opcode.TEXT, b"a", fin=False)) + masked(Frame.close())
    assert events_of(octets) == [("close", (1000, b"\x03\xe8"))]


@pytest.mark.parametrize("end", [masked(Frame.close()), b"\xff\xff", b"\x81\x00"], ids=["close", "RSV", "no mask"])
def test_nothing_is_read_after_the_end(end: bytes) -> None:
    parser = FrameParser()
    assert len(parser.feed(end)) == 1
    assert parser.stopped
    assert parser.feed(masked(Frame.text("more"))) == []
    assert parser.feed_directly(masked(Frame.binary(bytes(20000)))) == []


def test_very_many_empty_and_tiny_fragments_are_one_bounded_message() -> None:
    parser = FrameParser(65536)
    assert parser.feed(masked(Frame(Opcode.BINARY, b"", fin=False))) == []
    empty, tiny = (masked(Frame(Opcode.CONTINUATION, octet, fin=False)) for octet in (b"", b"x"))
    assert parser.feed(empty * 100_000) == []
    assert parser.feed(tiny * 65536) == []
    assert plain(parser.feed(tiny)) == [("failure", 1009)]


@pytest.mark.parametrize("size", [-1, 1 << 62, "64", None])
def test_a_limit_that_cannot_be_is_refused(size) -> None:
    with pytest.raises(ConfigurationError, match="max_message_size"):
        FrameParser(size)
