"""Messages of a channel layer as bytes."""

from __future__ import annotations

import enum
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wshub.django.messages import decode_message, encode_message

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40)
@given(st.dictionaries(st.text(), values, max_size=5))
def test_a_message_arrives_as_it_was_sent(message: dict[str, Any]) -> None:
    assert decode_message(encode_message(message)) == message


@pytest.mark.parametrize("text", ["\uffff", "\uffffb", "\uffffsQQ==", "a\uffff", "\\uffff", "\ud800", "\0"])
def test_strings_stay_strings(text: str) -> None:
    message = {"text": text, "bytes": text.encode("utf-8", "surrogatepass"), text: [text]}
    assert decode_message(encode_message(message)) == message


def test_tuples_become_lists_and_buffers_bytes() -> None:
    message = {"tuple": (1, (2,)), "buffers": [bytearray(b"a"), memoryview(b"b")]}
    assert decode_message(encode_message(message)) == {"tuple": [1, [2]], "buffers": [b"a", b"b"]}


class Level(enum.IntEnum):
    HIGH = 3


class Color(enum.StrEnum):
    RED = "red"


def test_enumerations_become_their_values() -> None:
    decoded = decode_message(encode_message({"level": Level.HIGH, "color": Color.RED}))
    assert decoded == {"level": 3, "color": "red"}
    assert [type(value) for value in decoded.values()] == [int, str]


@pytest.mark.parametrize(
    "message", ["text", None, [1], {1: "key"}, {"a": {True: 1}}, {"a": object()}, {"a": {1, 2}}, {"a": 1j}]
)
def test_what_no_layer_carries_is_refused(message: Any) -> None:
    with pytest.raises(TypeError):
        encode_message(message)


def test_a_message_that_contains_itself_is_refused() -> None:
    message: dict[str, Any] = {}
    message["itself"] = message
    with pytest.raises(ValueError, match="nested too deeply"):
        encode_message(message)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b'{"a": "\\uffffb!"}', b"\xff"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode_message(data)


def test_a_plain_message_is_plain_json() -> None:
    assert json.loads(encode_message({"type": "chat.message", "text": "hi"})) == {"type": "chat.message", "text": "hi"}
