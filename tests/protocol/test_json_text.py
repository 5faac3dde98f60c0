"""JSON text means the same with every encoder, and hostile JSON is a mistake of the client."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshub import InvalidMessageError, Message, UnexpectedMessageError
from wshub.protocol import json_text

ENCODERS: dict[str, Callable[[Any], bytes] | None] = {
    "orjson": orjson.dumps,
    "msgspec": msgspec.json.encode,
    "json": None,
}


@pytest.fixture(params=ENCODERS)
def encoded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """Encode a value with one of the encoders."""
    monkeypatch.setattr(json_text, "fast_encoder", ENCODERS[request.param])
    return text_of


def text_of(value: Any) -> str:
    text = json_text.json_from_value(value)
    return text.decode() if isinstance(text, bytes) else text


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)


@given(VALUES)
def test_every_encoder_gives_text_of_the_same_value(value: Any) -> None:
    original = json_text.fast_encoder
    try:
        for encoder in ENCODERS.values():
            json_text.fast_encoder = encoder
            decoded = json.loads(text_of(value))
            assert decoded == value
            # 1 and 1.0 and True are equal.
            assert repr(decoded) == repr(value)
    finally:
        json_text.fast_encoder = original


class Color(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


class Name(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((1, (2,)), "[1,[2]]"),
        ({"a": "ä\u2028"}, '{"a":"ä\u2028"}'),
        ({1: "a", None: 1.5, False: []}, '{"1":"a","null":1.5,"false":[]}'),
        (2**70, str(2**70)),
        ([-(2**63), 2**64 - 1], f"[{-(2**63)},{2**64 - 1}]"),
        ([Color.RED, Level.HIGH, Point(1, 2), Name("x")], '["red",3,[1,2],"x"]'),
        ({Color.RED: 1}, '{"red":1}'),
        ({}, "{}"),
    ],
)
def test_what_json_can_encode_every_encoder_encodes_in_the_same_way(encoded, value, text) -> None:
    assert encoded(value) == text


@dataclasses.dataclass
class Data:
    x: int


class Struct(msgspec.Struct):
    x: int


@pytest.mark.parametrize(
    "value",
    [
        Data(1),
        Struct(1),
        datetime.datetime(2026, 1, 1),
        uuid.UUID(int=1),
        {1, 2},
        b"bytes",
        enum.Enum("Plain", "ONE").ONE,  # type: ignore[attr-defined]
        {"deep": [object()]},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_encode_no_encoder_encodes(encoded, value) -> None:
    with pytest.raises(TypeError, match=r"send_json\(value\): .*not JSON serializable"):
        encoded(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf], {"a": (math.nan,)}])
def test_nan_and_infinity_are_refused_since_no_client_could_read_them(encoded, value) -> None:
    with pytest.raises(InvalidMessageError, match=r"send_json\(value\): Out of range float"):
        encoded(value)


def test_a_value_that_contains_itself_is_refused(encoded) -> None:
    value: list[Any] = []
    value.append(value)
    value.append(value)
    with pytest.raises(InvalidMessageError, match="Circular"):
        encoded(value)


@pytest.mark.parametrize("depth", [90, 110, 300, 900])
def test_deeply_nested_values_are_encoded(encoded, depth) -> None:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    assert encoded(value) == "[" * depth + "1" + "]" * depth


def test_a_lone_surrogate_is_left_to_the_message_to_refuse(encoded) -> None:
    assert encoded(["\ud800"]) == '["\ud800"]'


def imported_encoder(missing: list[str]) -> str:
    source = (
        f"import sys\nfor name in {missing}: sys.modules[name] = None\n"
        "from wshub.protocol import json_text\n"
        "print(getattr(json_text.fast_encoder, '__module__', None))"
    )
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout.strip()


def test_the_encoder_is_chosen_at_import_from_what_is_installed() -> None:
    assert imported_encoder([]).startswith("orjson")
    assert imported_encoder(["orjson"]).startswith("msgspec")
    assert imported_encoder(["orjson", "msgspec", "msgspec.json"]) == "None"


# Decoding


@given(VALUES)
def test_a_message_of_json_gives_its_value(value: Any) -> None:
    assert repr(Message(json.dumps(value)).json()) == repr(value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "NaN", "[Infinity]", "-Infinity", "{'a': 1}", "[1,]", "nul", "1 2", "[" * 100_000, "1" * 5000],
    ids=lambda text: text[:12],
)
def test_text_that_is_no_json_is_a_mistake_of_the_client(text: str) -> None:
    with pytest.raises(UnexpectedMessageError) as caught:
        Message(text).json()
    assert (caught.value.code, caught.value.reason) == (1007, "expected JSON")
    assert isinstance(caught.value, ValueError)
    # A traceback shows no part of the message.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_binary_message_is_not_read_as_json() -> None:
    with pytest.raises(UnexpectedMessageError) as caught:
        Message(b"{}").json()
    assert (caught.value.code, caught.value.reason) == (1003, "expected a text message")
