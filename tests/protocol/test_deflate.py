"""Compressed messages: the native parser and the pool, compared with Python's zlib."""

from __future__ import annotations

import json
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.deflated import TAIL, deflated, deflated_on, dynamic_blocks
from wshub.errors import ConfigurationError, ProtocolError
from wshub.protocol.compression.compressed_once import DeflatePool
from wshub.protocol.compression.config import CompressionConfig
from wshub.protocol.compression.negotiation import PermessageDeflate
from wshub.protocol.frame import Frame, Opcode
from wshub.protocol.message import Message
from wshub.protocol.parser import FrameParser

try:
    import wshub.protocol.compression.isal  # noqa: F401
except ImportError:
    has_isal = False
else:
    has_isal = True

MASK = b"\x9a\x01\xff\x5c"
FORGETS = PermessageDeflate(client_no_context_takeover=True)
REMEMBERS = PermessageDeflate()


def frames(payload: bytes, opcode: Opcode = Opcode.BINARY, sizes: tuple[int, ...] = ()) -> bytes:
    """Return the masked frames of a compressed message: fragments of these sizes, and the rest."""
    sent = b""
    first = True
    for size in sizes:
        piece, payload = payload[:size], payload[size:]
        frame = Frame(opcode if first else Opcode.CONTINUATION, piece, fin=False, rsv1=first)
        sent += frame.with_mask(MASK).encode()
        first = False
    last = Frame(opcode if first else Opcode.CONTINUATION, payload, rsv1=first)
    return sent + last.with_mask(MASK).encode()


def received(sent: bytes, limit: int = 1 << 20, compression: PermessageDeflate | None = FORGETS) -> list:
    events = FrameParser(limit, compression).feed(sent)
    return [value.code if isinstance(value, ProtocolError) else getattr(value, "data", value) for _, value in events]


def ticks(count: int) -> list[bytes]:
    source = random.Random(7)
    return [json.dumps({"symbol": "ABC", "bid": source.random(), "seq": i}).encode() for i in range(count)]


# Received messages


@given(st.binary(max_size=3000), st.integers(0, 9), st.integers(9, 15), st.sampled_from([0, 2, 3, 4]), st.data())
def test_whatever_zlib_makes_of_a_message_gives_the_message_however_it_is_split(data, level, bits, strategy, draw):
    payload = deflated(data, level=level, bits=bits, strategy=strategy)
    sizes = tuple(draw.draw(st.lists(st.integers(0, 40), max_size=4)))
    sent = frames(payload, sizes=sizes)
    cut = draw.draw(st.integers(0, len(sent)))
    parser = FrameParser(1 << 20, FORGETS)
    events = parser.feed(sent[:cut]) + parser.feed(sent[cut:])
    assert [(name, value.data) for name, value in events] == [("message", data)]


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=8), st.booleans())
def test_compressed_and_plain_messages_follow_one_another(messages, remembers) -> None:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    sent = b""
    for data, compressed in messages:
        if not compressed:
            sent += Frame(Opcode.BINARY, data).with_mask(MASK).encode()
        elif remembers:
            sent += frames(deflated_on(compressor, data))
        else:
            sent += frames(deflated(data))
        sent += Frame.ping(b"between").with_mask(MASK).encode()
    found = received(sent, compression=REMEMBERS if remembers else FORGETS)
    assert found == [value for data, _ in messages for value in (data, b"between")]


def test_a_control_frame_between_the_fragments_of_a_compressed_message_is_plain() -> None:
    whole = deflated(b"abc" * 100)
    first = Frame(Opcode.TEXT, whole[:5], fin=False, rsv1=True).with_mask(MASK).encode()
    rest = Frame(Opcode.CONTINUATION, whole[5:]).with_mask(MASK).encode()
    assert received(first + Frame.ping(b"x").with_mask(MASK).encode() + rest) == [b"x", "abc" * 100]


