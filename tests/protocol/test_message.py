"""Messages: their contents, and their frames."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshub.errors import InvalidMessageError
from wshub.protocol.frame import Frame
from wshub.protocol.message import Message, MessageType


@given(st.text())
def test_text_is_a_str_and_its_frame_is_that_of_frame_text(text: str) -> None:
    message = Message(text)
    assert message.data == text
    assert message.data is message.data
    assert message.type is MessageType.TEXT
    assert message.frame_bytes == Frame.text(text).encode()
    assert bytes(message) == text.encode()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_buffer_is_binary_and_its_frame_is_that_of_frame_binary(kind, size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    message = Message(kind(payload))
    assert type(message.data) is bytes
    assert message.data == payload
    assert message.type is MessageType.BINARY
    assert message.frame_bytes == Frame.binary(payload).encode()
    assert len(message) == size


def test_a_message_is_a_copy_of_a_buffer_that_may_change() -> None:
    buffer = bytearray(b"before")
    message = Message(buffer)
    buffer[:] = b"after!"
    assert message.data == b"before"


def test_messages_are_values() -> None:
    assert Message("a") == Message("a") == Message(Message("a"))
    assert Message("a") != Message(b"a")
    assert len({Message("a"), Message("a"), Message(b"a")}) == 2
    assert pickle.loads(pickle.dumps(Message("ä"))) == Message("ä")
    assert Message("")


def test_a_lone_surrogate_cannot_be_sent() -> None:
    with pytest.raises(InvalidMessageError, match="surrogate"):
        Message("\ud800")


@pytest.mark.parametrize("data", [None, 1, 1.5, ["a"], object()])
def test_anything_else_is_a_type_error_that_says_what_is_wanted(data) -> None:
    with pytest.raises(TypeError, match="a message is a str, bytes"):
        Message(data)


def test_a_message_made_without_its_initialiser_is_refused_not_crashed() -> None:
    message = Message.__new__(Message)
    for use in (lambda: message.data, lambda: message.type, lambda: bytes(message), lambda: len(message)):
        with pytest.raises(TypeError, match="__init__"):
            use()
    with pytest.raises(TypeError, match="__init__"):
        Message(message)


def test_a_message_may_be_initialised_again() -> None:
    message = Message("first")
    message.__init__(b"second")  # type: ignore[misc]
    assert message.data == b"second"
