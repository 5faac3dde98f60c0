"""The envelope: what was encoded is decoded, and nothing else is taken for an envelope."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshub.brokers.envelope import (
    DecodedEnvelope,
    DecodedHead,
    decode_envelope,
    decode_stored,
    encode_envelope,
    encode_stored,
)

HEADER_LENGTH = 28
# Where the fields are.
KIND, FLAGS, NAME_LENGTH = 1, 2, 24
CRITICAL_FLAGS = range(12, 16)
UNKNOWN_FLAGS = range(9, 12)

texts = st.text(st.characters(exclude_categories=["Cs"]))
envelopes = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["room", "all", "user", "control"]),
        "name": texts,
        "payload": st.binary(max_size=2000),
        "is_binary": st.booleans(),
        "node": st.integers(0, 2**64 - 1),
        "number": st.integers(0, 2**32 - 1),
        "sent_at": st.integers(0, 2**64 - 1),
        "compress": st.sampled_from([None, False, True]),
        "slow_consumer": st.sampled_from([None, "close", "drop_newest", "drop_oldest", "latest"]),
        "key": st.none() | texts,
        "excluded": st.none() | st.integers(0, 2**64 - 1),
        "publisher": st.none() | texts,
    }
)

FULL = encode_envelope(
    "room",
    "grüße",
    b"payload",
    is_binary=True,
    node=0x0123456789ABCDEF,
    number=0xFFFF_FFFF,
    sent_at=2**63,
    compress=False,
    slow_consumer="latest",
    key="kl\u00fcssel",
    excluded=2**63 + 1,
    publisher="\u00e4nn",
)


def changed(position: int, *values: int, of: bytes = FULL) -> bytes:
    """Return the envelope with other bytes from that position on."""
    return of[:position] + bytes(values) + of[position + len(values) :]


def with_flag(bit: int, of: bytes = FULL) -> bytes:
    flags = int.from_bytes(of[FLAGS : FLAGS + 2], "little") | 1 << bit
    return changed(FLAGS, *flags.to_bytes(2, "little"), of=of)


@given(fields=envelopes)
def test_what_was_encoded_is_decoded(fields: dict) -> None:
    assert decode_envelope(encode_envelope(**fields)) == DecodedEnvelope(**fields)


def test_the_layout_is_that_of_version_1() -> None:
    envelope = encode_envelope("user", "ab", b"xyz", node=0x0807060504030201, number=5, sent_at=6, key="k")
    assert envelope == (
        b"\xb1\x03\x40\x00"
        b"\x01\x02\x03\x04\x05\x06\x07\x08"
        b"\x05\x00\x00\x00"
        b"\x06\x00\x00\x00\x00\x00\x00\x00"
        b"\x02\x00\x00\x00ab"
        b"\x01\x00\x00\x00k"
        b"xyz"
    )


def test_an_envelope_never_begins_as_text_does() -> None:
    with pytest.raises(UnicodeDecodeError):
        FULL[:1].decode()


@given(fields=envelopes, data=st.data())
def test_a_truncated_envelope_is_refused_at_every_length(fields: dict, data: st.DataObject) -> None:
    envelope = encode_envelope(**fields)
    without_payload = len(envelope) - len(fields["payload"])
    length = data.draw(st.integers(0, len(envelope)))
    if length < without_payload:
        with pytest.raises(ValueError, match="truncated"):
            decode_envelope(envelope[:length])
    else:
        # The payload goes to the end, so the broker alone knows whether all of it is there.
        assert decode_envelope(envelope[:length]).payload == fields["payload"][: length - without_payload]


def test_each_prefix_of_a_full_envelope_is_refused() -> None:
    for length in range(len(FULL) - len(b"payload")):
        with pytest.raises(ValueError, match="truncated"):
            decode_envelope(FULL[:length])


@pytest.mark.parametrize("version", [0x00, 0xB0, 0xB2, 0xBF, 0xC1, 0xFF, ord("a")])
def test_another_version_is_refused(version: int) -> None:
    with pytest.raises(ValueError, match="version"):
        decode_envelope(changed(0, version))
    # Also if there is nothing else.
    with pytest.raises(ValueError, match="version"):
        decode_envelope(bytes([version]))


@pytest.mark.parametrize("kind", [0, 5, 6, 127, 255])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    with pytest.raises(ValueError, match="kind"):
        decode_envelope(changed(KIND, kind))


@pytest.mark.parametrize("bit", CRITICAL_FLAGS)
def test_an_unknown_critical_flag_is_refused(bit: int) -> None:
    with pytest.raises(ValueError, match="version or kind"):
        decode_envelope(with_flag(bit))


@pytest.mark.parametrize("bit", UNKNOWN_FLAGS)
def test_an_unknown_flag_is_ignored(bit: int) -> None:
    assert decode_envelope(with_flag(bit)) == decode_envelope(FULL)


@pytest.mark.parametrize("policy", [5, 6, 7])
def test_an_unknown_policy_is_refused(policy: int) -> None:
    flags = int.from_bytes(FULL[FLAGS : FLAGS + 2], "little") & ~(7 << 3) | policy << 3
    with pytest.raises(ValueError, match="policy"):
        decode_envelope(changed(FLAGS, *flags.to_bytes(2, "little")))


@pytest.mark.parametrize("length", [len("grüße".encode()) + 100, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_length_that_is_too_long_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="truncated"):
        decode_envelope(changed(NAME_LENGTH, *length.to_bytes(4, "little")))
    key_length = HEADER_LENGTH + len("grüße".encode())
    with pytest.raises(ValueError, match="truncated"):
        decode_envelope(changed(key_length, *length.to_bytes(4, "little")))


def test_lengths_that_lie_inside_of_the_envelope_change_where_the_payload_begins() -> None:
    envelope = encode_envelope("room", "abc", b"payload")
    assert decode_envelope(changed(NAME_LENGTH, 1, of=envelope)).payload == b"bcpayload"
    assert decode_envelope(changed(NAME_LENGTH, 10, of=envelope)) == decode_envelope(envelope)._replace(
        name="abcpayload", payload=b""
    )
    with pytest.raises(ValueError, match="truncated"):
        decode_envelope(changed(NAME_LENGTH, 11, of=envelope))


@pytest.mark.parametrize("key", [None, "k"])
def test_a_name_and_a_key_that_are_not_utf_8_are_refused(key: str | None) -> None:
    envelope = encode_envelope("room", "abc", b"", key=key)
    with pytest.raises(UnicodeDecodeError):
        decode_envelope(changed(HEADER_LENGTH, 0xFF, of=envelope))
    if key is not None:
        with pytest.raises(UnicodeDecodeError):
            decode_envelope(changed(len(envelope) - 1, 0xFF, of=envelope))


@given(data=st.binary(max_size=200))
def test_any_bytes_are_an_envelope_or_a_value_error(data: bytes) -> None:
    for candidate in (data, b"\xb1" + data, b"\xb1\x01\x40\x00" + data):
        try:
            envelope = decode_envelope(candidate)
        except ValueError:
            continue
        assert decode_envelope(encode_envelope(**envelope._asdict())) == envelope


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(ValueError, match="kind"):
        encode_envelope("probe", "", b"")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="slow_consumer"):
        encode_envelope("room", "", b"", slow_consumer="wait")
    for number in ({"node": 2**64}, {"node": -1}, {"number": 2**32}, {"sent_at": 2**64}):
        with pytest.raises(OverflowError):
            encode_envelope("room", "", b"", **number)


@pytest.mark.parametrize("name", ["\ud800", "room \udfff"])
def test_a_name_with_a_lone_surrogate_travels(name: str) -> None:
    decoded = decode_envelope(encode_envelope("room", name, b"", key=name))
    assert (decoded.name, decoded.key) == (name, name)


@given(
    envelope=st.binary(max_size=200),
    offset=st.integers(0, 2**64 - 1),
    previous=st.integers(0, 2**64 - 1),
    epoch=st.text("abcxyzABC", min_size=8, max_size=8),
)
def test_a_stored_envelope_has_its_head_in_front(envelope: bytes, offset: int, previous: int, epoch: str) -> None:
    stored = encode_stored(envelope, offset=offset, previous=previous, epoch=epoch)
    assert decode_stored(stored) == (DecodedHead(offset, previous, epoch), envelope)
    for length in range(len(stored) - len(envelope)):
        with pytest.raises(ValueError, match="no head"):
            decode_stored(stored[:length])


@pytest.mark.parametrize("epoch", ["", "short", "toolongepoch", "abcd efg", "abcdefg1", "abcdefgé"])
def test_an_epoch_is_eight_letters(epoch: str) -> None:
    with pytest.raises(ValueError, match="epoch"):
        encode_stored(b"", offset=1, previous=0, epoch=epoch)