def test_a_message_may_refer_to_the_one_before_only_where_that_was_agreed() -> None:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    message = bytes(random.Random(1).randbytes(500))
    sent = b"".join(frames(deflated_on(compressor, message)) for _ in range(3))
    assert received(sent, compression=REMEMBERS) == [message] * 3
    # Otherwise it might refer to another client's messages.
    assert received(sent, compression=FORGETS) == [message, 1007]


@pytest.mark.parametrize("payload", [bytes.fromhex("f348cdc9c9070000"), bytes.fromhex("f248cdc9c90700")])
def test_the_examples_of_the_rfc_are_taken_also_with_a_final_block(payload: bytes) -> None:
    # RFC 7692 sections 7.2.3.1 and 7.2.3.4.
    assert received(frames(payload, Opcode.TEXT)) == ["Hello"]


def test_blocks_after_a_final_block_may_refer_to_what_is_before_it() -> None:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    first = compressor.compress(b"Hello, hello, hello") + compressor.flush(zlib.Z_FINISH)
    payload = first + deflated(b"Hello, hello", history=b"Hello, hello, hello")
    assert received(frames(payload, Opcode.TEXT)) == ["Hello, hello, helloHello, hello"]


@pytest.mark.parametrize("payload", [b"", b"\x00"])
def test_an_empty_message_is_taken_in_either_form(payload: bytes) -> None:
    assert received(frames(payload) + frames(deflated(b"next"))) == [b"", b"next"]


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff",
        b"\x06" * 20,
        b"\x00\x05\x00\x00\x00hello",
        deflated(b"hello" * 50)[:-4],
        deflated(b"hello" * 50) + b"\x00\x00\xff\xff",
        deflated(b"hello" * 50) + b"\x01\x00",
    ],
    ids=["no block type", "bad block", "bad stored length", "cut", "tail left on", "rest"],
)
def test_data_that_deflate_does_not_make_fails_with_1007(payload: bytes) -> None:
    assert received(frames(payload)) == [1007]


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_judged_as_zlib_judges_them(payload: bytes) -> None:
    reference = zlib.decompressobj(-15)
    try:
        expected = reference.decompress(payload + TAIL)
    except zlib.error:
        expected = None
    found = received(frames(payload))
    if expected is None and found != [1007]:
        # zlib's object stops at a final block. A message may go on after one.
        assert reference.eof
    if found != [1007] and not reference.eof:
        assert found == [expected]


def test_compressed_text_that_is_not_utf8_fails_with_1007() -> None:
    assert received(frames(deflated(b"\xff\xfe" * 40), Opcode.TEXT)) == [1007]
    assert received(frames(deflated("é".encode()[:1]), Opcode.TEXT)) == [1007]
    assert received(frames(deflated("é".encode() * 99), Opcode.TEXT)) == ["é" * 99]


@pytest.mark.parametrize("compression", [None, FORGETS])
@pytest.mark.parametrize("bits", [{"rsv2": True}, {"rsv3": True}, {"rsv1": True, "rsv2": True}])
def test_other_reserved_bits_fail_with_1002(compression, bits) -> None:
    assert received(Frame(Opcode.TEXT, b"", **bits).with_mask(MASK).encode(), compression=compression) == [1002]


def test_rsv1_without_negotiation_fails_with_1002() -> None:
    assert received(frames(deflated(b"x")), compression=None) == [1002]


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG, Opcode.CLOSE])
def test_rsv1_on_a_control_frame_fails_with_1002(opcode: Opcode) -> None:
    sent = bytes([0xC0 | opcode.value, 0x80]) + MASK
    assert received(sent) == [1002]


def test_rsv1_on_a_continuation_fails_with_1002() -> None:
    first = Frame(Opcode.TEXT, b"\x00", fin=False, rsv1=True).with_mask(MASK).encode()
    second = Frame(Opcode.CONTINUATION, b"\x00", rsv1=True).with_mask(MASK).encode()
    assert received(first + second) == [1002]


# Bombs


def test_a_message_of_exactly_the_limit_is_taken_and_one_more_byte_is_1009() -> None:
    for data in (bytes(5000), random.Random(2).randbytes(5000)):
        assert received(frames(deflated(data)), limit=5000) == [data]
        assert received(frames(deflated(data)), limit=4999) == [1009]
    assert received(frames(deflated(b"")), limit=0) == [b""]
    assert received(frames(deflated(b"x")), limit=0) == [1009]


