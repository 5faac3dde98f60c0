"""Header fields as a mapping."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshub.protocol.http.headers import TOKEN_CHARACTERS, Headers, is_token, split_list

RAW = [(b"Host", b"example.com"), (b"X-One", b"1"), (b"x-two", b"2"), (b"X-ONE", b"3"), (b"x-one", b"1")]
BLOCK = b"Host: example.com\r\nX-One:1\r\nx-two: \t 2 \t\r\nX-ONE: 3\r\nx-one: 1\r\n"


@pytest.fixture(params=["pairs", "block", "block with its end", "compacted"])
def headers(request):
    if request.param == "pairs":
        return Headers(RAW)
    if request.param == "block":
        return Headers.from_block(BLOCK)
    made = Headers.from_block(BLOCK + b"\r\n")
    if request.param == "compacted":
        assert made["host"] == "example.com"
        made.compact()
    return made


def test_names_are_found_in_any_case(headers):
    assert headers["host"] == headers["HOST"] == headers["Host"] == "example.com"
    assert headers.get("hOST") == "example.com"
    assert "X-Two" in headers


def test_what_is_missing_is_missing(headers):
    assert headers.get("x-three") is None
    assert headers.get("x-three", "default") == "default"
    assert headers.get_all("x-three") == []
    assert "x-three" not in headers
    assert b"host" not in headers
    with pytest.raises(KeyError):
        headers["x-three"]


def test_a_repeated_name_has_its_first_value_and_all_of_them_in_order(headers):
    assert headers["x-one"] == "1"
    assert headers.get_all("X-One") == ["1", "3", "1"]
    assert list(headers.get_all_raw(b"x-one")) == [b"1", b"3", b"1"]
    assert headers.get_all("x-two") == ["2"]


def test_raw_keeps_order_and_repetitions_with_names_in_lower_case(headers):
    assert list(headers.raw) == [(name.lower(), value) for name, value in RAW]


def test_as_a_mapping_it_has_each_name_once(headers):
    assert isinstance(headers, Mapping)
    assert list(headers) == ["host", "x-one", "x-two"]
    assert len(headers) == 3
    assert dict(headers) == {"host": "example.com", "x-one": "1", "x-two": "2"}
    assert headers == {"host": "example.com", "x-one": "1", "x-two": "2"}


def test_headers_are_equal_if_all_their_fields_are(headers):
    assert headers == Headers(RAW)
    assert headers != Headers(RAW[:-1])
    assert headers != 3


def test_equal_empty_values_are_still_counted():
    assert Headers([(b"a", b""), (b"a", b"")]).get_all("a") == ["", ""]
    assert Headers.from_block(b"a:\r\na: \r\n").get_all("a") == ["", ""]


def test_a_letter_that_becomes_ascii_in_lower_case_does_not_match():
    # U+212A, the Kelvin sign, is "k" in lower case.
    assert "coo\u212aie" not in Headers([(b"cookie", b"x")])


def test_values_are_latin_1():
    headers = Headers([(b"x", bytes(range(0x80, 0x100)))])
    assert headers["x"].encode("latin-1") == bytes(range(0x80, 0x100))


@pytest.mark.parametrize("separator", [b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\x85", b"\n", b"\r"])
def test_nothing_but_cr_lf_splits_a_block(separator):
    headers = Headers.from_block(b"a: 1" + separator + b"b: 2\r\n")
    assert list(headers.raw) == [(b"a", b"1" + separator + b"b: 2")]


SECRETS = [b"Authorization", b"COOKIE", b"proxy-authorization", b"Sec-WebSocket-Protocol", b"X-Api-Key", b"Referer"]


@pytest.mark.parametrize("name", SECRETS)
def test_repr_hides_secrets_and_control_characters(name):
    shown = repr(Headers([(name, b"s3cret"), (b"user-agent", b"a\x1b[31m\r\n")]))
    assert "s3cret" not in shown
    assert name.decode().lower() in shown
    assert "user-agent: 'a" in shown
    assert "\x1b" not in shown
    assert "\n" not in shown


def test_it_cannot_be_changed():
    headers = Headers(RAW)
    with pytest.raises(TypeError):
        headers["host"] = "other"
    with pytest.raises(TypeError):
        del headers["host"]
    with pytest.raises(AttributeError):
        headers.other = 1


def test_compacted_headers_hold_only_the_bytes():
    headers = Headers.from_block(BLOCK)
    assert headers["host"] == "example.com"
    headers.compact()
    assert sys.getsizeof(headers) <= 64
    assert {type(getattr(headers, slot)) for slot in Headers.__slots__} == {bytes, type(None)}


@given(
    st.lists(
        st.tuples(
            st.text(TOKEN_CHARACTERS.decode(), min_size=1, max_size=5).map(str.encode),
            st.binary(max_size=10).map(lambda value: value.translate(None, b"\r\n").strip(b" \t")),
        ),
        max_size=12,
    )
)
def test_a_block_and_its_pairs_are_the_same(pairs):
    block = b"".join(name + b": " + value + b"\r\n" for name, value in pairs)
    headers = Headers.from_block(block)
    assert headers == Headers(pairs)
    assert dict(headers) == dict(Headers(pairs))
    for name, _ in pairs:
        expected = [value.decode("latin-1") for other, value in pairs if other.lower() == name.lower()]
        assert headers.get_all(name.decode()) == Headers(pairs).get_all(name.decode()) == expected


def test_a_token_is_one_or_more_of_its_77_characters():
    assert len(set(TOKEN_CHARACTERS)) == 77
    assert not is_token(b"")
    for byte in range(256):
        assert is_token(bytes([byte])) == (byte in TOKEN_CHARACTERS)
        assert is_token(b"a" + bytes([byte]) + b"b") == (byte in TOKEN_CHARACTERS)


def test_a_list_is_split_at_commas_over_all_its_fields():
    assert split_list([b"a, b", b"c\t,,d e", b"", b" , "]) == [b"a", b"b", b"c", b"d e"]
