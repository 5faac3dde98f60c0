"""Messages of a channel layer as bytes: JSON, in which strings and bytes stay apart.

JSON has no bytes. A value of bytes travels as a string that begins with U+FFFF and ``b``, followed by base64. A string
that begins with U+FFFF by itself gets U+FFFF and ``s`` in front.
"""

from __future__ import annotations

import base64
import json
from typing import Any

__all__ = ["decode_message", "encode_message"]

MARK = "\uffff"
ESCAPED_MARK = b"\\uffff"

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_decode = json.JSONDecoder().decode


def encode_message(message: object) -> bytes:
    """Return the bytes of a message.

    Raises:
        TypeError: it is no dict, or has a value or a key of a type that no channel layer carries.
        ValueError: it is nested too deeply.
    """
    if not isinstance(message, dict):
        raise TypeError(f"a message of a channel layer is a dict, not {type(message).__name__}")
    try:
        return _encode(_boxed(message)).encode("ascii")
    except RecursionError:
        raise ValueError("the message is nested too deeply, or contains itself") from None


def decode_message(data: bytes) -> dict[str, Any]:
    """Return the message of bytes that ``encode_message`` has made. Tuples have become lists.

    Raises:
        ValueError: they are something else.
    """
    message = _decode(data.decode("ascii"))
    if ESCAPED_MARK in data:
        message = _unboxed(message)
    if not isinstance(message, dict):
        raise ValueError("a message of a channel layer is a dict")
    return message


def _boxed(value: Any) -> Any:
    """Return a value that JSON can hold."""
    if isinstance(value, str):
        return f"{MARK}s{value}" if value.startswith(MARK) else value
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, dict):
        for key in value:
            # JSON would make a str of it.
            if not isinstance(key, str):
                raise TypeError(f"the keys of a message are str, not {type(key).__name__}")
        return {key: _boxed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_boxed(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{MARK}b{base64.b64encode(value).decode('ascii')}"
    raise TypeError(
        f"a message cannot have a {type(value).__name__}: use str, bytes, int, float, bool, None, lists and dicts"
    )


def _unboxed(value: Any) -> Any:
    if isinstance(value, str):
        if not value.startswith(MARK):
            return value
        return base64.b64decode(value[2:], validate=True) if value[1:2] == "b" else value[2:]
    if isinstance(value, dict):
        return {key: _unboxed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unboxed(item) for item in value]
    return value