@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_the_longest_form_of_a_message_of_the_limit_is_taken(level: int, strategy: int) -> None:
    data = bytes(random.Random(3).choices(range(144, 256), k=1 << 16))
    assert received(frames(deflated(data, level=level, strategy=strategy)), limit=1 << 16) == [data]


def test_a_bomb_is_refused_with_1009_in_one_frame_and_over_fragments() -> None:
    bomb = deflated(bytes(64 << 20), level=9)
    assert len(bomb) < 70_000
    assert received(frames(bomb), limit=1 << 16) == [1009]
    assert received(frames(bomb, sizes=(1000,) * 60), limit=1 << 16) == [1009]


def test_a_compressed_message_too_large_in_any_case_is_refused_from_its_header() -> None:
    header = bytes([0xC2, 0x80 | 127]) + (200_000).to_bytes(8, "big") + MASK
    assert received(header, limit=1 << 16) == [1009]


@pytest.mark.parametrize(
    ("payload", "limit"),
    [
        pytest.param(dynamic_blocks(2500), 1 << 16, id="codes"),
        pytest.param(dynamic_blocks(2300, literals=1), 1 << 16, id="codes for one byte"),
        pytest.param(b"\x00\x00\x00\xff\xff" * 200_000, 1 << 20, id="stored"),
        pytest.param(b"\x02\x08\x20\x80\x00" * 200_000, 1 << 20, id="fixed"),
    ],
)
def test_empty_blocks_without_end_are_bounded(payload: bytes, limit: int) -> None:
    assert len(payload) < limit * 9 // 8
    zlib.decompressobj(-15).decompress(payload + TAIL)
    assert received(frames(payload), limit=limit) == [1008]


def test_a_message_may_have_some_empty_blocks() -> None:
    for payload in (dynamic_blocks(500), b"\x00\x00\x00\xff\xff" * 14_000 + b"\x00"):
        assert received(frames(payload), limit=1 << 16) == [b""]


@pytest.mark.parametrize("flush", [zlib.Z_SYNC_FLUSH, zlib.Z_PARTIAL_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_BLOCK])
@pytest.mark.parametrize(("size", "step"), [(1 << 16, 1), (1 << 18, 10), (1 << 18, 100), (1 << 18, 1 << 18)])
@pytest.mark.parametrize("memory_level", [1, 8])
@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY])
def test_a_message_in_as_many_blocks_as_a_compressor_makes_is_taken(strategy, memory_level, size, step, flush) -> None:
    data = bytes(random.Random(5).choices(b"0123456789,", k=size))
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15, memory_level, strategy)
    pieces = [
        compressor.compress(data[start : start + step]) + compressor.flush(flush)
        for start in range(0, size - step, step)
    ]
    payload = b"".join(pieces) + deflated_on(compressor, data[len(pieces) * step :])
    assert received(frames(payload), limit=1 << 20) == [data]


# Sent messages

without_isal = pytest.mark.skipif(not has_isal, reason="wshub was built without ISA-L: libisal-dev was not there")
ENGINES = [pytest.param("zlib"), pytest.param("isal", marks=without_isal)]


def inflated(payload: bytes, bits: int = 15, step: int = 64) -> bytes:
    """Decompress in steps of ``step`` bytes. zlib then detects references beyond the window and the step."""
    inflater = zlib.decompressobj(-bits)
    pieces, rest = [], payload + TAIL
    while True:
        pieces.append(inflater.decompress(rest, step))
        rest = inflater.unconsumed_tail
        if not pieces[-1] and not rest:
            return b"".join(pieces)


compressible = st.one_of(
    st.text(alphabet="abc ", min_size=1, max_size=2000).map(str.encode),
    st.builds(lambda seed, n: random.Random(seed).randbytes(n) * 3, st.integers(0, 9), st.integers(1, 600)),
    st.just(json.dumps([tick.decode() for tick in ticks(60)]).encode()),
)


