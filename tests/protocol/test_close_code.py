"""Close codes, and the payload of a close frame (RFC 6455 sections 5.5.1 and 7.4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshub.errors import InvalidMessageError, ProtocolError
from wshub.protocol.close_code import (
    MAX_REASON_LENGTH,
    CloseCode,
    decode_close_payload,
    encode_close_payload,
    is_valid_on_wire,
)

VALID = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


def test_codes_have_the_numbers_of_the_registry():
    assert {code.name: int(code) for code in CloseCode} == {
        "NORMAL": 1000,
        "GOING_AWAY": 1001,
        "PROTOCOL_ERROR": 1002,
        "UNSUPPORTED": 1003,
        "NO_STATUS": 1005,
        "ABNORMAL": 1006,
        "INVALID_DATA": 1007,
        "POLICY_VIOLATION": 1008,
        "MESSAGE_TOO_BIG": 1009,
        "EXTENSION_REQUIRED": 1010,
        "INTERNAL_ERROR": 1011,
        "SERVICE_RESTART": 1012,
        "TRY_AGAIN_LATER": 1013,
        "BAD_GATEWAY": 1014,
        "TLS_HANDSHAKE": 1015,
    }


def test_exactly_the_codes_of_section_7_4_are_valid_on_the_wire():
    assert {code for code in range(-1, 1 << 16) if is_valid_on_wire(code)} == VALID


def test_every_code_is_accepted_from_a_peer_exactly_if_it_may_be_sent():
    for code in range(1 << 16):
        payload = code.to_bytes(2, "big")
        if code in VALID:
            assert decode_close_payload(payload) == (code, "")
            assert encode_close_payload(code, "") == payload
        else:
            with pytest.raises(ProtocolError) as caught:
                decode_close_payload(payload)
            assert caught.value.code == 1002
            with pytest.raises(InvalidMessageError):
                encode_close_payload(code, "")


@pytest.mark.parametrize("code", [-1, 1 << 16, 1 << 64])
def test_a_code_that_two_bytes_cannot_hold_is_refused(code):
    with pytest.raises(InvalidMessageError):
        encode_close_payload(code, "")


def test_no_payload_is_no_status():
    assert decode_close_payload(b"") == (CloseCode.NO_STATUS, "")


def test_half_a_code_is_a_protocol_error():
    with pytest.raises(ProtocolError) as caught:
        decode_close_payload(b"\x03")
    assert caught.value.code == 1002


@pytest.mark.parametrize("reason", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"abc\xe2\x82", b"\xf4\x90\x80\x80"])
def test_a_reason_that_is_not_utf_8_is_invalid_data(reason):
    with pytest.raises(ProtocolError) as caught:
        decode_close_payload(b"\x03\xe8" + reason)
    assert caught.value.code == 1007
    with pytest.raises(InvalidMessageError):
        encode_close_payload(1000, reason)


def test_a_reason_with_a_surrogate_is_refused():
    with pytest.raises(InvalidMessageError):
        encode_close_payload(1000, "\ud800")


def test_a_reason_is_bounded_in_bytes_and_not_in_characters():
    assert len(encode_close_payload(1000, "x" * MAX_REASON_LENGTH)) == 125
    assert len(encode_close_payload(1000, "€" * 41)) == 125
    for reason in ("x" * 124, "€" * 42, b"x" * 124):
        with pytest.raises(InvalidMessageError):
            encode_close_payload(1000, reason)


@given(st.sampled_from(sorted(VALID)), st.text(max_size=30))
def test_what_is_encoded_is_decoded(code, reason):
    assert decode_close_payload(encode_close_payload(code, reason)) == (code, reason)
    assert encode_close_payload(code, reason.encode()) == encode_close_payload(code, reason)


@given(st.binary(max_size=130))
def test_any_payload_gives_a_valid_code_or_a_protocol_error(payload):
    try:
        code, reason = decode_close_payload(payload)
    except ProtocolError as error:
        refused_with = error.code
    else:
        refused_with = None
        assert (code, reason) == (1005, "") if not payload else encode_close_payload(code, "") == payload[:2]
    assert refused_with in (None, 1002, 1007)