@pytest.mark.parametrize("engine", ENGINES)
@given(compressible, st.integers(8, 15), st.integers(1, 9), st.integers(1, 9))
def test_a_form_is_shorter_and_within_the_window_of_its_receiver(engine, data, bits, level, memory_level) -> None:
    pool = DeflatePool(CompressionConfig(engine=engine, level=level, memory_level=memory_level))
    payload = pool.compress_message(Message(data), bits)
    if payload is not None:
        assert len(payload) < len(data)
        assert inflated(payload, bits) == data


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("level", [1, 3, 4, 9])
@pytest.mark.parametrize("bits", range(8, 15))
def test_no_form_refers_further_back_than_its_receiver_keeps(engine, bits: int, level: int) -> None:
    # The data repeats at each distance around the window's size.
    source = random.Random(bits)
    data = b"".join(source.randbytes(max(0, (1 << bits) + step)) * 2 for step in (-300, -264, -8, -1, 0, 1, 7))
    data += b"so that there is a form at all " * 20
    pool = DeflatePool(CompressionConfig(engine=engine, level=level))
    payload = pool.compress_message(Message(data), bits)
    assert payload is not None
    assert inflated(payload, bits, step=1 if bits < 10 else 64) == data


@pytest.mark.parametrize("engine", ENGINES)
def test_each_message_is_compressed_by_itself(engine) -> None:
    pool = DeflatePool(CompressionConfig(engine=engine))
    for tick in ticks(20):
        data = tick * 4
        payload = pool.compress_message(Message(data))
        assert payload is not None
        assert inflated(payload) == data


@pytest.mark.parametrize("engine", ENGINES)
def test_a_message_is_compressed_once_for_all_windows_that_it_fits_in(engine) -> None:
    pool = DeflatePool(CompressionConfig(engine=engine))
    message = Message(b"short and short " * 20)
    forms = {pool.compress_message(message, bits) for bits in range(9, 16)}
    assert (len(forms), pool.compressions) == (1, 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_message_is_compressed_once_for_each_smaller_window(engine) -> None:
    pool = DeflatePool(CompressionConfig(engine=engine))
    message = Message(b"".join(ticks(1000)))
    for _ in range(3):
        for bits in (15, 9, 12):
            pool.compress_message(message, bits)
    assert pool.compressions == 3


@pytest.mark.parametrize("engine", ENGINES)
def test_what_gains_nothing_is_tried_once_and_goes_plain(engine) -> None:
    pool = DeflatePool(CompressionConfig(engine=engine))
    message = Message(random.Random(4).randbytes(2000))
    assert [pool.compress_message(message, bits) for bits in (15, 15, 9)] == [None] * 3
    assert (pool.compressions, pool.bytes_in, pool.bytes_out) == (1, 2000, 2000)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pool_counts_what_it_does(engine) -> None:
    pool = DeflatePool(CompressionConfig(engine=engine))
    message = Message(b"0" * 10_000)
    payload = pool.compress_message(message)
    assert payload is not None
    assert (pool.compressions, pool.bytes_in, pool.bytes_out) == (1, 10_000, len(payload))


def test_a_pool_is_made_with_a_config() -> None:
    with pytest.raises(ConfigurationError):
        DeflatePool({"level": 1})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        DeflatePool(CompressionConfig()).compress_message(Message(b""), 16)


def test_an_engine_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(ConfigurationError, match="engine"):
        CompressionConfig(engine="lz4")  # type: ignore[arg-type]
    if not has_isal:
        with pytest.raises(ConfigurationError, match="libisal-dev"):
            DeflatePool(CompressionConfig(engine="isal"))


@without_isal
def test_the_fast_engine_is_used_for_fast_levels_if_it_is_there() -> None:
    def payload(**settings) -> bytes | None:
        return DeflatePool(CompressionConfig(**settings)).compress_message(Message(b"".join(ticks(99))))

    assert payload() == payload(engine="isal") != payload(engine="zlib")
    assert payload(engine="isal", level=6) == payload(engine="zlib", level=6)
